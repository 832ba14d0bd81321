"""Kandinsky 3, 5 and 6, and the prior of Kandinsky 2."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import both_rows, padding_mask, sample_and_text
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "time_dim": 12,
    "ff_dim": 24,
    "num_visual_blocks": 3,
}
"""What Kandinsky 5 and 6 share. Channels of their inputs come last, those of the given picture after the latents'."""

SIZES_WITH_TEXT: dict[str, Any] = {
    **SIZES,
    "in_text_dim": 10,
    "in_text_dim2": 6,
    "patch_size": (1, 2, 2),
    "model_dim": 16,
    "num_text_blocks": 2,
    "axes_dims": (4, 2, 2),
    "visual_cond": True,
}


def kandinsky3() -> nn.Module:
    """The layout of Kandinsky 3; the class fixes four levels, the first without attention."""
    return diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 16, 16, 16),
        cross_attention_dim=24,
        encoder_hid_dim=12,
    )


def kandinsky3_inputs() -> dict[str, Any]:
    """Both rows of classifier-free guidance; the first row's text is padded."""
    return sample_and_text(sample=(4, 8, 8), text=(7, 12), timestep=501) | {
        "encoder_attention_mask": padding_mask(3, 7),
        "return_dict": False,
    }


def kandinsky5() -> nn.Module:
    return diffusers.Kandinsky5Transformer3DModel(**SIZES_WITH_TEXT)


def kandinsky5_inputs() -> dict[str, Any]:
    # The conditioning picture and its mask are zero for text alone.
    latents = torch.cat([torch.randn(2, 2, 4, 6, 4), torch.zeros(2, 2, 4, 6, 5)], dim=-1)
    return {
        "hidden_states": latents,
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "pooled_projections": torch.randn(2, 6),
        "timestep": both_rows(701.0),
        "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(3)],
        "text_rope_pos": torch.arange(7),
        "scale_factor": (1.0, 2.0, 2.0),
        "sparse_params": None,
    }


def kandinsky6() -> nn.Module:
    # The stream of the picture is modulated by the time of the sound as well, so time_dim_a is as large as time_dim.
    return diffusers.Kandinsky6Transformer3DModel(
        **SIZES_WITH_TEXT,
        in_audio_dim=5,
        out_audio_dim=5,
        model_dim_a=8,
        time_dim_a=12,
        ff_dim_a=12,
        axes_dims_a=(2, 1, 1),
        visual_token_type_num_embeddings=2,
    )


def kandinsky6_inputs() -> dict[str, Any]:
    # Two frames, and behind them the given first frame, told apart by its type and by the last channel.
    condition = torch.zeros(2, 3, 4, 6, 5)
    condition[:, -1, ..., -1] = 1.0
    return {
        "hidden_states": torch.cat([torch.randn(2, 3, 4, 6, 4), condition], dim=-1),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "pooled_projections": torch.randn(2, 6),
        "timestep": both_rows(701.0),
        "audio_hidden_states": torch.randn(2, 5, 5),
        "visual_rope_pos": (torch.tensor([0, 1, 0]), torch.arange(2), torch.arange(3)),
        "encoder_attention_mask": padding_mask(7, 5, torch.bool),
        "visual_token_type_ids": torch.tensor([[0, 0, 1], [0, 0, 1]]),
    }


def kandinsky6_sr() -> nn.Module:
    return diffusers.Kandinsky6SRTransformer3DModel(
        **SIZES,
        patch_size=(1, 1, 1),
        # Attention in blocks needs heads of 16 numbers or more.
        model_dim=32,
        axes_dims=(4, 6, 6),
        nabla_window=(1, 1, 1),
        tile_sizes=((64, 64),),
    )


def kandinsky6_sr_inputs() -> dict[str, Any]:
    # The attention works on squares of 8 by 8 tokens; two of them are the least that leaves it something to choose.
    latents = torch.cat([torch.randn(2, 2, 8, 8, 4), torch.zeros(2, 2, 8, 8, 5)], dim=-1)
    return {"hidden_states": latents, "timestep": both_rows(701.0)}


def prior() -> nn.Module:
    return diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        embedding_dim=10,
        num_embeddings=7,
        # The projected prompt, the time, the noisy embedding and the token that is read out.
        additional_embeddings=4,
    )


def prior_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 10),
        "timestep": torch.tensor(701),
        "proj_embedding": torch.randn(2, 10),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "attention_mask": padding_mask(7, 5, torch.bool),
    }


CLASSES: dict[str, TinyClass] = {
    "Kandinsky3UNet": TinyClass(kandinsky3, kandinsky3_inputs),
    "Kandinsky5Transformer3DModel": TinyClass(kandinsky5, kandinsky5_inputs),
    "Kandinsky6SRTransformer3DModel": TinyClass(kandinsky6_sr, kandinsky6_sr_inputs),
    "Kandinsky6Transformer3DModel": TinyClass(kandinsky6, kandinsky6_inputs),
    "PriorTransformer": TinyClass(prior, prior_inputs),
}
