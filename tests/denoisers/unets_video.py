"""Tiny instances of the U-Nets for videos with the inputs of one forward call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import unets
from torch import nn

from denoisers.stirring import stirred
from denoisers.tiny_class import TinyClass


def build_unet_3d_condition() -> nn.Module:
    """The layout of the text-to-video model of ModelScope."""
    return stirred(
        unets.UNet3DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=12,
            # The number of heads, and for the first temporal transformer (always 8 heads) their width.
            attention_head_dim=2,
        )
    )


def inputs_unet_3d_condition() -> dict[str, Any]:
    """Three frames and both rows of classifier-free guidance."""
    return {
        "sample": torch.randn(2, 4, 3, 4, 4),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "return_dict": False,
    }


def build_i2vgen_xl() -> nn.Module:
    """The layout of I2VGen-XL."""
    return stirred(
        unets.I2VGenXLUNet(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=12,
            # The number of heads, and for the first temporal transformer (always 8 heads) their width.
            attention_head_dim=2,
        )
    )


def inputs_i2vgen_xl() -> dict[str, Any]:
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


def build_unet_motion() -> nn.Module:
    """The layout of AnimateDiff: Stable Diffusion with a motion module after every layer."""
    return stirred(
        unets.UNetMotionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=12,
            num_attention_heads=2,
            motion_max_seq_length=8,
            motion_num_attention_heads=2,
            use_motion_mid_block=True,
        )
    )


def inputs_unet_motion() -> dict[str, Any]:
    """Three frames and both rows of classifier-free guidance; the pipeline repeats the text for every frame."""
    return {
        "sample": torch.randn(2, 4, 3, 4, 4),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(2, 7, 12).repeat_interleave(3, dim=0),
        "return_dict": False,
    }


def build_unet_spatio_temporal() -> nn.Module:
    """The layout of Stable Video Diffusion.

    The class fixes 32 normalisation groups; at a width of 32 they would remove what the timestep adds to a channel.
    """
    return stirred(
        unets.UNetSpatioTemporalConditionModel(
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
    )


def inputs_unet_spatio_temporal() -> dict[str, Any]:
    """Three frames, the image's latents in the last four channels, one image token; a continuous timestep."""
    return {
        "sample": torch.randn(2, 3, 8, 4, 4),
        "timestep": torch.tensor(0.73),
        "encoder_hidden_states": torch.randn(2, 1, 12),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02], [7.0, 100.0, 0.02]]),
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "UNet3DConditionModel": TinyClass(build_unet_3d_condition, inputs_unet_3d_condition),
    "I2VGenXLUNet": TinyClass(build_i2vgen_xl, inputs_i2vgen_xl),
    "UNetMotionModel": TinyClass(build_unet_motion, inputs_unet_motion),
    "UNetSpatioTemporalConditionModel": TinyClass(build_unet_spatio_temporal, inputs_unet_spatio_temporal),
}
