"""LTX-Video, and LTX-2 for video with sound."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed
from torch import nn

from denoisers.inputs import both_rows, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {
    "in_channels": 6,
    "out_channels": 6,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "num_layers": 3,
    "caption_channels": 10,
}


def ltx() -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(**SIZES)


def ltx_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(2 * 2 * 3, 6), text=(7, 10), timestep=701.0) | {
        "encoder_attention_mask": padding_mask(7, 5),
        "num_frames": 2,
        "height": 2,
        "width": 3,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def ltx2() -> nn.Module:
    """LTX-2 with the gates and the modulated prompt of its later versions."""
    return diffusers.LTX2VideoTransformer3DModel(
        **SIZES,
        gated_attn=True,
        cross_attn_mod=True,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        rope_type="split",
        audio_in_channels=5,
        audio_out_channels=5,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
    )


def ltx2_inputs() -> dict[str, Any]:
    # The model makes the same coordinates from the numbers of frames, rows and columns; pipelines make them beforehand.
    video_rope = LTX2AudioVideoRotaryPosEmbed(dim=16, modality="video", num_attention_heads=2)
    audio_rope = LTX2AudioVideoRotaryPosEmbed(dim=8, modality="audio", num_attention_heads=2, scale_factors=(4,))
    cpu = torch.device("cpu")
    return {
        "hidden_states": torch.randn(2, 2 * 2 * 3, 6),
        "audio_hidden_states": torch.randn(2, 5, 5),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "audio_encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": both_rows(701.0),
        "sigma": both_rows(701.0),
        "encoder_attention_mask": padding_mask(7, 5),
        "audio_encoder_attention_mask": padding_mask(7, 5),
        "num_frames": 2,
        "height": 2,
        "width": 3,
        "fps": 24.0,
        "audio_num_frames": 5,
        "video_coords": video_rope.prepare_video_coords(2, 2, 2, 3, cpu, fps=24.0),
        "audio_coords": audio_rope.prepare_audio_coords(2, 5, cpu),
        "use_cross_timestep": True,
    }


CLASSES: dict[str, TinyClass] = {
    "LTX2VideoTransformer3DModel": TinyClass(ltx2, ltx2_inputs),
    "LTXVideoTransformer3DModel": TinyClass(ltx, ltx_inputs),
}
