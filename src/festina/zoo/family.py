"""What the shipped pipelines differ in: one `Family` per stock diffusers pipeline that is trained on the scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Conditions = Mapping[str, Tensor]
"""What a denoiser is told of captions: tensors with one row per caption."""


class Family(ABC):
    """A pipeline that ships: its denoiser, its text encoders, its noise and how they go together.

    Attributes:
        name: name of the pipeline, such as "scenes-flux".
    """

    name: str

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

    @abstractmethod
    def predict(self, denoiser: Callable[..., Any], noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """The denoiser's prediction, called as the stock pipeline calls it."""

    @abstractmethod
    def pipeline(self, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module) -> Any:
        """The stock pipeline of the trained parts."""
