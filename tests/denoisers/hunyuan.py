"""Hunyuan for images (DiT and Image) and for videos (Video, Video 1.5 and Framepack)."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import nn

from denoisers.inputs import both_rows, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 3,
    "num_refiner_layers": 2,
    "text_embed_dim": 10,
}
"""What all but HunyuanDiT share; the refiner works on the text."""

VIDEO_SIZES: dict[str, Any] = {
    **SIZES,
    "in_channels": 4,
    "num_single_layers": 2,
    "pooled_projection_dim": 12,
    "rope_axes_dim": (4, 2, 2),
}
"""Three double blocks, with streams of their own for video and text, then two single ones."""


def masks_and_second_text() -> dict[str, Any]:
    """The states of the smaller text encoder, and the masks of both."""
    return {
        "encoder_attention_mask": padding_mask(3, 5),
        "encoder_hidden_states_2": torch.randn(2, 4, 12),
        "encoder_attention_mask_2": padding_mask(2, 4),
    }


def hunyuan_dit(layers: int = 6, text: int = 3, second_text: int = 5) -> nn.Module:
    """HunyuanDiT; `text` and `second_text` are the tokens of its two text encoders."""
    # An even depth, because the second half takes what the first half left: an odd one runs out of skips.
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=layers,
        cross_attention_dim=10,
        cross_attention_dim_t5=8,
        pooled_projection_dim=12,
        text_len=text,
        text_len_t5=second_text,
    )


def hunyuan_dit_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 4, 6), text=(3, 10), timestep=701.0) | {
        "text_embedding_mask": padding_mask(2, 3),
        "encoder_hidden_states_t5": torch.randn(2, 5, 8),
        "text_embedding_mask_t5": padding_mask(3, 5),
        "image_meta_size": torch.tensor([[32.0, 48.0, 32.0, 48.0, 0.0, 0.0]] * 2),
        "style": torch.tensor([0, 0]),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, ((0, 0), (2, 3)), (2, 3), output_type="pt"),
    }


def hunyuan_image() -> nn.Module:
    return diffusers.HunyuanImageTransformer2DModel(
        **SIZES,
        in_channels=4,
        num_single_layers=2,
        patch_size=(1, 1),
        guidance_embeds=True,
        text_embed_2_dim=12,
        rope_axes_dim=(4, 4),
        use_meanflow=True,
    )


def hunyuan_image_inputs() -> dict[str, Any]:
    # As of the distilled checkpoints, which take the next timestep and the guidance too.
    return latents_and_text(latents=(4, 2, 3), text=(5, 10), timestep=701.0) | {
        "timestep_r": both_rows(501.0),
        "guidance": both_rows(3250.0),
        **masks_and_second_text(),
    }


def hunyuan_video15() -> nn.Module:
    # in_channels: latents, latents of the first frame, and one channel that says which frames are given.
    return diffusers.HunyuanVideo15Transformer3DModel(
        **SIZES, in_channels=9, text_embed_2_dim=12, image_embed_dim=14, rope_axes_dim=(4, 2, 2)
    )


def hunyuan_video15_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 9, 2, 2, 3),
        "image_embeds": torch.randn(2, 4, 14),
        "timestep": both_rows(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        **masks_and_second_text(),
    }


def framepack() -> nn.Module:
    return diffusers.HunyuanVideoFramepackTransformer3DModel(
        **VIDEO_SIZES, has_image_proj=True, image_proj_dim=14, has_clean_x_embedder=True
    )


def framepack_inputs() -> dict[str, Any]:
    # Frames already made condition the new ones, the older the coarser: 2 clean frames, 2 at half and 4 at a quarter.
    # Places in time have no batch axis.
    return hunyuan_video_inputs() | {
        "image_embeds": torch.randn(2, 3, 14),
        "indices_latents": torch.arange(8, 10),
        "latents_clean": torch.randn(2, 4, 2, 4, 6),
        "indices_latents_clean": torch.arange(6, 8),
        "latents_history_2x": torch.randn(2, 4, 2, 4, 6),
        "indices_latents_history_2x": torch.arange(4, 6),
        "latents_history_4x": torch.randn(2, 4, 4, 4, 6),
        "indices_latents_history_4x": torch.arange(0, 4),
    }


def hunyuan_video() -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(**VIDEO_SIZES)


def hunyuan_video_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 2, 4, 6), text=(5, 10), timestep=701.0) | {
        "encoder_attention_mask": padding_mask(3, 5),
        "pooled_projections": torch.randn(2, 12),
        "guidance": both_rows(6000.0),
    }


CLASSES: dict[str, TinyClass] = {
    "HunyuanDiT2DModel": TinyClass(hunyuan_dit, hunyuan_dit_inputs),
    "HunyuanImageTransformer2DModel": TinyClass(hunyuan_image, hunyuan_image_inputs),
    "HunyuanVideo15Transformer3DModel": TinyClass(hunyuan_video15, hunyuan_video15_inputs),
    "HunyuanVideoFramepackTransformer3DModel": TinyClass(framepack, framepack_inputs),
    "HunyuanVideoTransformer3DModel": TinyClass(hunyuan_video, hunyuan_video_inputs),
}
