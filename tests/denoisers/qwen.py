"""Qwen-Image with its edit model, and Qwen-Image 2.1."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 6, 6),
}


def qwen_image(zero_cond_t: bool = False) -> nn.Module:
    """The layout of Qwen-Image; with zero_cond_t that of its edit model, which takes a condition image as clean."""
    return diffusers.QwenImageTransformer2DModel(
        **SIZES, patch_size=2, in_channels=16, out_channels=4, joint_attention_dim=10, zero_cond_t=zero_cond_t
    )


def qwen_image_inputs() -> dict[str, Any]:
    """Twelve packed image tokens; the second row's text is padded."""
    return latents_and_text(latents=(12, 16), text=(7, 10), timestep=0.617) | {
        "encoder_hidden_states_mask": padding_mask(7, 5),
        "img_shapes": [[(1, 3, 4)], [(1, 3, 4)]],
        "guidance": None,
        "return_dict": False,
    }


def qwen_image_edit() -> nn.Module:
    return qwen_image(zero_cond_t=True)


def qwen_image_edit_inputs() -> dict[str, Any]:
    """Twelve tokens of the image to make, then four of the condition image."""
    return qwen_image_inputs() | {
        "hidden_states": torch.randn(2, 16, 16),
        "img_shapes": [[(1, 3, 4), (1, 2, 2)], [(1, 3, 4), (1, 2, 2)]],
    }


def qwen_image_21() -> nn.Module:
    """The layout of Qwen-Image 2.1: one sequence of text, condition images and the image to make."""
    return diffusers.QwenImage21Transformer2DModel(
        **SIZES, patch_size=1, in_channels=6, out_channels=6, context_in_dim=10, mlp_ratio=2, causal_condition=True
    )


def qwen_image_21_inputs() -> dict[str, Any]:
    """One condition image (two places of the text, four tokens each) before the sixteen tokens of the image to make.

    Without the key/value cache that the pipeline may hand over; the second row's text is padded.
    """
    places = torch.tensor([False, False, True, True, False, False, False, False, False] + [True] * 4)
    return latents_and_text(latents=(8 + 16, 6), text=(9, 10), timestep=0.617) | {
        "img_shapes": [[(1, 2, 4), (1, 4, 4)], [(1, 2, 4), (1, 4, 4)]],
        "img_mask": places.expand(2, -1),
        "encoder_hidden_states_mask": padding_mask(9, 7),
        "kv_cache": None,
        "kv_cache_mode": None,
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "QwenImage21Transformer2DModel": TinyClass(qwen_image_21, qwen_image_21_inputs),
    "QwenImageTransformer2DModel": TinyClass(qwen_image, qwen_image_inputs),
    "QwenImageTransformer2DModel-edit": TinyClass(qwen_image_edit, qwen_image_edit_inputs),
}
