"""Tiny denoisers of the ChronoEdit, Cosmos, EasyAnimate, Ernie, GLM, Helios and HiDream classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    Cosmos3OmniTransformer,
    CosmosTransformer3DModel,
    EasyAnimateTransformer3DModel,
    ErnieImageTransformer2DModel,
    GlmImageTransformer2DModel,
    HeliosTransformer3DModel,
    HiDreamImageTransformer2DModel,
)
from torch import nn

from denoisers.tiny_class import TinyClass
from denoisers.transformers_a import grid_ids, same_time, with_noise


def _chrono_edit() -> nn.Module:
    # in_channels: latents, latents of the given image, and 4 channels that say which frames are given. The head has to
    # be a multiple of 6, because the rotary embedding splits it once in sixths and once in thirds.
    return with_noise(
        ChronoEditTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=12,
            out_channels=4,
            text_dim=10,
            freq_dim=8,
            ffn_dim=20,
            num_layers=3,
            image_dim=14,
            added_kv_proj_dim=24,
            rope_max_seq_len=16,
        )
    )


def _chrono_edit_inputs() -> dict[str, Any]:
    # 512 text tokens: the attention splits image from text by that number, which is written into the class.
    return {
        "hidden_states": torch.randn(2, 12, 3, 4, 6),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 512, 10),
        "encoder_hidden_states_image": torch.randn(2, 4, 14),
    }


def _cosmos() -> nn.Module:
    # concat_padding_mask is off, unlike in the checkpoints: it needs torchvision, which these tests do without.
    return with_noise(
        CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=3,
            mlp_ratio=2.0,
            text_embed_dim=10,
            adaln_lora_dim=6,
            max_size=(4, 8, 8),
            concat_padding_mask=False,
        )
    )


def _cosmos_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "timestep": same_time(0.7),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "fps": 30,
    }


def _cosmos3() -> nn.Module:
    return with_noise(
        Cosmos3OmniTransformer(
            head_dim=8,
            hidden_size=16,
            intermediate_size=20,
            latent_channel=4,
            num_attention_heads=2,
            num_hidden_layers=3,
            num_key_value_heads=1,
            patch_latent_dim=16,
            sound_dim=5,
            sound_gen=True,
            vocab_size=11,
            rope_axes_dim=(2, 1, 1),
        )
    )


def _cosmos3_inputs() -> dict[str, Any]:
    # One sample, no batch axis: the class packs text, video and sound of a sample into one sequence without a mask, and
    # a pipeline calls it once per prompt. The sequence is 5 tokens of text, 3 frames of 6 tokens of which the first is
    # given (so not denoised), and 4 tokens of sound.
    text, frame, frames, sound = 5, 6, 3, 4
    video_start, sound_start = text, text + frames * frame
    time = torch.arange(frames).repeat_interleave(frame) + text + 10
    rows_and_columns = grid_ids(2, 3)[:, 1:].repeat(frames, 1)
    sound_places = torch.stack([torch.arange(sound) + text + 10.0, torch.zeros(sound), torch.zeros(sound)])
    return {
        "input_ids": torch.tensor([3, 1, 4, 1, 5]),
        "text_indexes": torch.arange(text),
        "position_ids": torch.cat(
            [torch.arange(text).float().expand(3, -1), torch.stack([time, *rows_and_columns.unbind(1)]), sound_places],
            dim=1,
        ),
        "und_len": text,
        "sequence_length": sound_start + sound,
        "vision_tokens": [torch.randn(1, 4, frames, 4, 6)],
        "vision_token_shapes": [(frames, 2, 3)],
        "vision_sequence_indexes": torch.arange(video_start, sound_start),
        "vision_mse_loss_indexes": torch.arange(video_start + frame, sound_start),
        "vision_timesteps": torch.full(((frames - 1) * frame,), 701.0),
        "vision_noisy_frame_indexes": [torch.tensor([1, 2])],
        "sound_tokens": [torch.randn(5, sound)],
        "sound_token_shapes": [(sound, 1, 1)],
        "sound_sequence_indexes": torch.arange(sound_start, sound_start + sound),
        "sound_mse_loss_indexes": torch.arange(sound_start, sound_start + sound),
        "sound_timesteps": torch.full((sound,), 701.0),
        "sound_noisy_frame_indexes": [torch.arange(sound)],
    }


def _easy_animate() -> nn.Module:
    # Two blocks with weights of their own for the text, then two that share theirs.
    return with_noise(
        EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            num_layers=4,
            mmdit_layers=2,
            time_embed_dim=12,
            text_embed_dim=10,
        )
    )


def _easy_animate_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
    }


def _ernie_image() -> nn.Module:
    return with_noise(
        ErnieImageTransformer2DModel(
            hidden_size=16,
            num_attention_heads=2,
            num_layers=3,
            ffn_hidden_size=20,
            in_channels=4,
            out_channels=4,
            text_in_dim=10,
            rope_axes_dim=(4, 2, 2),
        )
    )


def _ernie_image_inputs() -> dict[str, Any]:
    text = torch.randn(2, 5, 10)
    text[0, 3:] = 0.0
    return {
        "hidden_states": torch.randn(2, 4, 2, 3),
        "timestep": same_time(701.0),
        "text_bth": text,
        "text_lens": torch.tensor([3, 5]),
    }


def _glm_image() -> nn.Module:
    return with_noise(
        GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=10,
            time_embed_dim=12,
            condition_dim=4,
            prior_vq_quantizer_codebook_size=11,
        )
    )


def _glm_image_inputs() -> dict[str, Any]:
    # Each image token has a token of a language model as its prior; the unconditional pass drops them all.
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "prior_token_id": torch.randint(0, 11, (2, 6)),
        "prior_token_drop": torch.zeros(2, 6, dtype=torch.bool),
        "timestep": same_time(700.0),
        "target_size": torch.tensor([[32.0, 48.0]] * 2),
        "crop_coords": torch.zeros(2, 2),
    }


def _helios() -> nn.Module:
    return with_noise(
        HeliosTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=10,
            freq_dim=8,
            ffn_dim=20,
            num_layers=3,
            rope_dim=(4, 4, 4),
        )
    )


def _helios_inputs() -> dict[str, Any]:
    # Earlier frames come before the new ones in the sequence, the older the coarser: 4 frames make 1 token, 2 make 2,
    # and 2 (the first of all and the last) make 6 each, as each of the 2 new ones does. Places have one row.
    places = torch.arange(10).unsqueeze(0)
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "timestep": same_time(701.0),
        "encoder_hidden_states": torch.randn(2, 5, 10),
        "indices_hidden_states": places[:, 8:],
        "indices_latents_history_short": places[:, [0, 7]],
        "indices_latents_history_mid": places[:, 5:7],
        "indices_latents_history_long": places[:, 1:5],
        "latents_history_short": torch.randn(2, 4, 2, 4, 6),
        "latents_history_mid": torch.randn(2, 4, 2, 4, 6),
        "latents_history_long": torch.randn(2, 4, 4, 4, 6),
    }


def _hidream() -> nn.Module:
    # caption_channels: widths of the T5 states and of the Llama states, of which each block takes a layer of its own.
    return with_noise(
        HiDreamImageTransformer2DModel(
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
    )


def _hidream_inputs() -> dict[str, Any]:
    # The image is not square, so the class itself pads its 6 tokens to the 8 of the greatest resolution, with a mask.
    return {
        "hidden_states": torch.randn(2, 4, 4, 6),
        "timesteps": same_time(701.0),
        "encoder_hidden_states_t5": torch.randn(2, 5, 10),
        "encoder_hidden_states_llama3": torch.randn(4, 2, 3, 12),
        "pooled_embeds": torch.randn(2, 14),
    }


CLASSES: dict[str, TinyClass] = {
    "ChronoEditTransformer3DModel": TinyClass(_chrono_edit, _chrono_edit_inputs),
    "CosmosTransformer3DModel": TinyClass(_cosmos, _cosmos_inputs),
    "Cosmos3OmniTransformer": TinyClass(_cosmos3, _cosmos3_inputs),
    "EasyAnimateTransformer3DModel": TinyClass(_easy_animate, _easy_animate_inputs),
    "ErnieImageTransformer2DModel": TinyClass(_ernie_image, _ernie_image_inputs),
    "GlmImageTransformer2DModel": TinyClass(_glm_image, _glm_image_inputs),
    "HeliosTransformer3DModel": TinyClass(_helios, _helios_inputs),
    "HiDreamImageTransformer2DModel": TinyClass(_hidream, _hidream_inputs),
}

LEFT_OUT: dict[str, str] = {
    "DreamLiteTransformer2DModel": (
        "no denoiser of its own: the attention part of the DreamLite U-Net's blocks, which takes hidden states in the "
        "middle of that network and uses no timestep with its default norm; no pipeline calls it"
    ),
}
