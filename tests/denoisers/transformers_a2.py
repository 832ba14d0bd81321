"""Tiny denoisers of the CogVideoX, CogView and Hunyuan classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    HunyuanDiT2DModel,
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_3d_rotary_pos_embed
from torch import nn

from denoisers.tiny_class import TinyClass
from denoisers.transformers_a import padded_mask, same_time, with_noise


def _cogvideox() -> nn.Module:
    return with_noise(
        CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=12,
            text_embed_dim=10,
            num_layers=3,
            sample_width=6,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=5,
            use_rotary_positional_embeddings=True,
        )
    )


def _cogvideox_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 2, 4, 4, 6),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "timestep": torch.tensor([701, 701]),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (2, 3)), grid_size=(2, 3), temporal_size=2),
    }


def _cogview3plus() -> nn.Module:
    return with_noise(
        CogView3PlusTransformer2DModel(
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=10,
            time_embed_dim=12,
            condition_dim=4,
            pos_embed_max_size=8,
        )
    )


def _cogview4() -> nn.Module:
    return with_noise(
        CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=10,
            time_embed_dim=12,
            condition_dim=4,
            rope_axes_dim=(8, 8),
        )
    )


def _cogview_inputs(timestep: torch.Tensor) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "timestep": timestep,
        "original_size": torch.tensor([[32.0, 48.0]] * 2),
        "target_size": torch.tensor([[32.0, 48.0]] * 2),
        "crop_coords": torch.zeros(2, 2),
    }


def _hunyuan_dit() -> nn.Module:
    # An even depth, because the second half takes what the first half left: an odd one runs out of skips.
    return with_noise(
        HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=16,
            num_layers=6,
            cross_attention_dim=10,
            cross_attention_dim_t5=8,
            pooled_projection_dim=12,
            text_len=3,
            text_len_t5=5,
        )
    )


def _hunyuan_dit_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 3, 10),
        "text_embedding_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "encoder_hidden_states_t5": torch.randn(2, 5, 8),
        "text_embedding_mask_t5": padded_mask(5),
        "image_meta_size": torch.tensor([[32.0, 48.0, 32.0, 48.0, 0.0, 0.0]] * 2),
        "style": torch.tensor([0, 0]),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, ((0, 0), (2, 3)), (2, 3), output_type="pt"),
    }


def _hunyuan_image() -> nn.Module:
    return with_noise(
        HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            num_single_layers=2,
            num_refiner_layers=2,
            patch_size=(1, 1),
            guidance_embeds=True,
            text_embed_dim=10,
            text_embed_2_dim=12,
            rope_axes_dim=(4, 4),
            use_meanflow=True,
        )
    )


def _hunyuan_image_inputs() -> dict[str, Any]:
    # As of the distilled checkpoints, which take the next timestep and the guidance too.
    return {
        "hidden_states": torch.randn(2, 4, 2, 3),
        "timestep": same_time(701.0),
        "timestep_r": same_time(501.0),
        "guidance": torch.full((2,), 3250.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "encoder_attention_mask": padded_mask(5),
        "encoder_hidden_states_2": torch.randn(2, 4, 12),
        "encoder_attention_mask_2": padded_mask(4),
    }


def _hunyuan_video() -> nn.Module:
    return with_noise(
        HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            num_single_layers=2,
            num_refiner_layers=2,
            text_embed_dim=10,
            pooled_projection_dim=12,
            rope_axes_dim=(4, 2, 2),
        )
    )


def _hunyuan_video_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "encoder_attention_mask": padded_mask(5),
        "pooled_projections": torch.randn(2, 12),
        "guidance": torch.full((2,), 6000.0),
    }


def _hunyuan_video15() -> nn.Module:
    # in_channels: latents, latents of the first frame, and one channel that says which frames are given.
    return with_noise(
        HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            num_refiner_layers=2,
            text_embed_dim=10,
            text_embed_2_dim=12,
            image_embed_dim=14,
            rope_axes_dim=(4, 2, 2),
        )
    )


def _hunyuan_video15_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 9, 2, 2, 3),
        "image_embeds": torch.randn(2, 4, 14),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "encoder_attention_mask": padded_mask(5),
        "encoder_hidden_states_2": torch.randn(2, 4, 12),
        "encoder_attention_mask_2": padded_mask(4),
    }


def _framepack() -> nn.Module:
    return with_noise(
        HunyuanVideoFramepackTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            num_single_layers=2,
            num_refiner_layers=2,
            text_embed_dim=10,
            pooled_projection_dim=12,
            rope_axes_dim=(4, 2, 2),
            has_image_proj=True,
            image_proj_dim=14,
            has_clean_x_embedder=True,
        )
    )


def _framepack_inputs() -> dict[str, Any]:
    # Frames already made condition the new ones, the older the coarser: 2 clean frames, 2 at half and 4 at a quarter.
    # Places in time have no batch axis.
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "encoder_attention_mask": padded_mask(5),
        "pooled_projections": torch.randn(2, 12),
        "image_embeds": torch.randn(2, 3, 14),
        "indices_latents": torch.arange(8, 10),
        "guidance": torch.full((2,), 6000.0),
        "latents_clean": torch.randn(2, 4, 2, 4, 6),
        "indices_latents_clean": torch.arange(6, 8),
        "latents_history_2x": torch.randn(2, 4, 2, 4, 6),
        "indices_latents_history_2x": torch.arange(4, 6),
        "latents_history_4x": torch.randn(2, 4, 4, 4, 6),
        "indices_latents_history_4x": torch.arange(0, 4),
    }


CLASSES: dict[str, TinyClass] = {
    "CogVideoXTransformer3DModel": TinyClass(_cogvideox, _cogvideox_inputs),
    "CogView3PlusTransformer2DModel": TinyClass(_cogview3plus, lambda: _cogview_inputs(torch.tensor([701, 701]))),
    "CogView4Transformer2DModel": TinyClass(_cogview4, lambda: _cogview_inputs(same_time(701.0))),
    "HunyuanDiT2DModel": TinyClass(_hunyuan_dit, _hunyuan_dit_inputs),
    "HunyuanImageTransformer2DModel": TinyClass(_hunyuan_image, _hunyuan_image_inputs),
    "HunyuanVideoTransformer3DModel": TinyClass(_hunyuan_video, _hunyuan_video_inputs),
    "HunyuanVideo15Transformer3DModel": TinyClass(_hunyuan_video15, _hunyuan_video15_inputs),
    "HunyuanVideoFramepackTransformer3DModel": TinyClass(_framepack, _framepack_inputs),
}

LEFT_OUT: dict[str, str] = {}
