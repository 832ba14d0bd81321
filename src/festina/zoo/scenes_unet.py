"""`scenes-unet`: a U-Net of Stable Diffusion's kind, trained to predict the noise (arXiv 2006.11239, 2112.10752)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from festina.zoo.components import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    TEXT_WIDTH,
    build_clip_text_encoder,
    build_clip_tokenizer,
)
from festina.zoo.family import Conditions, Family, TrainSettings

_LEAST_SIGNAL = 0.01
"""Share of the signal in the power of a noisy picture below which weights of errors grow no more."""


class ScenesUNet(Family):
    """Three levels of 16, 8 and 4 pixels, the lower two with attention; guidance in one batched call."""

    name = "scenes-unet"
    settings = TrainSettings(text_steps=700, denoiser_steps=9_800)

    def __init__(self) -> None:
        self.clip = build_clip_tokenizer()
        # Unlike Stable Diffusion's own, this schedule ends in pure noise, so that backgrounds keep their brightness.
        self.scheduler = DDIMScheduler(
            beta_start=0.0001,
            beta_end=0.02,
            beta_schedule="linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )

    def denoiser(self) -> nn.Module:
        unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 96),
            layers_per_block=2,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
        )
        # The backward pass of the fused attention is several times slower than plain products on a CPU.
        unet.set_attn_processor(AttnProcessor())
        return cast(nn.Module, unet.to(memory_format=torch.channels_last))

    def text_encoders(self) -> nn.ModuleDict:
        return nn.ModuleDict({"clip": build_clip_text_encoder(self.clip)})

    def read(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = self.conditions(encoders, captions)["encoder_hidden_states"]
        # CLIP reads forwards: only from the end of the caption on does a token know all of it.
        after = (self._ids(captions) == self.clip.eos_token_id).to(tokens.device)
        return tokens[after], after.nonzero()[:, 0]

    def conditions(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> Conditions:
        ids = self._ids(captions).to(next(encoders.parameters()).device)
        return {"encoder_hidden_states": encoders["clip"](ids)[0]}

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(len(self.scheduler.alphas_cumprod), (len(clean),), generator=generator)
        return self.scheduler.add_noise(clean, noise, times), noise, times

    def weights(self, times: Tensor) -> Tensor:
        """As if the error of the velocity (arXiv 2202.00512, appendix D) were counted, which is that of the noise
        divided by the signal's share of the power. What the scene is gets decided where little of it is seen; there
        noise is easy to predict, so that its plain error hardly asks for it."""
        signal: Tensor = self.scheduler.alphas_cumprod[times]
        return 1 / signal.clamp(min=_LEAST_SIGNAL)

    def predict(self, denoiser: Callable[..., Any], noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted: Tensor = denoiser(noisy, times, **conditions, return_dict=False)[0]
        return predicted

    def pipeline(self, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=encoders["clip"],
            tokenizer=self.clip,
            unet=cast(Any, denoiser).to(memory_format=torch.contiguous_format),
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _ids(self, captions: Sequence[str]) -> Tensor:
        length = self.clip.model_max_length
        ids: Tensor = self.clip(list(captions), padding="max_length", max_length=length, return_tensors="pt").input_ids
        return ids
