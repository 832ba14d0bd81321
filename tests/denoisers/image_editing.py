"""Denoisers that take given pictures beside the one to make: JoyImage-Edit, JoyImage-Edit-Plus and OmniGen."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import both_rows, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass

JOY_IMAGE: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "text_dim": 10,
    "mlp_width_ratio": 2.0,
    "num_layers": 3,
    "rope_dim_list": [4, 2, 2],
}


def joy_image() -> nn.Module:
    return diffusers.JoyImageEditTransformer3DModel(**JOY_IMAGE)


def joy_image_inputs() -> dict[str, Any]:
    # One reference picture and the noisy one behind it, of one frame each.
    return latents_and_text(latents=(2, 4, 1, 4, 6), text=(7, 10), timestep=701.0)


def joy_image_plus() -> nn.Module:
    return diffusers.JoyImageEditPlusTransformer3DModel(**JOY_IMAGE)


def joy_image_plus_inputs() -> dict[str, Any]:
    # Patches of the wanted picture and of a smaller reference in the second row, which ends in two empty patches.
    patches = torch.randn(2, 12, 4, 1, 2, 2)
    patches[1, 10:] = 0.0
    return {
        "hidden_states": patches,
        "timestep": both_rows(701.0),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_hidden_states_mask": padding_mask(7, 5),
        "shape_list": [[(1, 2, 3), (1, 2, 3)], [(1, 2, 3), (1, 2, 2)]],
    }


def omnigen() -> nn.Module:
    return diffusers.OmniGenTransformer2DModel(
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
        "timestep": both_rows(0.3),
        "input_ids": tokens,
        "input_img_latents": [torch.randn(1, 4, 4, 4)],
        "input_image_sizes": {0: [list(given)]},
        "attention_mask": mask,
        "position_ids": positions,
    }


CLASSES: dict[str, TinyClass] = {
    "JoyImageEditPlusTransformer3DModel": TinyClass(joy_image_plus, joy_image_plus_inputs),
    "JoyImageEditTransformer3DModel": TinyClass(joy_image, joy_image_inputs),
    "OmniGenTransformer2DModel": TinyClass(omnigen, omnigen_inputs),
}
