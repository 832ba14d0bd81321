"""Parts that the tiny video and audio pipelines share: results, embedded prompts and autoencoders of videos."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
)
from torch import nn

from pipelines.parts_images import seeded

VIDEO_HEIGHT, VIDEO_WIDTH = 16, 32
"""Smallest frames of pipelines whose autoencoder shrinks by eight and whose denoiser makes patches of two by two."""


def frames_of(result: Any) -> torch.Tensor:
    """The latents or frames of a video pipeline's result."""
    frames = result.frames
    return frames.float() if isinstance(frames, torch.Tensor) else torch.from_numpy(frames).float()


def audios_of(result: Any) -> torch.Tensor:
    """The latents or waveforms of an audio pipeline's result."""
    audios = result.audios
    return audios.float() if isinstance(audios, torch.Tensor) else torch.from_numpy(audios).float()


def embedded_prompts(batch: int, tokens: int, width: int) -> dict[str, torch.Tensor]:
    """Noise in place of encoded prompts, another in every row, and the negative ones.

    For pipelines which clean every prompt by the ftfy package without asking whether it is installed.
    """
    generator = torch.Generator().manual_seed(11)
    # Row by row, so that the first row does not depend on the size of the batch.
    negative = torch.randn(1, tokens, width, generator=generator)
    rows = [torch.randn(1, tokens, width, generator=generator) for _ in range(batch)]
    return {"prompt_embeds": torch.cat(rows), "negative_prompt_embeds": negative.repeat(batch, 1, 1)}


def clip_vision(width: int, projected: int = 0) -> nn.Module:
    """A CLIP encoder of pictures of 16 pixels, five tokens; with `projected` the class that projects its pooled output.

    Two layers, since Wan takes the hidden states before the last one.
    """
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=projected or width,
    )
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    return seeded(lambda: kind(config), 6)


def clip_pictures() -> Any:
    """What prepares the pictures of `clip_vision`."""
    return transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def vae_wan(latent_channels: int = 4) -> nn.Module:
    """The autoencoder of Wan: a factor of eight in space and four in time."""
    return seeded(
        lambda: AutoencoderKLWan(
            base_dim=8,
            z_dim=latent_channels,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * latent_channels,
            latents_std=[1.0] * latent_channels,
        ),
        1,
    )


def vae_ltx(latent_channels: int) -> nn.Module:
    """The autoencoder of LTX: a factor of 32 in space and eight in time."""
    levels = 4
    return seeded(
        lambda: AutoencoderKLLTXVideo(
            latent_channels=latent_channels,
            block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            layers_per_block=(1,) * (levels + 1),
            decoder_layers_per_block=(1,) * (levels + 1),
        ),
        1,
    )


def vae_hunyuan(latent_channels: int = 4) -> nn.Module:
    """The autoencoder of HunyuanVideo: a factor of eight in space and four in time."""
    return seeded(
        lambda: AutoencoderKLHunyuanVideo(
            latent_channels=latent_channels, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4
        ),
        1,
    )


def vae_cogvideox(latent_channels: int = 4) -> nn.Module:
    """The autoencoder of CogVideoX with two levels: a factor of two in space, of four in time."""
    return seeded(
        lambda: AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=latent_channels,
            layers_per_block=1,
            norm_num_groups=4,
            sample_height=8,
            sample_width=16,
        ),
        1,
    )


def vae_mochi(latent_channels: int = 4) -> nn.Module:
    """The autoencoder of Mochi, whose factors (eight in space, six in time) and groups of 32 are fixed."""
    return seeded(
        lambda: AutoencoderKLMochi(
            encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4,
            latent_channels=latent_channels,
            layers_per_block=(1,) * 5,
            # The pipeline believes in twelve channels where these are given.
            latents_mean=None,
            latents_std=None,
        ),
        1,
    )


def vae_allegro(latent_channels: int = 4) -> nn.Module:
    """The autoencoder of Allegro with two levels: a factor of two in space, of four in time."""
    return seeded(
        lambda: AutoencoderKLAllegro(
            down_block_types=("AllegroDownBlock3D",) * 2,
            up_block_types=("AllegroUpBlock3D",) * 2,
            block_out_channels=(8, 8),
            temporal_downsample_blocks=(True, True),
            temporal_upsample_blocks=(True, True),
            latent_channels=latent_channels,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=16,
        ),
        1,
    )


def vae_temporal_decoder(latent_channels: int = 4) -> nn.Module:
    """The autoencoder of Stable Video Diffusion with two levels: a factor of two; its groups of 32 are fixed."""
    return seeded(
        lambda: AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            layers_per_block=1,
            latent_channels=latent_channels,
            sample_size=16,
        ),
        1,
    )
