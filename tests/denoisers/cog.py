"""CogVideoX with ConsisID, and CogView 3 and 4 with GLM-Image, which takes the same sizes."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import nn

from denoisers.inputs import latents_and_text
from denoisers.tiny_class import TinyClass

VIDEO_SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "out_channels": 4,
    "time_embed_dim": 12,
    "text_embed_dim": 10,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": 5,
    "use_rotary_positional_embeddings": True,
}
"""Five frames of a video, which are two of latents."""

IMAGE_SIZES: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "text_embed_dim": 10,
    "time_embed_dim": 12,
    "condition_dim": 4,
}
"""condition_dim: width of the embedding of each number of the picture's sizes."""


def video_inputs(channels: int) -> dict[str, Any]:
    """Two frames of six tokens; frames come before channels."""
    return latents_and_text(latents=(2, channels, 4, 6), text=(5, 10), timestep=701) | {
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (2, 3)), grid_size=(2, 3), temporal_size=2),
    }


def image_inputs(timestep: float) -> dict[str, Any]:
    """Six tokens of an image that stands for all of a picture of 32 by 48 pixels."""
    return latents_and_text(latents=(4, 4, 6), text=(5, 10), timestep=timestep) | {
        "target_size": torch.tensor([[32.0, 48.0]] * 2),
        "crop_coords": torch.zeros(2, 2),
    }


def cogvideox() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(**VIDEO_SIZES, in_channels=4, num_layers=3)


def cogvideox_inputs() -> dict[str, Any]:
    return video_inputs(channels=4)


def cogview3plus() -> nn.Module:
    return diffusers.CogView3PlusTransformer2DModel(**IMAGE_SIZES, pos_embed_max_size=8)


def cogview3plus_inputs() -> dict[str, Any]:
    return image_inputs(701) | {"original_size": torch.tensor([[32.0, 48.0]] * 2)}


def cogview4() -> nn.Module:
    return diffusers.CogView4Transformer2DModel(**IMAGE_SIZES, rope_axes_dim=(8, 8))


def cogview4_inputs() -> dict[str, Any]:
    return image_inputs(701.0) | {"original_size": torch.tensor([[32.0, 48.0]] * 2)}


def consis_id() -> nn.Module:
    # An even depth: every second block, from the first, is followed by a face attention, of which there are depth / 2
    # rounded down. Their keys are two thirds of the model's width, rounded down, and LFE_output_dim has to be the same.
    return diffusers.ConsisIDTransformer3DModel(
        **VIDEO_SIZES,
        in_channels=8,
        num_layers=4,
        is_train_face=True,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=14,
        LFE_vit_dim=8,
        LFE_depth=2,
        LFE_dim_head=4,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=3,
        LFE_output_dim=21,
        LFE_num_scale=2,
    )


def consis_id_inputs() -> dict[str, Any]:
    # Channels: latents and the latents of the image; then what two scales of a face encoder say.
    return video_inputs(channels=8) | {
        "id_vit_hidden": [torch.randn(2, 7, 8) for _ in range(2)],
        "id_cond": torch.randn(2, 14),
    }


def glm_image() -> nn.Module:
    return diffusers.GlmImageTransformer2DModel(**IMAGE_SIZES, prior_vq_quantizer_codebook_size=11)


def glm_image_inputs() -> dict[str, Any]:
    # Each image token has a token of a language model as its prior; the unconditional pass drops them all.
    return image_inputs(700.0) | {
        "prior_token_id": torch.randint(0, 11, (2, 6)),
        "prior_token_drop": torch.zeros(2, 6, dtype=torch.bool),
    }


CLASSES: dict[str, TinyClass] = {
    "CogVideoXTransformer3DModel": TinyClass(cogvideox, cogvideox_inputs),
    "CogView3PlusTransformer2DModel": TinyClass(cogview3plus, cogview3plus_inputs),
    "CogView4Transformer2DModel": TinyClass(cogview4, cogview4_inputs),
    "ConsisIDTransformer3DModel": TinyClass(consis_id, consis_id_inputs),
    "GlmImageTransformer2DModel": TinyClass(glm_image, glm_image_inputs),
}
