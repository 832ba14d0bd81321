"""U-Nets for videos: those of ModelScope, I2VGen-XL, AnimateDiff and Stable Video Diffusion."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import sample_and_text
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}

BLOCKS_3D: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    # The number of heads, and for the first temporal transformer (always 8 heads) their width.
    "attention_head_dim": 2,
}


def i2vgen_xl() -> nn.Module:
    """The layout of I2VGen-XL."""
    return diffusers.I2VGenXLUNet(**SIZES, **BLOCKS_3D)


def i2vgen_xl_inputs() -> dict[str, Any]:
    """Three frames with the latents and the embedding of the first image and the frame rate."""
    return {
        "sample": torch.randn(2, 4, 3, 4, 4),
        "timestep": torch.tensor(501),
        "fps": torch.tensor([16, 8]),
        "image_latents": torch.randn(2, 4, 3, 4, 4),
        "image_embeddings": torch.randn(2, 1, 12),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "return_dict": False,
    }


def unet_3d_condition() -> nn.Module:
    """The layout of the text-to-video model of ModelScope."""
    return diffusers.UNet3DConditionModel(**SIZES, **BLOCKS_3D)


def unet_3d_condition_inputs() -> dict[str, Any]:
    """Three frames and both rows of classifier-free guidance."""
    return sample_and_text(sample=(4, 3, 4, 4), text=(7, 12), timestep=501) | {"return_dict": False}


def unet_motion() -> nn.Module:
    """The layout of AnimateDiff: Stable Diffusion with a motion module after every layer."""
    return diffusers.UNetMotionModel(
        **SIZES,
        down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=2,
        motion_max_seq_length=8,
        motion_num_attention_heads=2,
        use_motion_mid_block=True,
    )


def unet_motion_inputs() -> dict[str, Any]:
    """Three frames and both rows of classifier-free guidance; the pipeline repeats the text for every frame."""
    return {
        "sample": torch.randn(2, 4, 3, 4, 4),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(2, 7, 12).repeat_interleave(3, dim=0),
        "return_dict": False,
    }


def unet_spatio_temporal() -> nn.Module:
    """The layout of Stable Video Diffusion.

    The class fixes 32 normalisation groups; at a width of 32 they would remove what the timestep adds to a channel.
    """
    return diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=(
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types=(
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        block_out_channels=(32, 64, 64),
        addition_time_embed_dim=4,
        # Frame rate, motion and noise strength, embedded.
        projection_class_embeddings_input_dim=3 * 4,
        layers_per_block=2,
        cross_attention_dim=12,
        num_attention_heads=(2, 2, 2),
        num_frames=3,
    )


def unet_spatio_temporal_inputs() -> dict[str, Any]:
    """Three frames, the image's latents in the last four channels, one image token; a continuous timestep."""
    return sample_and_text(sample=(3, 8, 4, 4), text=(1, 12), timestep=0.73) | {
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02], [7.0, 100.0, 0.02]]),
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "I2VGenXLUNet": TinyClass(i2vgen_xl, i2vgen_xl_inputs),
    "UNet3DConditionModel": TinyClass(unet_3d_condition, unet_3d_condition_inputs),
    "UNetMotionModel": TinyClass(unet_motion, unet_motion_inputs),
    "UNetSpatioTemporalConditionModel": TinyClass(unet_spatio_temporal, unet_spatio_temporal_inputs),
}
