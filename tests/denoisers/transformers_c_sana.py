"""Tiny instances of Sana for images, videos and worlds with the inputs of one forward call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import transformers
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache
from torch import nn

from denoisers.stirring import stirred
from denoisers.tiny_class import TinyClass


def build_sana(sprint: bool = False) -> nn.Module:
    """The layout of Sana; with sprint that of Sana-Sprint, which embeds the guidance scale."""
    return stirred(
        transformers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=10,
            mlp_ratio=2.5,
            sample_size=4,
            patch_size=1,
            guidance_embeds=sprint,
            qk_norm="rms_norm_across_heads" if sprint else None,
        )
    )


def inputs_sana() -> dict[str, Any]:
    """Twelve image tokens; the first row's text is padded."""
    return {
        "hidden_states": torch.randn(2, 4, 3, 4),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "timestep": torch.tensor(617.5).expand(2),
        "return_dict": False,
    }


def inputs_sana_sprint() -> dict[str, Any]:
    """As Sana, with a timestep from 0 to 1 and the guidance scale times 0.1."""
    return {**inputs_sana(), "timestep": torch.tensor(0.71).expand(2), "guidance": torch.full((2,), 0.45)}


def build_sana_video() -> nn.Module:
    """The layout of Sana-Video: linear attention over all frames, convolutions over space and time."""
    return stirred(
        transformers.SanaVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=3,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=10,
            mlp_ratio=2.0,
            sample_size=4,
            patch_size=(1, 2, 2),
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )
    )


def inputs_sana_video() -> dict[str, Any]:
    """Three frames; the first row's text is padded."""
    return {
        "hidden_states": torch.randn(2, 4, 3, 4, 4),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "timestep": torch.tensor(617.5).expand(2),
        "return_dict": False,
    }


def build_sana_wm() -> nn.Module:
    """The layout of Sana-WM: gated linear attention with a camera branch, every second block with softmax instead."""
    return stirred(
        transformers.SanaWMTransformer3DModel(
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
    )


def inputs_sana_wm() -> dict[str, Any]:
    """Three frames, of which the first is given (timestep 0), and a camera that moves to the right."""
    camera = torch.zeros(2, 3, 20)
    camera[..., :16] = torch.eye(4).flatten()
    # The fourth number of the pose's first row is the position to the right.
    camera[..., 3] = torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.2, 0.4]])
    camera[..., 16:] = torch.tensor([4.0, 4.0, 2.0, 1.5])
    return {
        "hidden_states": torch.randn(2, 4, 3, 3, 4),
        "timestep": torch.tensor([[[0.0, 617.0, 617.0]], [[0.0, 617.0, 617.0]]]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "data_info": {"img_hw": torch.tensor([[96.0, 128.0]])},
        "camera_conditions": camera,
        "chunk_plucker": torch.randn(2, 6, 3, 3, 4),
        "return_dict": False,
    }


def build_sana_wm_refiner() -> nn.Module:
    """The refiner of Sana-WM: an LTX-2 video model whose audio half is built but never runs."""
    return stirred(
        transformers.SanaWMLTX2RefinerTransformer3DModel(
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
    )


def inputs_sana_wm_refiner() -> dict[str, Any]:
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
    return {
        "hidden_states": torch.randn(2, 12, 6),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.full((2, 12), 617.5),
        "video_rotary_emb": (angles.cos(), angles.sin()),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "SanaTransformer2DModel": TinyClass(build_sana, inputs_sana),
    "SanaTransformer2DModel-sprint": TinyClass(lambda: build_sana(sprint=True), inputs_sana_sprint),
    "SanaVideoTransformer3DModel": TinyClass(build_sana_video, inputs_sana_video),
    "SanaWMTransformer3DModel": TinyClass(build_sana_wm, inputs_sana_wm),
    "SanaWMLTX2RefinerTransformer3DModel": TinyClass(build_sana_wm_refiner, inputs_sana_wm_refiner),
}
