"""Denoisers of images from text whose classes have no relatives here, from AuraFlow to Stable Diffusion 3."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_ideogram4 import (
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)
from diffusers.models.transformers.transformer_nucleusmoe_image import SwiGLUExperts
from torch import nn

from denoisers.inputs import both_rows, grid_ids, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass


def aura_flow() -> nn.Module:
    # caption_projection_dim has to be the width; each feed-forward layer is 256 wide whatever the width.
    return diffusers.AuraFlowTransformer2DModel(
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


def aura_flow_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 4, 6), text=(5, 10), timestep=0.7)


def ernie_image() -> nn.Module:
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=16,
        num_attention_heads=2,
        num_layers=3,
        ffn_hidden_size=20,
        in_channels=4,
        out_channels=4,
        text_in_dim=10,
        rope_axes_dim=(4, 2, 2),
    )


def ernie_image_inputs() -> dict[str, Any]:
    text = torch.randn(2, 5, 10)
    text[0, 3:] = 0.0
    return {
        "hidden_states": torch.randn(2, 4, 2, 3),
        "timestep": both_rows(701.0),
        "text_bth": text,
        "text_lens": torch.tensor([3, 5]),
    }


def hidream() -> nn.Module:
    # caption_channels: widths of the T5 states and of the Llama states, of which each block takes a layer of its own.
    return diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[10, 12],
        text_emb_dim=14,
        num_routed_experts=3,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(4, 8),
        llama_layers=[0, 1, 2, 3, 3],
    )


def hidream_inputs() -> dict[str, Any]:
    # The image is not square, so the class itself pads its 6 tokens to the 8 of the greatest resolution, with a mask.
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "timesteps": both_rows(701.0),
        "encoder_hidden_states_t5": torch.randn(2, 5, 10),
        "encoder_hidden_states_llama3": torch.randn(4, 2, 3, 12),
        "pooled_embeds": torch.randn(2, 14),
    }


def ideogram4() -> nn.Module:
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=6,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        intermediate_size=24,
        adaln_dim=12,
        llm_features_dim=10,
        mrope_section=(2, 1, 1),
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
        "timestep": both_rows(0.3),
        "encoder_hidden_states": torch.cat([torch.randn(2, text, 10), torch.zeros(2, 6, 10)], dim=1),
        "position_ids": positions,
        "segment_ids": segments,
        "indicator": indicator,
    }


def krea2() -> nn.Module:
    return diffusers.Krea2Transformer2DModel(
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


def krea2_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 12, 6),
        # The hidden states of three layers of the text encoder for each of seven tokens.
        "encoder_hidden_states": torch.randn(2, 7, 3, 8),
        "timestep": both_rows(0.7),
        "position_ids": torch.cat([torch.zeros(7, 3), grid_ids(3, 4)]),
        "encoder_attention_mask": padding_mask(7, 5, torch.bool),
    }


def nucleus_moe() -> nn.Module:
    model = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=8,
        out_channels=2,
        # One dense block, then two with experts.
        num_layers=3,
        dense_moe_strategy="leave_first_block_dense",
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=10,
        axes_dims_rope=(4, 2, 2),
        # The dense width is rounded down to a multiple of 128 and must not become 0.
        mlp_ratio=12.0,
        num_experts=4,
        moe_intermediate_dim=12,
        capacity_factors=2.0,
    )
    for module in model.modules():
        if isinstance(module, SwiGLUExperts):
            # The class leaves the weights of its experts uninitialised.
            nn.init.normal_(module.gate_up_proj, std=0.2)
            nn.init.normal_(module.down_proj, std=0.2)
    return model


def nucleus_moe_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(12, 8), text=(7, 10), timestep=0.7) | {
        "encoder_hidden_states_mask": padding_mask(7, 5),
        "img_shapes": [(1, 3, 4)] * 2,
    }


def prx() -> nn.Module:
    return diffusers.PRXTransformer2DModel(
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


def prx_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 6, 8), text=(7, 10), timestep=0.7) | {
        "attention_mask": padding_mask(7, 5, torch.bool),
    }


def sd3() -> nn.Module:
    """The layout of Stable Diffusion 3.5 medium: the first blocks attend twice, the last one drops the text."""
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=6,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def sd3_inputs() -> dict[str, Any]:
    """Twelve image tokens, both rows of classifier-free guidance."""
    return latents_and_text(latents=(4, 6, 8), text=(7, 12), timestep=617.5) | {
        "pooled_projections": torch.randn(2, 10),
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "AuraFlowTransformer2DModel": TinyClass(aura_flow, aura_flow_inputs),
    "ErnieImageTransformer2DModel": TinyClass(ernie_image, ernie_image_inputs),
    "HiDreamImageTransformer2DModel": TinyClass(hidream, hidream_inputs),
    "Ideogram4Transformer2DModel": TinyClass(ideogram4, ideogram4_inputs),
    "Krea2Transformer2DModel": TinyClass(krea2, krea2_inputs),
    "NucleusMoEImageTransformer2DModel": TinyClass(nucleus_moe, nucleus_moe_inputs),
    "PRXTransformer2DModel": TinyClass(prx, prx_inputs),
    "SD3Transformer2DModel": TinyClass(sd3, sd3_inputs),
}
