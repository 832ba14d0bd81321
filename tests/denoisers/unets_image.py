"""Tiny instances of the U-Nets for images with the inputs of one forward call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import unets
from torch import nn

from denoisers.stirring import stirred
from denoisers.tiny_class import TinyClass


def build_unet_2d_condition() -> nn.Module:
    """The layout of Stable Diffusion 1.x: four levels, the deepest without attention."""
    return stirred(
        unets.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=12,
            # In this class the argument means the number of heads.
            attention_head_dim=2,
        )
    )


def inputs_unet_2d_condition() -> dict[str, Any]:
    """One call with both rows of classifier-free guidance."""
    return {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "return_dict": False,
    }


def build_unet_2d_condition_sdxl() -> nn.Module:
    """The layout of Stable Diffusion XL: three levels, more transformer layers the deeper the level."""
    return stirred(
        unets.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=12,
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(2, 2, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            # The pooled text embedding (10) and six embedded numbers: sizes and crop.
            projection_class_embeddings_input_dim=10 + 6 * 4,
        )
    )


def inputs_unet_2d_condition_sdxl() -> dict[str, Any]:
    """One call with both rows of classifier-free guidance, pooled text and sizes."""
    return {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(501.0),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 10),
            "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0], [64.0, 48.0, 8.0, 0.0, 64.0, 64.0]]),
        },
        "return_dict": False,
    }


def build_unet_2d() -> nn.Module:
    """The layout of DDPM: no text, attention at the middle level."""
    return stirred(
        unets.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            # In this class the argument means the width of a head.
            attention_head_dim=8,
            norm_num_groups=4,
        )
    )


def inputs_unet_2d() -> dict[str, Any]:
    """An image in pixels and an integer timestep."""
    return {"sample": torch.randn(2, 3, 8, 8), "timestep": torch.tensor(501), "return_dict": False}


def build_dreamlite() -> nn.Module:
    """The layout of DreamLite: no self-attention at the two shallow levels, one key/value head."""
    return stirred(
        unets.DreamLiteUNetModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=(
                "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
                "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
                "DreamLiteCrossAttnDownBlock2D",
            ),
            mid_block_type="DreamLiteUNetMidBlock2DCrossAttn",
            up_block_types=(
                "DreamLiteCrossAttnUpBlock2D",
                "DreamLiteCrossAttnNoSelfAttnUpBlock2D",
                "DreamLiteCrossAttnNoSelfAttnUpBlock2D",
            ),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=16,
            transformer_layers_per_block=(1, 2, 2),
            encoder_hid_dim=12,
            encoder_hid_dim_type="text_proj_rms",
            attention_head_dim=2,
            use_linear_projection=True,
            addition_embed_type="time",
            addition_time_embed_dim=4,
            # Width and height, embedded.
            projection_class_embeddings_input_dim=2 * 4,
            qk_norm="rms_norm",
            use_sep_conv=True,
            ff_mult=2,
            num_kv_heads=1,
        )
    )


def inputs_dreamlite() -> dict[str, Any]:
    """The noisy image left, the condition image right of it; the first row's text is padded."""
    return {
        "sample": torch.randn(2, 4, 4, 8),
        "timestep": torch.tensor(501.0).expand(2),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "added_cond_kwargs": {"time_ids": torch.tensor([[64.0, 48.0], [32.0, 64.0]])},
        "return_dict": False,
    }


def build_kandinsky3() -> nn.Module:
    """The layout of Kandinsky 3; the class fixes four levels, the first without attention."""
    return stirred(
        unets.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=16,
            groups=4,
            attention_head_dim=8,
            layers_per_block=2,
            block_out_channels=(16, 16, 16, 16),
            cross_attention_dim=24,
            encoder_hid_dim=12,
        )
    )


def inputs_kandinsky3() -> dict[str, Any]:
    """Both rows of classifier-free guidance; the first row's text is padded."""
    return {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "UNet2DConditionModel": TinyClass(build_unet_2d_condition, inputs_unet_2d_condition),
    "UNet2DConditionModel-sdxl": TinyClass(build_unet_2d_condition_sdxl, inputs_unet_2d_condition_sdxl),
    "UNet2DModel": TinyClass(build_unet_2d, inputs_unet_2d),
    "DreamLiteUNetModel": TinyClass(build_dreamlite, inputs_dreamlite),
    "Kandinsky3UNet": TinyClass(build_kandinsky3, inputs_kandinsky3),
}
