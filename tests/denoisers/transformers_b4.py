"""Tiny denoisers: a transformer with experts for pictures, and one that reads prompt and pictures as one text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_nucleusmoe_image import NucleusMoEImageTransformer2DModel, SwiGLUExperts
from diffusers.models.transformers.transformer_omnigen import OmniGenTransformer2DModel
from torch import nn

from denoisers.tiny_class import TinyClass
from denoisers.transformers_b import text_mask, with_noise


def nucleus_moe() -> nn.Module:
    model = NucleusMoEImageTransformer2DModel(
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
    return with_noise(model)


def nucleus_moe_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 12, 8),
        "img_shapes": [(1, 3, 4)] * 2,
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_hidden_states_mask": text_mask(7, 5),
        "timestep": torch.tensor([0.7, 0.7]),
    }


def omnigen() -> nn.Module:
    return with_noise(
        OmniGenTransformer2DModel(
            in_channels=4,
            patch_size=2,
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            num_layers=3,
            pad_token_id=19,
            vocab_size=20,
            max_position_embeddings=64,
            original_max_position_embeddings=64,
            rope_scaling={"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            pos_embed_max_size=8,
            time_step_dim=12,
        )
    )


def omnigen_inputs() -> dict[str, Any]:
    text, padding, image, given = 9, 2, 6, (2, 6)
    length = text + 1 + image
    # The first prompt holds a given picture of four tokens; the second is shorter and padded on its left.
    tokens = torch.randint(3, 19, (2, text))
    tokens[0, given[0] : given[1]] = 0
    tokens[1, :padding] = 2
    positions = torch.zeros(2, length, dtype=torch.long)
    positions[0] = torch.arange(length)
    positions[1, padding:] = torch.arange(length - padding)
    # Prompt and time see what is before them, the noisy picture sees all; padding is seen by itself alone.
    mask = torch.tril(torch.ones(length, length))
    mask[text + 1 :] = 1.0
    mask = mask.repeat(2, 1, 1)
    mask[0, given[0] : given[1], given[0] : given[1]] = 1.0
    mask[1, padding:, :padding] = 0.0
    mask[1, :padding] = 1.0
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "timestep": torch.tensor([0.3, 0.3]),
        "input_ids": tokens,
        "input_img_latents": [torch.randn(1, 4, 4, 4)],
        "input_image_sizes": {0: [list(given)]},
        "attention_mask": mask,
        "position_ids": positions,
    }


CLASSES: dict[str, TinyClass] = {
    "NucleusMoEImageTransformer2DModel": TinyClass(nucleus_moe, nucleus_moe_inputs),
    "OmniGenTransformer2DModel": TinyClass(omnigen, omnigen_inputs),
}

LEFT_OUT: dict[str, str] = {}
