"""Tiny denoisers of the AceStep, Allegro, AnyFlow, Bria and ConsisID classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AceStepTransformer1DModel,
    AllegroTransformer3DModel,
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    BriaFibo2Transformer2DModel,
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    ConsisIDTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from torch import nn

from denoisers.tiny_class import TinyClass
from denoisers.transformers_a import grid_ids, padded_mask, same_time, with_noise


def _ace_step() -> nn.Module:
    # Layers take turns at a sliding window and at full attention.
    return with_noise(
        AceStepTransformer1DModel(
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            in_channels=12,
            audio_acoustic_hidden_dim=4,
            sliding_window=2,
            encoder_hidden_size=10,
        )
    )


def _ace_step_inputs() -> dict[str, Any]:
    # 13 frames make 7 tokens: the last patch is padded. The context is the source latents and a mask of as many
    # channels that says what to make anew.
    return {
        "hidden_states": torch.randn(2, 13, 4),
        "timestep": same_time(0.7),
        "timestep_r": same_time(0.7),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "context_latents": torch.cat([torch.randn(2, 13, 4), torch.ones(2, 13, 4)], dim=-1),
    }


def _allegro() -> nn.Module:
    # cross_attention_dim has to be the width; the head is split in three for the rotary embedding.
    return with_noise(
        AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            cross_attention_dim=24,
            sample_height=4,
            sample_width=6,
            sample_frames=2,
            caption_channels=10,
        )
    )


def _allegro_inputs() -> dict[str, Any]:
    *frequencies, frames, rows, columns = get_3d_rotary_pos_embed_allegro(
        12, ((0, 0), (2, 3)), (2, 3), 2, interpolation_scale=(2.2, 2.0, 2.0)
    )
    places = torch.cartesian_prod(frames.long(), rows.long(), columns.long())
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "encoder_attention_mask": padded_mask(5),
        "timestep": torch.tensor([701, 701]),
        "image_rotary_emb": (tuple(frequencies), tuple(axis.unsqueeze(0) for axis in places.unbind(1))),
    }


def _any_flow() -> nn.Module:
    return with_noise(
        AnyFlowTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=10,
            freq_dim=8,
            ffn_dim=20,
            num_layers=3,
            rope_max_seq_len=16,
        )
    )


def _any_flow_inputs() -> dict[str, Any]:
    # Frames come before channels, and each frame has its timestep and the one it steps to.
    return {
        "hidden_states": torch.randn(2, 3, 4, 4, 6),
        "timestep": torch.full((2, 3), 701.0),
        "r_timestep": torch.full((2, 3), 501.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
    }


def _any_flow_far() -> nn.Module:
    return with_noise(
        AnyFlowFARTransformer3DModel(
            full_chunk_limit=2,
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=10,
            freq_dim=8,
            ffn_dim=20,
            num_layers=3,
            rope_max_seq_len=16,
            chunk_partition=(1, 1, 2),
        )
    )


def _any_flow_far_inputs() -> dict[str, Any]:
    # The step of the third chunk (2 frames of 8 tokens), which attends to what the cache holds of the first
    # (1 frame, compressed to 2 tokens) and of the second (1 frame of 8 tokens). The forward writes token counts into
    # kv_cache_flag, the same ones each time; the pipeline gives it a copy for each call.
    def cached(tokens: int) -> torch.Tensor:
        keys_and_values, batch, heads, head_width = 2, 2, 2, 12
        return torch.randn(keys_and_values, batch, heads, tokens, head_width)

    return {
        "hidden_states": torch.randn(2, 2, 4, 4, 8),
        "timestep": torch.full((2, 2), 701.0),
        "r_timestep": torch.full((2, 2), 501.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "chunk_partition": [1, 1, 2],
        "kv_cache": {layer: {"full_cache": cached(32), "compressed_cache": cached(8)} for layer in range(3)},
        "kv_cache_flag": {"num_cached_chunks": 2, "is_cache_step": False},
    }


def _bria() -> nn.Module:
    return with_noise(
        BriaTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            axes_dims_rope=[4, 2, 2],
        )
    )


def _bria_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": grid_ids(2, 3),
    }


def _bria_fibo() -> nn.Module:
    return with_noise(
        BriaFiboTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=10,
            axes_dims_rope=[4, 2, 2],
            text_encoder_dim=12,
        )
    )


def _bria_fibo_inputs() -> dict[str, Any]:
    # Each block, double or single, gets the hidden states of a layer of the text encoder of its own.
    # The mask, over text and image, says which keys may be attended to.
    mask = torch.cat([padded_mask(5, torch.bool), torch.ones(2, 6, dtype=torch.bool)], dim=1)
    return {
        "hidden_states": torch.randn(2, 6, 4),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "text_encoder_layers": [torch.randn(2, 5, 12) for _ in range(5)],
        "txt_ids": torch.zeros(5, 3),
        "img_ids": grid_ids(2, 3),
        "joint_attention_kwargs": {"attention_mask": mask[:, None, None, :]},
    }


def _bria_fibo2() -> nn.Module:
    # A width under 24 would leave the feed-forward layers without a channel (8/3 of it is rounded down to 64s).
    return with_noise(
        BriaFibo2Transformer2DModel(
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
    )


def _bria_fibo2_inputs() -> dict[str, Any]:
    # Text states: one for the perceiver and one for each injection layer. The perceiver makes 6 gist tokens of the
    # padded row and 8 of the other. The image to edit adds 4 tokens to the 6 of the latents.
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "timestep": same_time(0.7),
        "encoder_hidden_states": torch.randn(2, 3, 7, 10),
        "encoder_attention_mask": padded_mask(7, torch.bool),
        "context_latents": [torch.randn(2, 4, 4, 4)],
    }


def _consis_id() -> nn.Module:
    # An even depth: every second block, from the first, is followed by a face attention, of which there are depth / 2
    # rounded down. Their keys are two thirds of the model's width, rounded down, and LFE_output_dim has to be the same.
    return with_noise(
        ConsisIDTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=8,
            out_channels=4,
            time_embed_dim=12,
            text_embed_dim=10,
            num_layers=4,
            sample_width=6,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=5,
            use_rotary_positional_embeddings=True,
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
    )


def _consis_id_inputs() -> dict[str, Any]:
    # Channels: latents and the latents of the image; then what two scales of a face encoder say.
    return {
        "hidden_states": torch.randn(2, 2, 8, 4, 6),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "timestep": torch.tensor([701, 701]),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (2, 3)), grid_size=(2, 3), temporal_size=2),
        "id_vit_hidden": [torch.randn(2, 7, 8) for _ in range(2)],
        "id_cond": torch.randn(2, 14),
    }


CLASSES: dict[str, TinyClass] = {
    "AceStepTransformer1DModel": TinyClass(_ace_step, _ace_step_inputs),
    "AllegroTransformer3DModel": TinyClass(_allegro, _allegro_inputs),
    "AnyFlowTransformer3DModel": TinyClass(_any_flow, _any_flow_inputs),
    "AnyFlowFARTransformer3DModel": TinyClass(_any_flow_far, _any_flow_far_inputs),
    "BriaTransformer2DModel": TinyClass(_bria, _bria_inputs),
    "BriaFiboTransformer2DModel": TinyClass(_bria_fibo, _bria_fibo_inputs),
    "BriaFibo2Transformer2DModel": TinyClass(_bria_fibo2, _bria_fibo2_inputs),
    "ConsisIDTransformer3DModel": TinyClass(_consis_id, _consis_id_inputs),
}

LEFT_OUT: dict[str, str] = {}
