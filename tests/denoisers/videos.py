"""Denoisers of videos whose class stands alone: Allegro, Cosmos, Cosmos 3 with sound, EasyAnimate, Mochi and Motif."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import nn

from denoisers.inputs import grid_ids, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass


def allegro() -> nn.Module:
    # cross_attention_dim has to be the width; the head is split in three for the rotary embedding.
    return diffusers.AllegroTransformer3DModel(
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


def allegro_inputs() -> dict[str, Any]:
    *frequencies, frames, rows, columns = get_3d_rotary_pos_embed_allegro(
        12, ((0, 0), (2, 3)), (2, 3), 2, interpolation_scale=(2.2, 2.0, 2.0)
    )
    places = torch.cartesian_prod(frames.long(), rows.long(), columns.long())
    return latents_and_text(latents=(4, 2, 4, 6), text=(5, 10), timestep=701) | {
        "encoder_attention_mask": padding_mask(3, 5),
        "image_rotary_emb": (tuple(frequencies), tuple(axis.unsqueeze(0) for axis in places.unbind(1))),
    }


def cosmos() -> nn.Module:
    # concat_padding_mask is off, unlike in the checkpoints: it needs torchvision, which these tests do without.
    return diffusers.CosmosTransformer3DModel(
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


def cosmos_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 2, 4, 6), text=(5, 10), timestep=0.7) | {"fps": 30}


def cosmos3() -> nn.Module:
    return diffusers.Cosmos3OmniTransformer(
        head_dim=8,
        hidden_size=16,
        intermediate_size=20,
        latent_channel=4,
        num_attention_heads=2,
        num_hidden_layers=3,
        num_key_value_heads=1,
        patch_latent_dim=16,
        sound_gen=True,
        sound_dim=5,
        vocab_size=11,
        rope_axes_dim=(2, 1, 1),
    )


def cosmos3_inputs() -> dict[str, Any]:
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


def easy_animate() -> nn.Module:
    # Two blocks with weights of their own for the text, then two that share theirs.
    return diffusers.EasyAnimateTransformer3DModel(
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


def easy_animate_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 2, 4, 6), text=(5, 10), timestep=701.0)


def mochi() -> nn.Module:
    return diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=12,
        in_channels=4,
        # The pooling of the prompt has always eight heads.
        text_embed_dim=24,
        time_embed_dim=8,
        max_sequence_length=7,
    )


def mochi_inputs() -> dict[str, Any]:
    return latents_and_text(latents=(4, 2, 4, 6), text=(7, 24), timestep=299.0) | {
        "encoder_attention_mask": padding_mask(7, 5, torch.bool),
    }


def motif_video() -> nn.Module:
    """Motif from picture to video, with attention to the prompt and a decoder in its last single blocks."""
    return diffusers.MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        num_single_layers=5,
        num_decoder_layers=2,
        mlp_ratio=2.0,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=10,
        image_embed_dim=6,
        rope_axes_dim=(4, 2, 2),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )


def motif_video_inputs() -> dict[str, Any]:
    # Channels: noisy latents, latents of the given picture, and one that marks the given frame.
    return latents_and_text(latents=(9, 2, 4, 6), text=(7, 10), timestep=701.0) | {
        "encoder_attention_mask": padding_mask(7, 5),
        "image_embeds": torch.randn(2, 3, 6),
    }


CLASSES: dict[str, TinyClass] = {
    "AllegroTransformer3DModel": TinyClass(allegro, allegro_inputs),
    "Cosmos3OmniTransformer": TinyClass(cosmos3, cosmos3_inputs),
    "CosmosTransformer3DModel": TinyClass(cosmos, cosmos_inputs),
    "EasyAnimateTransformer3DModel": TinyClass(easy_animate, easy_animate_inputs),
    "MochiTransformer3DModel": TinyClass(mochi, mochi_inputs),
    "MotifVideoTransformer3DModel": TinyClass(motif_video, motif_video_inputs),
}
