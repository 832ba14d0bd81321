"""Video denoisers that take the sizes of Wan: AnyFlow, ChronoEdit, Helios and SkyReels V2."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import latents_and_text
from denoisers.tiny_class import TinyClass
from denoisers.wan import WAN, wan_inputs

# The rotary embedding splits a head in three, that of ChronoEdit once in sixths and once in thirds.
SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 4,
    "text_dim": 10,
    "freq_dim": 8,
    "ffn_dim": 20,
    "num_layers": 3,
}


def any_flow() -> nn.Module:
    return diffusers.AnyFlowTransformer3DModel(**SIZES, in_channels=4, rope_max_seq_len=16)


def any_flow_inputs() -> dict[str, Any]:
    # Frames come before channels, and each frame has its timestep and the one it steps to.
    return latents_and_text(latents=(3, 4, 4, 6), text=(5, 10), timestep=torch.full((2, 3), 701.0)) | {
        "r_timestep": torch.full((2, 3), 501.0),
    }


def any_flow_far() -> nn.Module:
    return diffusers.AnyFlowFARTransformer3DModel(
        **SIZES, in_channels=4, rope_max_seq_len=16, full_chunk_limit=2, chunk_partition=(1, 1, 2)
    )


def any_flow_far_inputs() -> dict[str, Any]:
    # The step of the third chunk (2 frames of 8 tokens), which attends to what the cache holds of the first
    # (1 frame, compressed to 2 tokens) and of the second (1 frame of 8 tokens). The forward writes token counts into
    # kv_cache_flag, the same ones each time; the pipeline gives it a copy for each call.
    def cached(tokens: int) -> torch.Tensor:
        keys_and_values, batch, heads, head_width = 2, 2, 2, 12
        return torch.randn(keys_and_values, batch, heads, tokens, head_width)

    return latents_and_text(latents=(2, 4, 4, 8), text=(5, 10), timestep=torch.full((2, 2), 701.0)) | {
        "r_timestep": torch.full((2, 2), 501.0),
        "chunk_partition": [1, 1, 2],
        "kv_cache": {layer: {"full_cache": cached(32), "compressed_cache": cached(8)} for layer in range(3)},
        "kv_cache_flag": {"num_cached_chunks": 2, "is_cache_step": False},
    }


def chrono_edit() -> nn.Module:
    # in_channels: latents, latents of the given image, and 4 channels that say which frames are given.
    return diffusers.ChronoEditTransformer3DModel(
        **SIZES, in_channels=12, image_dim=14, added_kv_proj_dim=24, rope_max_seq_len=16
    )


def chrono_edit_inputs() -> dict[str, Any]:
    # 512 text tokens: the attention splits image from text by that number, which is written into the class.
    return latents_and_text(latents=(12, 3, 4, 6), text=(512, 10), timestep=701.0) | {
        "encoder_hidden_states_image": torch.randn(2, 4, 14),
    }


def helios() -> nn.Module:
    return diffusers.HeliosTransformer3DModel(**SIZES, in_channels=4, rope_dim=(4, 4, 4))


def helios_inputs() -> dict[str, Any]:
    # Earlier frames come before the new ones in the sequence, the older the coarser: 4 frames make 1 token, 2 make 2,
    # and 2 (the first of all and the last) make 6 each, as each of the 2 new ones does. Places have one row.
    places = torch.arange(10).unsqueeze(0)
    return latents_and_text(latents=(4, 2, 4, 6), text=(5, 10), timestep=701.0) | {
        "indices_hidden_states": places[:, 8:],
        "indices_latents_history_short": places[:, [0, 7]],
        "indices_latents_history_mid": places[:, 5:7],
        "indices_latents_history_long": places[:, 1:5],
        "latents_history_short": torch.randn(2, 4, 2, 4, 6),
        "latents_history_mid": torch.randn(2, 4, 2, 4, 6),
        "latents_history_long": torch.randn(2, 4, 4, 4, 6),
    }


def skyreels_v2() -> nn.Module:
    """The layout of SkyReels V2.

    The frame rate that some of these models embed is left out: with it the class cannot run more than one row, as it
    repeats the embedding over frames of all rows at once.
    """
    return diffusers.SkyReelsV2Transformer3DModel(
        **WAN, in_channels=4, out_channels=4, num_layers=3, num_frame_per_block=1
    )


def skyreels_v2_forcing() -> nn.Module:
    """The layout of the diffusion-forcing model of SkyReels V2."""
    return diffusers.SkyReelsV2Transformer3DModel(
        **WAN, in_channels=4, out_channels=4, num_layers=3, num_frame_per_block=2
    )


def skyreels_v2_forcing_inputs() -> dict[str, Any]:
    """Four frames, each with its own timestep; pairs of frames see only themselves and earlier pairs."""
    times = torch.tensor([[0.0, 0.0, 617.0, 617.0], [0.0, 0.0, 617.0, 617.0]])
    return latents_and_text(latents=(4, 4, 4, 4), text=(7, 10), timestep=times) | {
        "enable_diffusion_forcing": True,
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "AnyFlowFARTransformer3DModel": TinyClass(any_flow_far, any_flow_far_inputs),
    "AnyFlowTransformer3DModel": TinyClass(any_flow, any_flow_inputs),
    "ChronoEditTransformer3DModel": TinyClass(chrono_edit, chrono_edit_inputs),
    "HeliosTransformer3DModel": TinyClass(helios, helios_inputs),
    "SkyReelsV2Transformer3DModel": TinyClass(skyreels_v2, wan_inputs),
    "SkyReelsV2Transformer3DModel-forcing": TinyClass(skyreels_v2_forcing, skyreels_v2_forcing_inputs),
}
