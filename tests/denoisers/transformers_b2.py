"""Tiny denoisers: younger transformers of pictures, from Ideogram and JoyImage to Ovis and PRX."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_ideogram4 import (
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
    Ideogram4Transformer2DModel,
)
from diffusers.models.transformers.transformer_joyimage import JoyImageEditTransformer3DModel
from diffusers.models.transformers.transformer_joyimage_edit_plus import JoyImageEditPlusTransformer3DModel
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from diffusers.models.transformers.transformer_longcat_image import LongCatImageTransformer2DModel
from diffusers.models.transformers.transformer_ovis_image import OvisImageTransformer2DModel
from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel
from torch import nn

from denoisers.tiny_class import TinyClass
from denoisers.transformers_b import text_mask, with_noise


def grid_ids(height: int, width: int, modality: float = 0.0, start: int = 0) -> torch.Tensor:
    """Position ids (modality, row, column) of the patches of one picture, one line per patch."""
    rows = torch.arange(height, dtype=torch.float32).repeat_interleave(width) + start
    columns = torch.arange(width, dtype=torch.float32).repeat(height) + start
    return torch.stack([torch.full_like(rows, modality), rows, columns], dim=1)


def diagonal_ids(tokens: int, modality: float = 0.0) -> torch.Tensor:
    """Position ids of a prompt whose tokens lie on the diagonal of the picture's plane."""
    positions = torch.arange(tokens, dtype=torch.float32)
    return torch.stack([torch.full_like(positions, modality), positions, positions], dim=1)


def ideogram4() -> nn.Module:
    return with_noise(
        Ideogram4Transformer2DModel(
            in_channels=6,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            intermediate_size=24,
            adaln_dim=12,
            llm_features_dim=10,
            mrope_section=(2, 1, 1),
        )
    )


def ideogram4_inputs() -> dict[str, Any]:
    text, padding = 7, 2
    image_positions = grid_ids(2, 3).long() + 65536
    positions = torch.zeros(2, text + 6, 3, dtype=torch.long)
    segments = torch.full((2, text + 6), SEQUENCE_PADDING_INDICATOR)
    indicator = torch.zeros(2, text + 6, dtype=torch.long)
    # Text and picture are one sequence; the second prompt is shorter and padded on its left.
    for row, first in enumerate((0, padding)):
        positions[row, first:text] = torch.arange(text - first)[:, None]
        positions[row, text:] = image_positions
        segments[row, first:] = 1
        indicator[row, first:text] = LLM_TOKEN_INDICATOR
        indicator[row, text:] = OUTPUT_IMAGE_INDICATOR
    return {
        "hidden_states": torch.cat([torch.zeros(2, text, 6), torch.randn(2, 6, 6)], dim=1),
        # Ideogram counts time upwards: 0 is noise and 1 the picture.
        "timestep": torch.tensor([0.3, 0.3]),
        "encoder_hidden_states": torch.cat([torch.randn(2, text, 10), torch.zeros(2, 6, 10)], dim=1),
        "position_ids": positions,
        "segment_ids": segments,
        "indicator": indicator,
    }


def joy_image() -> nn.Module:
    return with_noise(
        JoyImageEditTransformer3DModel(
            patch_size=[1, 2, 2],
            in_channels=4,
            hidden_size=16,
            num_attention_heads=2,
            text_dim=10,
            mlp_width_ratio=2.0,
            num_layers=3,
            rope_dim_list=[4, 2, 2],
        )
    )


def joy_image_inputs() -> dict[str, Any]:
    return {
        # One reference picture and the noisy one behind it, of one frame each.
        "hidden_states": torch.randn(2, 2, 4, 1, 4, 6),
        "timestep": torch.tensor([701.0, 701.0]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
    }


def joy_image_plus() -> nn.Module:
    return with_noise(
        JoyImageEditPlusTransformer3DModel(
            patch_size=[1, 2, 2],
            in_channels=4,
            hidden_size=16,
            num_attention_heads=2,
            text_dim=10,
            mlp_width_ratio=2.0,
            num_layers=3,
            rope_dim_list=[4, 2, 2],
        )
    )


def joy_image_plus_inputs() -> dict[str, Any]:
    # Patches of the wanted picture and of a smaller reference in the second row, which ends in two empty patches.
    patches = torch.randn(2, 12, 4, 1, 2, 2)
    patches[1, 10:] = 0.0
    return {
        "hidden_states": patches,
        "timestep": torch.tensor([701.0, 701.0]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_hidden_states_mask": text_mask(7, 5),
        "shape_list": [[(1, 2, 3), (1, 2, 3)], [(1, 2, 3), (1, 2, 2)]],
    }


def krea2() -> nn.Module:
    return with_noise(
        Krea2Transformer2DModel(
            in_channels=6,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            timestep_embed_dim=12,
            text_hidden_dim=8,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=12,
            num_layerwise_text_blocks=2,
            num_refiner_text_blocks=2,
            axes_dims_rope=(4, 2, 2),
        )
    )


def krea2_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 12, 6),
        # The hidden states of three layers of the text encoder for each of seven tokens.
        "encoder_hidden_states": torch.randn(2, 7, 3, 8),
        "timestep": torch.tensor([0.7, 0.7]),
        "position_ids": torch.cat([torch.zeros(7, 3), grid_ids(3, 4)]),
        "encoder_attention_mask": text_mask(7, 5, torch.bool),
    }


def longcat_image() -> nn.Module:
    return with_noise(
        LongCatImageTransformer2DModel(
            in_channels=8,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            pooled_projection_dim=10,
            axes_dims_rope=[4, 2, 2],
        )
    )


def longcat_image_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 12, 8),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.tensor([0.7, 0.7]),
        "txt_ids": diagonal_ids(7),
        # The picture's positions begin behind the longest prompt.
        "img_ids": grid_ids(3, 4, modality=1.0, start=7),
        "guidance": None,
    }


def ovis_image() -> nn.Module:
    return with_noise(
        OvisImageTransformer2DModel(
            in_channels=8,
            out_channels=8,
            num_layers=3,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            axes_dims_rope=(4, 2, 2),
        )
    )


def ovis_image_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 12, 8),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.tensor([0.7, 0.7]),
        "txt_ids": diagonal_ids(7),
        "img_ids": grid_ids(3, 4),
    }


def prx() -> nn.Module:
    return with_noise(
        PRXTransformer2DModel(
            in_channels=4,
            patch_size=2,
            context_in_dim=10,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=3,
            axes_dim=[4, 4],
            resolution_embeds=True,
        )
    )


def prx_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 6, 8),
        "timestep": torch.tensor([0.7, 0.7]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "attention_mask": text_mask(7, 5, torch.bool),
    }


CLASSES: dict[str, TinyClass] = {
    "Ideogram4Transformer2DModel": TinyClass(ideogram4, ideogram4_inputs),
    "JoyImageEditPlusTransformer3DModel": TinyClass(joy_image_plus, joy_image_plus_inputs),
    "JoyImageEditTransformer3DModel": TinyClass(joy_image, joy_image_inputs),
    "Krea2Transformer2DModel": TinyClass(krea2, krea2_inputs),
    "LongCatImageTransformer2DModel": TinyClass(longcat_image, longcat_image_inputs),
    "OvisImageTransformer2DModel": TinyClass(ovis_image, ovis_image_inputs),
    "PRXTransformer2DModel": TinyClass(prx, prx_inputs),
}

LEFT_OUT: dict[str, str] = {}
