"""Lumina 2 and Lumina-Next, and Z-Image, which has refiners beside its layers as Lumina 2 has."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import nn

from denoisers.inputs import both_rows, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 16,
    "num_layers": 3,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 8,
}
"""What both Luminas share."""

LUMINA_TIME = 0.3
"""Lumina counts time upwards: 0 is noise and 1 the picture."""


def lumina2() -> nn.Module:
    return diffusers.Lumina2Transformer2DModel(
        **SIZES, num_refiner_layers=2, axes_dim_rope=(4, 2, 2), axes_lens=(30, 8, 8), cap_feat_dim=10
    )


def lumina2_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 6, 8), text=(7, 10), timestep=LUMINA_TIME) | {
        "encoder_attention_mask": padding_mask(7, 5),
    }


def lumina_next() -> nn.Module:
    model = diffusers.LuminaNextDiT2DModel(**SIZES, learn_sigma=True, cross_attention_dim=10)
    # The class leaves this parameter uninitialised (and does not use it).
    nn.init.normal_(model.pad_token, std=0.02)
    return model


def lumina_next_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 6, 8), text=(7, 10), timestep=LUMINA_TIME) | {
        "encoder_mask": padding_mask(7, 5),
        # The pipeline makes a table of the largest size for the width of one head; the model cuts out what it needs.
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 16, 16, linear_factor=1.0, ntk_factor=1.0),
        "cross_attention_kwargs": {"base_sequence_length": 16},
    }


def z_image(siglip: bool = False) -> nn.Module:
    """The layout of Z-Image; with siglip that of its omni model, which also takes condition images."""
    return diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=24,
        n_layers=3,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=10,
        siglip_feat_dim=14 if siglip else None,
        axes_dims=[4, 4, 4],
        axes_lens=[128, 16, 16],
    )


def z_image_inputs() -> dict[str, Any]:
    """Lists instead of batches; the class pads both streams to multiples of 32, the text to 64 and 32 tokens."""
    return {
        "x": [torch.randn(4, 1, 6, 8), torch.randn(4, 1, 6, 8)],
        "t": both_rows(0.383),
        "cap_feats": [torch.randn(35, 10), torch.randn(7, 10)],
        "return_dict": False,
    }


def z_image_omni() -> nn.Module:
    return z_image(siglip=True)


def z_image_omni_inputs() -> dict[str, Any]:
    """A condition image before the image to make, each with a piece of text before it."""
    return {
        "x": [[torch.randn(4, 1, 4, 4), torch.randn(4, 1, 6, 8)] for _ in range(2)],
        "t": both_rows(0.383),
        "cap_feats": [[torch.randn(5, 10), torch.randn(7, 10), torch.randn(3, 10)] for _ in range(2)],
        "siglip_feats": [[torch.randn(2, 3, 14), None] for _ in range(2)],
        "image_noise_mask": [[0, 1], [0, 1]],
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "Lumina2Transformer2DModel": TinyClass(lumina2, lumina2_inputs),
    "LuminaNextDiT2DModel": TinyClass(lumina_next, lumina_next_inputs),
    "ZImageTransformer2DModel": TinyClass(z_image, z_image_inputs),
    "ZImageTransformer2DModel-omni": TinyClass(z_image_omni, z_image_omni_inputs),
}
