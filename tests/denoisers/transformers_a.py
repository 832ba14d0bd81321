"""Tiny denoisers of the Flux, Chroma, AuraFlow and DiT classes, and helpers for those of the other families."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    DiTTransformer2DModel,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
)
from torch import nn

from denoisers.tiny_class import TinyClass


def with_noise(model: nn.Module) -> nn.Module:
    """Add noise to every parameter, so that gates and projections which start at zero hide nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def same_time(value: float) -> torch.Tensor:
    """The timestep of both rows: a pipeline denoises its whole batch at one noise level."""
    return torch.tensor([value, value])


def padded_mask(length: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """A text mask of two rows: the first has two padded positions at its end, the second none."""
    mask = torch.ones(2, length, dtype=dtype)
    mask[0, -2:] = 0
    return mask


def grid_ids(height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Position ids (0, row, column) of image tokens, shape (height * width, 3)."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width)).to(dtype)


def grid_ids_of_four_axes(height: int, width: int, text: int) -> torch.Tensor:
    """Position ids (frame, row, column, text place) of Flux 2 and 3, all of one frame."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width), torch.arange(text))


def _flux() -> nn.Module:
    return with_noise(
        FluxTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            pooled_projection_dim=12,
            guidance_embeds=True,
            axes_dims_rope=(4, 2, 2),
        )
    )


def _flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": same_time(0.7),
        "guidance": torch.full((2,), 3.5),
        "pooled_projections": torch.randn(2, 12),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": grid_ids(2, 3),
    }


def _flux2() -> nn.Module:
    return with_noise(
        Flux2Transformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            timestep_guidance_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
        )
    )


def _flux2_inputs() -> dict[str, Any]:
    # Ids come with a batch axis; the class uses those of the first row only.
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": same_time(0.7),
        "guidance": torch.full((2,), 4.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "txt_ids": grid_ids_of_four_axes(1, 1, 5).expand(2, -1, -1),
        "img_ids": grid_ids_of_four_axes(2, 3, 1).expand(2, -1, -1),
    }


def _flux3() -> nn.Module:
    return with_noise(
        Flux3Transformer2DModel(
            in_channels=4,
            cond_in_channels=3,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            timestep_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
        )
    )


def _flux3_inputs() -> dict[str, Any]:
    # The reference image is a third stream with blocks of its own; here it has 4 tokens, at -1 of the last axis.
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "timestep": same_time(0.7),
        "img_ids": grid_ids_of_four_axes(2, 3, 1).float(),
        "txt_ids": grid_ids_of_four_axes(1, 1, 5).float(),
        "image_cond_hidden_states": torch.randn(2, 4, 3),
        "image_cond_ids": grid_ids_of_four_axes(2, 2, 1).float() - torch.tensor([0.0, 0.0, 0.0, 1.0]),
    }


def _chroma() -> nn.Module:
    return with_noise(
        ChromaTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            axes_dims_rope=(4, 2, 2),
            approximator_num_channels=8,
            approximator_hidden_dim=12,
            approximator_layers=2,
        )
    )


def _chroma_inputs() -> dict[str, Any]:
    # The pipeline's mask covers text and image tokens and is of the embeddings' dtype, not boolean.
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": same_time(0.7),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": grid_ids(2, 3),
        "attention_mask": torch.cat([padded_mask(5, torch.float32), torch.ones(2, 6)], dim=1),
    }


def _aura_flow() -> nn.Module:
    # caption_projection_dim has to be the width; each feed-forward layer is 256 wide whatever the width.
    return with_noise(
        AuraFlowTransformer2DModel(
            sample_size=8,
            in_channels=4,
            num_mmdit_layers=3,
            num_single_dit_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            caption_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=16,
        )
    )


def _aura_flow_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "timestep": same_time(0.7),
    }


def _dit() -> nn.Module:
    return with_noise(
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=3,
            sample_size=6,
            num_embeds_ada_norm=10,
        )
    )


def _dit_inputs() -> dict[str, Any]:
    # The class takes square images only; the last label is the one of the unconditional row.
    return {
        "hidden_states": torch.randn(2, 4, 6, 6),
        "timestep": torch.tensor([701, 701]),
        "class_labels": torch.tensor([3, 10]),
    }


CLASSES: dict[str, TinyClass] = {
    "FluxTransformer2DModel": TinyClass(_flux, _flux_inputs),
    "Flux2Transformer2DModel": TinyClass(_flux2, _flux2_inputs),
    "Flux3Transformer2DModel": TinyClass(_flux3, _flux3_inputs),
    "ChromaTransformer2DModel": TinyClass(_chroma, _chroma_inputs),
    "AuraFlowTransformer2DModel": TinyClass(_aura_flow, _aura_flow_inputs),
    "DiTTransformer2DModel": TinyClass(_dit, _dit_inputs),
}

LEFT_OUT: dict[str, str] = {}
