"""Flux, and the classes that take its sizes and inputs: Bria, Chroma, LongCat-Image and Ovis-Image."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import both_rows, grid_ids, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

WIDTHS: dict[str, Any] = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 10}
"""Two heads of 8, and text of 10 numbers per token."""

THREE_AND_TWO: dict[str, Any] = {"in_channels": 4, "num_layers": 3, "num_single_layers": 2, **WIDTHS}
"""Three double blocks, with streams of their own for image and text, then two single ones."""


def packed_inputs(timestep: float) -> dict[str, Any]:
    """Six tokens of an image of two rows, five of text, and the places of all."""
    return latents_and_text(latents=(6, 4), text=(5, 10), timestep=timestep) | {
        "txt_ids": torch.zeros(5, 3),
        "img_ids": grid_ids(2, 3),
    }


def ids_of_four_axes(height: int, width: int, text: int) -> torch.Tensor:
    """Position ids (frame, row, column, text place) of Flux 2 and 3, all of one frame."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width), torch.arange(text))


def diagonal_ids(tokens: int) -> torch.Tensor:
    """Position ids of a prompt whose tokens lie on the diagonal of the picture's plane."""
    places = torch.arange(tokens, dtype=torch.float32)
    return torch.stack([torch.zeros(tokens), places, places], dim=1)


def bria() -> nn.Module:
    return diffusers.BriaTransformer2DModel(**THREE_AND_TWO, axes_dims_rope=[4, 2, 2])


def bria_inputs() -> dict[str, Any]:
    return packed_inputs(701.0)


def bria_fibo() -> nn.Module:
    return diffusers.BriaFiboTransformer2DModel(**THREE_AND_TWO, axes_dims_rope=[4, 2, 2], text_encoder_dim=12)


def bria_fibo_inputs() -> dict[str, Any]:
    # Each block, double or single, gets the hidden states of a layer of the text encoder of its own.
    # The mask, over text and image, says which keys may be attended to.
    mask = torch.cat([padding_mask(3, 5, torch.bool), torch.ones(2, 6, dtype=torch.bool)], dim=1)
    return packed_inputs(701.0) | {
        "text_encoder_layers": [torch.randn(2, 5, 12) for _ in range(5)],
        "joint_attention_kwargs": {"attention_mask": mask[:, None, None, :]},
    }


def bria_fibo2() -> nn.Module:
    # A width under 24 would leave the feed-forward layers without a channel (8/3 of it is rounded down to 64s).
    return diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=3,
        n_refiner_layers=2,
        n_heads=2,
        cap_feat_dim=10,
        injection_layer_ids=(0, 2),
        perceiver_num_layers=2,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=3,
        gist_max_text_len=7,
        axes_dims=(4, 4, 4),
        axes_lens=(16, 8, 8),
    )


def bria_fibo2_inputs() -> dict[str, Any]:
    # Text states: one for the perceiver and one for each injection layer. The perceiver makes 6 gist tokens of the
    # padded row and 8 of the other. The image to edit adds 4 tokens to the 6 of the latents.
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "timestep": both_rows(0.7),
        "encoder_hidden_states": torch.randn(2, 3, 7, 10),
        "encoder_attention_mask": padding_mask(5, 7, torch.bool),
        "context_latents": [torch.randn(2, 4, 4, 4)],
    }


def chroma() -> nn.Module:
    return diffusers.ChromaTransformer2DModel(
        **THREE_AND_TWO,
        axes_dims_rope=(4, 2, 2),
        approximator_num_channels=8,
        approximator_hidden_dim=12,
        approximator_layers=2,
    )


def chroma_inputs() -> dict[str, Any]:
    # The pipeline's mask covers text and image tokens and is of the embeddings' dtype, not boolean.
    mask = torch.cat([padding_mask(3, 5, torch.float32), torch.ones(2, 6)], dim=1)
    return packed_inputs(0.7) | {"attention_mask": mask}


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        **THREE_AND_TWO, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 2, 2)
    )


def flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": both_rows(0.7),
        "guidance": both_rows(3.5),
        "pooled_projections": torch.randn(2, 12),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": grid_ids(2, 3),
    }


def flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(**THREE_AND_TWO, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2))


def flux2_inputs() -> dict[str, Any]:
    # Ids come with a batch axis; the class uses those of the first row only.
    return packed_inputs(0.7) | {
        "guidance": both_rows(4.0),
        "txt_ids": ids_of_four_axes(1, 1, 5).expand(2, -1, -1),
        "img_ids": ids_of_four_axes(2, 3, 1).expand(2, -1, -1),
    }


def flux3() -> nn.Module:
    return diffusers.Flux3Transformer2DModel(
        **WIDTHS,
        in_channels=4,
        cond_in_channels=3,
        num_layers=2,
        num_single_layers=3,
        timestep_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )


def flux3_inputs() -> dict[str, Any]:
    # The reference image is a third stream with blocks of its own; here it has 4 tokens, at -1 of the last axis.
    return packed_inputs(0.7) | {
        "txt_ids": ids_of_four_axes(1, 1, 5).float(),
        "img_ids": ids_of_four_axes(2, 3, 1).float(),
        "image_cond_hidden_states": torch.randn(2, 4, 3),
        "image_cond_ids": ids_of_four_axes(2, 2, 1).float() - torch.tensor([0.0, 0.0, 0.0, 1.0]),
    }


def longcat_image() -> nn.Module:
    return diffusers.LongCatImageTransformer2DModel(
        **WIDTHS, in_channels=8, num_layers=3, num_single_layers=3, pooled_projection_dim=10, axes_dims_rope=[4, 2, 2]
    )


def longcat_image_inputs() -> dict[str, Any]:
    # The picture's positions begin behind the longest prompt.
    return ovis_image_inputs() | {"img_ids": grid_ids(3, 4, modality=1.0, start=7), "guidance": None}


def ovis_image() -> nn.Module:
    return diffusers.OvisImageTransformer2DModel(
        **WIDTHS, in_channels=8, out_channels=8, num_layers=3, num_single_layers=3, axes_dims_rope=(4, 2, 2)
    )


def ovis_image_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(12, 8), text=(7, 10), timestep=0.7) | {
        "txt_ids": diagonal_ids(7),
        "img_ids": grid_ids(3, 4),
    }


CLASSES: dict[str, TinyClass] = {
    "BriaFibo2Transformer2DModel": TinyClass(bria_fibo2, bria_fibo2_inputs),
    "BriaFiboTransformer2DModel": TinyClass(bria_fibo, bria_fibo_inputs),
    "BriaTransformer2DModel": TinyClass(bria, bria_inputs),
    "ChromaTransformer2DModel": TinyClass(chroma, chroma_inputs),
    "Flux2Transformer2DModel": TinyClass(flux2, flux2_inputs),
    "Flux3Transformer2DModel": TinyClass(flux3, flux3_inputs),
    "FluxTransformer2DModel": TinyClass(flux, flux_inputs),
    "LongCatImageTransformer2DModel": TinyClass(longcat_image, longcat_image_inputs),
    "OvisImageTransformer2DModel": TinyClass(ovis_image, ovis_image_inputs),
}
