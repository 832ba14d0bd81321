"""Tiny instances of Stable Cascade, aMUSEd and the audio U-Net with the inputs of one forward call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import unets
from torch import nn

from denoisers.stirring import stirred
from denoisers.tiny_class import TinyClass


def build_unet_1d() -> nn.Module:
    """The layout of Dance Diffusion; its attention has one head per 32 channels, so 64 channels give two heads."""
    return stirred(
        unets.UNet1DModel(
            sample_size=64,
            in_channels=2,
            out_channels=2,
            # The first block takes the embedded timestep as further channels of the sample.
            extra_in_channels=16,
            time_embedding_type="fourier",
            time_embedding_dim=16,
            flip_sin_to_cos=True,
            down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
            mid_block_type="UNetMidBlock1D",
            up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
            block_out_channels=(32, 32, 64),
        )
    )


def inputs_unet_1d() -> dict[str, Any]:
    """A stereo waveform and a timestep that the scheduler counts from 1 to 0."""
    return {"sample": torch.randn(2, 2, 64), "timestep": torch.tensor(0.61), "return_dict": False}


def build_stable_cascade_prior() -> nn.Module:
    """The prior of Stable Cascade: two levels of the same resolution, attention everywhere."""
    layer = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    return stirred(
        unets.StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            patch_size=1,
            conditioning_dim=20,
            block_out_channels=(16, 16),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(2, 3),
            up_num_layers_per_block=(3, 2),
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(1, 1),
            block_types_per_layer=(layer, layer),
            clip_text_in_channels=12,
            clip_text_pooled_in_channels=10,
            clip_image_in_channels=14,
            clip_seq=2,
            timestep_conditioning_type=("sca", "crp"),
            switch_level=(False,),
        )
    )


def inputs_stable_cascade_prior() -> dict[str, Any]:
    """An image embedding to denoise; the timestep is a ratio from 1 to 0, one per row."""
    return {
        "sample": torch.randn(2, 4, 4, 4),
        "timestep_ratio": torch.full((2,), 0.61),
        "clip_text_pooled": torch.randn(2, 1, 10),
        "clip_text": torch.randn(2, 7, 12),
        "clip_img": torch.randn(2, 1, 14),
        "return_dict": False,
    }


def build_stable_cascade_decoder() -> nn.Module:
    """The decoder of Stable Cascade: shallow levels without attention, and up blocks that run more than once."""
    plain = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return stirred(
        unets.StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            patch_size=2,
            conditioning_dim=20,
            block_out_channels=(8, 16, 16),
            num_attention_heads=(0, 2, 2),
            down_num_layers_per_block=(2, 3, 2),
            up_num_layers_per_block=(2, 3, 2),
            down_blocks_repeat_mappers=(1, 1, 1),
            up_blocks_repeat_mappers=(3, 2, 2),
            block_types_per_layer=(plain, (*plain, "SDCascadeAttnBlock"), (*plain, "SDCascadeAttnBlock")),
            clip_text_pooled_in_channels=10,
            clip_seq=4,
            dropout=(0.0, 0.0, 0.1),
            effnet_in_channels=6,
            pixel_mapper_in_channels=3,
            timestep_conditioning_type=("sca",),
        )
    )


def inputs_stable_cascade_decoder() -> dict[str, Any]:
    """Latents to denoise under the prior's image embedding."""
    return {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep_ratio": torch.full((2,), 0.61),
        "clip_text_pooled": torch.randn(2, 1, 10),
        "effnet": torch.randn(2, 6, 3, 3),
        "return_dict": False,
    }


def build_uvit_2d() -> nn.Module:
    """The layout of aMUSEd at 512 pixels: one block that halves the tokens, a transformer, one that doubles them."""
    return stirred(
        unets.UVit2DModel(
            hidden_size=16,
            cond_embed_dim=10,
            micro_cond_encode_dim=4,
            # Sizes, crop and aesthetic score, embedded.
            micro_cond_embed_dim=5 * 4,
            encoder_hidden_size=12,
            vocab_size=40,
            codebook_size=32,
            in_channels=8,
            block_out_channels=24,
            num_res_blocks=2,
            downsample=True,
            upsample=True,
            block_num_heads=2,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=20,
            sample_size=4,
        )
    )


def inputs_uvit_2d() -> dict[str, Any]:
    """Token ids of a partly masked image (39 stands for the mask); the class takes no timestep."""
    ids = torch.randint(0, 32, (2, 4, 6))
    return {
        "input_ids": torch.where(torch.rand(2, 4, 6) < 0.5, torch.full_like(ids, 39), ids),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "pooled_text_emb": torch.randn(2, 10),
        "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0], [64.0, 64.0, 0.0, 0.0, 5.0]]),
    }


CLASSES: dict[str, TinyClass] = {
    "UNet1DModel": TinyClass(build_unet_1d, inputs_unet_1d),
    "StableCascadeUNet": TinyClass(build_stable_cascade_prior, inputs_stable_cascade_prior),
    "StableCascadeUNet-decoder": TinyClass(build_stable_cascade_decoder, inputs_stable_cascade_decoder),
    "UVit2DModel": TinyClass(build_uvit_2d, inputs_uvit_2d),
}
