"""`scenes-flux`: a FLUX transformer with double and single blocks, trained by flow matching (arXiv 2210.02747)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from festina.zoo.components import (
    CAPTION_TOKENS,
    LATENT_CHANNELS,
    TEXT_WIDTH,
    build_clip_text_encoder,
    build_clip_tokenizer,
    build_text_encoder,
    build_tokenizer,
)
from festina.zoo.family import Conditions, Family, TrainSettings


class ScenesFlux(Family):
    """Three double and six single blocks, 160 wide, on 64 image and 20 text tokens; guidance by a second call."""

    name = "scenes-flux"
    settings = TrainSettings(denoiser_steps=5_500)
    # The class draws 512 x 512 with this autoencoder, and guides by a second call only where there is something to
    # guide away from.
    call: Mapping[str, Any] = MappingProxyType({"height": 64, "width": 64, "negative_prompt": ""})

    def __init__(self) -> None:
        self.t5, self.clip = build_tokenizer(), build_clip_tokenizer()

    def denoiser(self) -> nn.Module:
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENT_CHANNELS,
            num_layers=3,
            num_single_layers=6,
            attention_head_dim=32,
            num_attention_heads=5,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            axes_dims_rope=(8, 12, 12),
            guidance_embeds=False,
        )
        nn.init.zeros_(transformer.proj_out.weight)
        # The backward pass of the fused attention is several times slower than plain products on a CPU.
        transformer.set_attention_backend("_native_math")
        return cast(nn.Module, transformer)

    def text_encoders(self) -> nn.ModuleDict:
        return nn.ModuleDict({"t5": build_text_encoder(len(self.t5)), "clip": build_clip_text_encoder(self.clip)})

    def read(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        told = self.conditions(encoders, captions)
        tokens, pooled = told["encoder_hidden_states"], told["pooled_projections"]
        owner = torch.arange(len(captions), device=tokens.device)
        return torch.cat([tokens.flatten(0, 1), pooled]), torch.cat([owner.repeat_interleave(tokens.shape[1]), owner])

    def conditions(self, encoders: nn.ModuleDict, captions: Sequence[str]) -> Conditions:
        asked = {"padding": "max_length", "max_length": CAPTION_TOKENS, "return_tensors": "pt"}
        device = next(encoders.parameters()).device
        # No mask, as in the stock pipeline: padding is read like any token.
        tokens = encoders["t5"](self.t5(list(captions), **asked).input_ids.to(device))[0]
        pooled = encoders["clip"](self.clip(list(captions), **asked).input_ids.to(device)).pooler_output
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    def corrupt(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.rand(len(clean), generator=generator)
        share = times.view(-1, 1, 1, 1)
        return (1 - share) * clean + share * noise, noise - clean, times

    def predict(self, denoiser: Callable[..., Any], noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        batch, channels, height, width = noisy.shape
        tokens = FluxPipeline._pack_latents(noisy, batch, channels, height, width)
        predicted = denoiser(
            hidden_states=tokens,
            timestep=times,
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, noisy.dtype),
            txt_ids=torch.zeros(CAPTION_TOKENS, 3, device=noisy.device),
            return_dict=False,
            **conditions,
        )[0]
        squares = predicted.view(batch, height // 2, width // 2, channels, 2, 2)
        return cast(Tensor, squares.permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape))

    def pipeline(self, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module) -> FluxPipeline:
        vae.register_to_config(shift_factor=0.0)
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae,
            text_encoder=encoders["clip"],
            tokenizer=self.clip,
            text_encoder_2=encoders["t5"],
            tokenizer_2=self.t5,
            transformer=denoiser,
        )
