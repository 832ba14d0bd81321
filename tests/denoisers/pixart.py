"""PixArt and its kin: DiT, Latte, and Transformer2DModel of PixArt-alpha and of VQ-Diffusion."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import both_rows, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3}

ONE_MODULATION: dict[str, Any] = {
    **SIZES,
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 16,
    "caption_channels": 10,
    "attention_bias": True,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
"""As the checkpoints of PixArt-alpha and Latte are set: all blocks share what the timestep is made into."""


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        **SIZES, in_channels=4, out_channels=8, sample_size=6, num_embeds_ada_norm=10
    )


def dit_inputs() -> dict[str, Any]:
    # The class takes square images only; the last label is the one of the unconditional row.
    return {
        "hidden_states": torch.randn(2, 4, 6, 6),
        "timestep": both_rows(701),
        "class_labels": torch.tensor([3, 10]),
    }


def latte() -> nn.Module:
    return diffusers.LatteTransformer3DModel(**ONE_MODULATION, sample_size=4, video_length=3)


def latte_inputs() -> dict[str, Any]:
    # The pipeline cuts the padding off the prompt instead of giving a mask.
    return latents_and_text(latents=(4, 3, 4, 4), text=(7, 10), timestep=701) | {
        "enable_temporal_attentions": True,
    }


def pixart(sample_size: int = 8, sizes: bool = True) -> nn.Module:
    """PixArt; with the sizes of the picture as extra conditions as the checkpoints of 1024 pixels have them."""
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        # The embeddings of height, width and aspect ratio are a third of the width each.
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=24,
        sample_size=sample_size,
        patch_size=2,
        use_additional_conditions=sizes,
        caption_channels=10,
    )


def pixart_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 8, 8), text=(7, 10), timestep=701) | {
        "encoder_attention_mask": padding_mask(7, 5),
        "added_cond_kwargs": {
            "resolution": torch.tensor([[64.0, 64.0], [64.0, 64.0]]),
            "aspect_ratio": torch.tensor([[1.0], [1.0]]),
        },
    }


def transformer_2d_patches() -> nn.Module:
    """The layout of PixArt-alpha 512, whose checkpoints name this class."""
    return diffusers.Transformer2DModel(**ONE_MODULATION, sample_size=8)


def transformer_2d_patches_inputs() -> dict[str, Any]:
    """Twelve image tokens; the first row's text is padded."""
    return latents_and_text(latents=(4, 6, 8), text=(7, 10), timestep=617) | {
        "encoder_attention_mask": padding_mask(3, 7),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def transformer_2d_vectors() -> nn.Module:
    """The layout of VQ-Diffusion, which denoises the ids of image tokens."""
    return diffusers.Transformer2DModel(
        **SIZES,
        cross_attention_dim=10,
        attention_bias=True,
        sample_size=4,
        num_vector_embeds=33,
        activation_fn="geglu-approximate",
        num_embeds_ada_norm=100,
        norm_type="ada_norm",
    )


def transformer_2d_vectors_inputs() -> dict[str, Any]:
    """Sixteen token ids (32 stands for the mask) and an integer timestep under 100."""
    return {
        "hidden_states": torch.randint(0, 33, (2, 16)),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.tensor(61),
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "DiTTransformer2DModel": TinyClass(dit, dit_inputs),
    "LatteTransformer3DModel": TinyClass(latte, latte_inputs),
    "PixArtTransformer2DModel": TinyClass(pixart, pixart_inputs),
    "Transformer2DModel": TinyClass(transformer_2d_patches, transformer_2d_patches_inputs),
    "Transformer2DModel-vector": TinyClass(transformer_2d_vectors, transformer_2d_vectors_inputs),
}
