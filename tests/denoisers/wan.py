"""Wan 2.1 and 2.2, from text and from an image, and its classes with control: VACE, Animate and Animate 2."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask

from denoisers.inputs import both_rows, latents_and_text
from denoisers.tiny_class import TinyClass

# What the Wan family shares: twelve channels per head give the rotary embedding four for time, height and width each.
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 10,
    "freq_dim": 16,
    "ffn_dim": 32,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}

# With an image the attention takes the last 512 tokens for text, whatever there is, so these fixtures give 512.
WAN_TEXT_TOKENS = 512


def wan() -> nn.Module:
    """The layout of Wan 2.1 text-to-video."""
    return diffusers.WanTransformer3DModel(**WAN, in_channels=4, out_channels=4, num_layers=3)


def wan_inputs() -> dict[str, Any]:
    """Three frames of four tokens each."""
    return latents_and_text(latents=(4, 3, 4, 4), text=(7, 10), timestep=617) | {"return_dict": False}


def wan_token_times_inputs() -> dict[str, Any]:
    """As Wan 2.2 5B image-to-video calls it: a timestep for every token, 0 for those of the given first frame."""
    times = torch.full((2, 12), 617.0)
    times[:, :4] = 0.0
    return wan_inputs() | {"timestep": times}


def wan_image() -> nn.Module:
    """The layout of Wan 2.1 image-to-video: mask and condition latents as channels, image tokens beside the text."""
    return diffusers.WanTransformer3DModel(
        **WAN, in_channels=12, out_channels=4, num_layers=3, image_dim=14, added_kv_proj_dim=24
    )


def wan_image_inputs() -> dict[str, Any]:
    """Three frames with five image tokens."""
    return latents_and_text(latents=(12, 3, 4, 4), text=(WAN_TEXT_TOKENS, 10), timestep=617) | {
        "encoder_hidden_states_image": torch.randn(2, 5, 14),
        "return_dict": False,
    }


def wan_animate() -> nn.Module:
    """The layout of Wan Animate: after every second block the tokens of each frame attend to the face's motion."""
    return diffusers.WanAnimateTransformer3DModel(
        **WAN,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        num_layers=4,
        image_dim=14,
        added_kv_proj_dim=24,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=6,
        motion_encoder_dim=10,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
        motion_encoder_batch_size=4,
    )


def wan_animate_inputs() -> dict[str, Any]:
    """A reference frame and two more, the pose of these two, and the five face images they come from."""
    return wan_image_inputs() | {
        "pose_hidden_states": torch.randn(2, 4, 2, 4, 4),
        "face_pixel_values": torch.rand(2, 3, 5, 16, 16) * 2 - 1,
        "motion_encode_batch_size": None,
    }


def wan_animate_2_mask(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Which keys a query sees: three frames of six tokens, then from 128 on a reference of two frames.

    Every token sees all of the sequence, and of the reference the frame before its own.
    """
    frame, reference = query // 6, key - 128
    return (query < 18) & ((key < 18) | ((reference >= 0) & (reference < 12) & (reference // 6 + 1 == frame)))


def wan_animate_2() -> nn.Module:
    """The layout of Wan Animate 2; the width of its image embedding (1280) is fixed by the class.

    The class compiles its attention mask at the first call, which takes half a minute. The same mask not compiled is
    put where the class keeps it for two reference frames of six tokens.
    """
    model = diffusers.WanAnimate2Transformer3DModel(
        patch_size=(1, 2, 2),
        text_len=8,
        in_dim=12,
        dim=32,
        ffn_dim=40,
        freq_dim=16,
        text_dim=10,
        out_dim=4,
        num_heads=2,
        num_layers=3,
    )
    mask = create_block_mask(lambda row, head, query, key: wan_animate_2_mask(query, key), None, None, 128, 256, "cpu")
    model.block_masks[(2, 6)] = mask
    return model


def wan_animate_2_inputs() -> dict[str, Any]:
    """A denoising pass over three frames with the keys and values that the pass over the driving video left."""
    cache = WanAnimate2KVCache(3)
    for layer in cache.layer_caches:
        layer.store(torch.randn(2, 12, 2, 16), torch.randn(2, 12, 2, 16))
    return {
        "hidden_states": [torch.randn(4, 3, 4, 6) for _ in range(2)],
        "timestep": both_rows(617.0),
        "encoder_hidden_states": [torch.randn(7, 10), torch.randn(5, 10)],
        "condition_latents": [torch.randn(8, 3, 4, 6) for _ in range(2)],
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": 18,
        "encoder_hidden_states_image": torch.randn(2, 5, 1280),
        "reference_grid_sizes": torch.tensor([[2, 2, 3], [2, 2, 3]]),
        # Frames and pixels of the driving video; they stand for two latent frames of six tokens.
        "origin_len": 5,
        "origin_area": [32, 48],
        "is_uncondtion": False,
        "return_dict": False,
    }


def wan_vace() -> nn.Module:
    """The layout of Wan VACE: a second list of blocks for the control video feeds every second block of the first."""
    return diffusers.WanVACETransformer3DModel(
        **WAN, in_channels=4, out_channels=4, num_layers=4, vace_layers=[0, 2], vace_in_channels=10
    )


def wan_vace_inputs() -> dict[str, Any]:
    """Three frames and a control video of the same size."""
    return wan_inputs() | {
        "control_hidden_states": torch.randn(2, 10, 3, 4, 4),
        "control_hidden_states_scale": torch.tensor([1.0, 0.7]),
    }


CLASSES: dict[str, TinyClass] = {
    "WanAnimate2Transformer3DModel": TinyClass(wan_animate_2, wan_animate_2_inputs),
    "WanAnimateTransformer3DModel": TinyClass(wan_animate, wan_animate_inputs),
    "WanTransformer3DModel": TinyClass(wan, wan_inputs),
    "WanTransformer3DModel-image": TinyClass(wan_image, wan_image_inputs),
    "WanTransformer3DModel-token-times": TinyClass(wan, wan_token_times_inputs),
    "WanVACETransformer3DModel": TinyClass(wan_vace, wan_vace_inputs),
}
