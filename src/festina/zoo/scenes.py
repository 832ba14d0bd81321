"""`scenes`: a PixArt transformer, trained to predict v (Salimans and Ho, arXiv 2202.00512, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from festina.zoo.components import (
    CAPTION_TOKENS,
    LATENT_CHANNELS,
    LATENT_SIZE,
    TEXT_WIDTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
)
from festina.zoo.family import Conditions, Family, TrainSettings


class Scenes(Family):
    """Eight blocks of self-attention, cross-attention and feed-forward, 192 wide, 64 tokens; guidance in one call."""

    name = "scenes"

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self.scheduler: DPMSolverMultistepScheduler = build_scheduler()

    def denoiser(self) -> nn.Module:
        return trainable(build_transformer())

    def text_encoders(self) -> nn.ModuleDict:
        return nn.ModuleDict({"t5": build_text_encoder(len(self.tokenizer))})

    def read(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        told = self.conditions(encoders, captions)
        mask = told["encoder_attention_mask"].bool()
        return told["encoder_hidden_states"][mask], mask.nonzero()[:, 0]

    def conditions(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> Conditions:
        device = next(encoders.parameters()).device
        text = self.tokenizer(list(captions), padding="max_length", max_length=CAPTION_TOKENS, return_tensors="pt")
        ids, mask = text.input_ids.to(device), text.attention_mask.to(device)
        tokens = encoders["t5"](ids, attention_mask=mask)[0]
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        times = torch.randint(len(self.scheduler.alphas_cumprod), (len(clean),), generator=generator)
        return velocity(self.scheduler, clean, times, generator)

    def predict(self, denoiser: Callable[..., Any], noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        predicted: Tensor = denoiser(noisy, timestep=times, **conditions, return_dict=False)[0]
        return predicted

    def pipeline(self, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module) -> PixArtAlphaPipeline:
        return PixArtAlphaPipeline(
            tokenizer=self.tokenizer,
            text_encoder=encoders["t5"],
            vae=vae,
            transformer=denoiser,
            scheduler=self.scheduler,
        )


class ScenesSmall(Scenes):
    """A quarter of the work and less beside `scenes`: four blocks, 96 wide; it reads the same captions and latents and
    predicts the same, so that either may run in a step."""

    name = "scenes-small"
    beside = "scenes"
    settings = TrainSettings(denoiser_steps=5_000, seed=1)

    def denoiser(self) -> nn.Module:
        return trainable(build_transformer(blocks=4, heads=3))


def build_transformer(blocks: int = 8, heads: int = 6) -> PixArtTransformer2DModel:
    """The transformer of `scenes`, or one of other sizes: heads of 32 numbers; starts by predicting 0."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=blocks,
        cross_attention_dim=32 * heads,
        caption_channels=TEXT_WIDTH,
        sample_size=LATENT_SIZE,
        patch_size=2,
        use_additional_conditions=False,
    )
    torch.nn.init.zeros_(transformer.proj_out.weight)
    return transformer


def trainable(transformer: PixArtTransformer2DModel) -> nn.Module:
    """The same transformer, its attention computed in plain products."""
    # The backward pass of the fused attention is several times slower than plain products on a CPU.
    transformer.set_attn_processor(AttnProcessor())
    return cast(nn.Module, transformer)


def velocity(scheduler: Any, clean: Tensor, times: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, the velocity a n - s x, and the times, for clean latents x, noise n and levels a^2 + s^2 = 1."""
    noise = torch.randn(clean.shape, generator=generator)
    signal = scheduler.alphas_cumprod[times].view(-1, *(1,) * (clean.ndim - 1))
    a, s = signal.sqrt(), (1 - signal).sqrt()
    return a * clean + s * noise, a * noise - s * clean, times
