"""What the shipped pipelines differ in: one `Family` per stock diffusers pipeline that is trained on the scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from festina.metrics.judge import HEADS, scene_targets
from festina.zoo.grammar import sample_scenes
from festina.zoo.render import render


class Captioned(Protocol):
    """Something that can be drawn and said."""

    def caption(self) -> str: ...


Conditions = Mapping[str, Tensor]
"""What a denoiser is told of captions: tensors with one row per caption."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the outcome of a training run; kept beside the weights.

    Attributes:
        scenes: pictures or videos rendered for training.
        vae_steps, text_steps, denoiser_steps, judge_steps: optimiser steps of each stage.
        vae_batch, text_batch, denoiser_batch, judge_batch: pictures (of a video all frames) or captions per step.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        learning_rate: peak rate of the denoiser stage (cosine to zero after a warm-up).
        ema_decay: decay of the moving average of the denoiser's weights.
        seed: fixes data, initial weights and noise.
        start: a trained pipeline of the same family whose denoiser is trained on, and whose other parts are kept: a
            shipped name or a folder; "nothing" to train all parts from the beginning.
        compile: run the denoiser through `torch.compile` (needs a C++ compiler; about 1.5 times as fast on a CPU).
    """

    scenes: int = 40_000
    vae_steps: int = 2_000
    vae_batch: int = 32
    text_steps: int = 1_200
    text_batch: int = 128
    denoiser_steps: int = 8_000
    denoiser_batch: int = 64
    judge_steps: int = 2_500
    judge_batch: int = 64
    caption_dropout: float = 0.1
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    seed: int = 0
    start: str = "nothing"
    compile: bool = False


class Family(ABC):
    """A pipeline that ships: its denoiser, its text encoders, its noise and how they go together.

    Attributes:
        name: name of the pipeline, such as "scenes-flux".
        beside: name of the shipped pipeline whose denoiser this is a smaller one for: all else is that pipeline's, and
            only the denoiser is trained and kept; "" for a pipeline of its own.
        settings: how it is trained if nothing else is said.
        heads: what there is to read in a caption: the words of each attribute.
        call: arguments that the stock pipeline's call wants, kept beside the weights in `call.json`.
    """

    name: str
    beside: str = ""
    settings = TrainSettings()
    heads: Mapping[str, tuple[str, ...]] = HEADS
    call: Mapping[str, Any] = MappingProxyType({})

    def sample(self, count: int, seed: int) -> Sequence[Captioned]:
        """What to draw for training: no held-out combination among it."""
        return sample_scenes(count, seed)

    def render(self, scenes: Sequence[Any], seed: int) -> Tensor:
        """Pictures (count, 3, 64, 64) in [0, 1] of what `sample` gave; of a video, (count, frames, 3, 64, 64)."""
        return render(scenes, seed)

    def targets(self, scenes: Sequence[Any]) -> Mapping[str, Tensor]:
        """What a text encoder should read in the captions: class index per head and scene."""
        return scene_targets(scenes)

    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The denoiser before training."""

    @abstractmethod
    def text_encoders(self) -> nn.ModuleDict:
        """The text encoders before training, by name."""

    @abstractmethod
    def read(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors that should each know the whole scene.

        Returns:
            float (vectors, TEXT_WIDTH), and the index of the caption each belongs to, int (vectors,).
        """

    @abstractmethod
    def conditions(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> Conditions:
        """What the denoiser is told of captions, as the stock pipeline encodes them."""

    @abstractmethod
    def corrupt(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, what the denoiser should predict, and the times (batch,), for clean latents."""

    def weights(self, times: Tensor) -> Tensor:
        """How much the squared error counts at times (batch,): alike everywhere unless a family says otherwise."""
        return torch.ones(len(times))

    @abstractmethod
    def predict(self, denoiser: Callable[..., Any], noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """The denoiser's prediction, called as the stock pipeline calls it."""

    @abstractmethod
    def pipeline(self, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module) -> Any:
        """The stock pipeline of the trained parts."""
