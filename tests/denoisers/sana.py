"""Sana for images, videos and worlds."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache
from torch import nn

from denoisers.inputs import both_rows, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "num_layers": 3,
    "num_cross_attention_heads": 2,
    "caption_channels": 10,
    "sample_size": 4,
}
"""What Sana and Sana-Video share."""


def sana(sprint: bool = False) -> nn.Module:
    """The layout of Sana; with sprint that of Sana-Sprint, which embeds the guidance scale."""
    return diffusers.SanaTransformer2DModel(
        **SIZES,
        guidance_embeds=sprint,
        qk_norm="rms_norm_across_heads" if sprint else None,
        attention_head_dim=8,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        mlp_ratio=2.5,
        patch_size=1,
    )


def sana_inputs() -> dict[str, Any]:
    """Twelve image tokens; the first row's text is padded."""
    return latents_and_text(latents=(4, 3, 4), text=(7, 10), timestep=617.5) | {
        "encoder_attention_mask": padding_mask(3, 7),
        "return_dict": False,
    }


def sana_sprint() -> nn.Module:
    return sana(sprint=True)


def sana_sprint_inputs() -> dict[str, Any]:
    """As Sana, with a timestep from 0 to 1 and the guidance scale times 0.1."""
    return sana_inputs() | {"timestep": both_rows(0.71), "guidance": both_rows(0.45)}


def sana_video() -> nn.Module:
    """The layout of Sana-Video: linear attention over all frames, convolutions over space and time."""
    return diffusers.SanaVideoTransformer3DModel(
        **SIZES,
        qk_norm="rms_norm_across_heads",
        attention_head_dim=12,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        mlp_ratio=2.0,
        patch_size=(1, 2, 2),
        rope_max_seq_len=32,
    )


def sana_video_inputs() -> dict[str, Any]:
    """Three frames; the first row's text is padded."""
    return latents_and_text(latents=(4, 3, 4, 4), text=(7, 10), timestep=617.5) | {
        "encoder_attention_mask": padding_mask(3, 7),
        "return_dict": False,
    }


def sana_wm() -> nn.Module:
    """The layout of Sana-WM: gated linear attention with a camera branch, every second block with softmax instead."""
    return diffusers.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        patch_size=(1, 1, 1),
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=6,
        chunk_plucker_post_attn_blocks=3,
        caption_channels=10,
        mlp_ratio=2.0,
    )


def sana_wm_inputs() -> dict[str, Any]:
    """Three frames, of which the first is given (timestep 0), and a camera that moves to the right."""
    times = torch.tensor([[[0.0, 617.0, 617.0]], [[0.0, 617.0, 617.0]]])
    camera = torch.zeros(2, 3, 20)
    camera[..., :16] = torch.eye(4).flatten()
    # The fourth number of the pose's first row is the position to the right.
    camera[..., 3] = torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.2, 0.4]])
    camera[..., 16:] = torch.tensor([4.0, 4.0, 2.0, 1.5])
    return latents_and_text(latents=(4, 3, 3, 4), text=(7, 10), timestep=times) | {
        "mask": padding_mask(3, 7),
        "data_info": {"img_hw": torch.tensor([[96.0, 128.0]])},
        "camera_conditions": camera,
        "chunk_plucker": torch.randn(2, 6, 3, 3, 4),
        "return_dict": False,
    }


def sana_wm_refiner() -> nn.Module:
    """The refiner of Sana-WM: an LTX-2 video model whose audio half is built but never runs."""
    return diffusers.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=6,
        out_channels=6,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=3,
        caption_channels=10,
    )


def sana_wm_refiner_inputs() -> dict[str, Any]:
    """Twelve tokens of one block of frames; cached keys and values of four sink and six earlier tokens."""
    cache = SanaWMRefinerKVCache(3)
    for layer in cache.layer_caches:
        layer.store_sink(torch.randn(2, 4, 24), torch.randn(2, 4, 24))
        layer.store_history(torch.randn(2, 6, 24), torch.randn(2, 6, 24))
    sink_angles, angles = (
        torch.randn(2, 4, 12).repeat_interleave(2, -1),
        torch.randn(2, 12, 12).repeat_interleave(2, -1),
    )
    cache.sink_pe = (sink_angles.cos(), sink_angles.sin())
    return latents_and_text(latents=(12, 6), text=(7, 10), timestep=torch.full((2, 12), 617.5)) | {
        "video_rotary_emb": (angles.cos(), angles.sin()),
        "encoder_attention_mask": padding_mask(3, 7),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "SanaTransformer2DModel": TinyClass(sana, sana_inputs),
    "SanaTransformer2DModel-sprint": TinyClass(sana_sprint, sana_sprint_inputs),
    "SanaVideoTransformer3DModel": TinyClass(sana_video, sana_video_inputs),
    "SanaWMLTX2RefinerTransformer3DModel": TinyClass(sana_wm_refiner, sana_wm_refiner_inputs),
    "SanaWMTransformer3DModel": TinyClass(sana_wm, sana_wm_inputs),
}
