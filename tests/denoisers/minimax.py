"""MiniMax-H3 for video with sound and MiniMax-Music 3."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import latents_and_text
from denoisers.tiny_class import TinyClass


def minimax_h3() -> nn.Module:
    return diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        hidden_size=16,
        num_layers=3,
        num_refiner_layers=2,
        ffn_dim=24,
        in_channels=3,
        audio_in_channels=5,
        patch_size=(1, 2, 2),
        text_dim=10,
        freq_dim=8,
        time_embed_hidden_dim=20,
        time_embed_dim=12,
        # Six times this many numbers of each head are rotated.
        rope_freq_dim=1,
    )


def minimax_h3_inputs() -> dict[str, Any]:
    # One sequence of prompt, sound and video. The pipeline sends one request at a time, since the layout has no
    # dimension for rows; the class takes several rows of the same layout.
    text, audio, video = 7, 4, 6
    indices = torch.arange(text + audio + video)
    positions = torch.zeros(text + audio + video, 3, dtype=torch.float64)
    positions[:text, 0] = torch.arange(text)
    positions[text : text + audio, 0] = text + 0.5 * torch.arange(audio)
    positions[text + audio :, 0] = text
    positions[text + audio :, 1] = torch.arange(2).repeat_interleave(3)
    positions[text + audio :, 2] = torch.arange(3).repeat(2)
    return {
        "hidden_states": torch.randn(2, video, 12),
        "audio_hidden_states": torch.randn(2, audio, 5),
        "encoder_hidden_states": torch.randn(2, text, 10),
        # The distinct times of the sequence: of prompt and video, and of the sound, which runs on its own schedule.
        "timestep": torch.tensor([0.3, 0.4]),
        "timestep_indices": torch.tensor([0] * text + [1] * audio + [0] * video),
        # Kinds of tokens, of which each has its own modulation: 0 is video, 1 the prompt and 2 sound.
        "token_tags": torch.tensor([1] * text + [2] * audio + [0] * video),
        "position_ids": positions,
        "video_indices": indices[text + audio :],
        "audio_indices": indices[text : text + audio],
        "text_indices": indices[:text],
    }


def minimax_music3() -> nn.Module:
    return diffusers.MiniMaxMusic3Transformer1DModel(
        in_channels=6,
        condition_dim=10,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        ff_inner_dim=24,
        rotary_dim=4,
        fourier_embedding_dim=12,
    )


def minimax_music3_inputs() -> dict[str, Any]:
    # The condition has one vector for each latent, so the two have the same length; there are no text tokens.
    return latents_and_text(latents=(6, 11), text=(11, 10), timestep=0.3)


CLASSES: dict[str, TinyClass] = {
    "MiniMaxH3Transformer3DModel": TinyClass(minimax_h3, minimax_h3_inputs),
    "MiniMaxMusic3Transformer1DModel": TinyClass(minimax_music3, minimax_music3_inputs),
}
