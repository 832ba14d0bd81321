"""Denoisers of sound: ACE-Step, LongCat-Audio, Stable Audio, spectrogram diffusion and Dance Diffusion."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import both_rows, latents_and_text, padding_mask
from denoisers.tiny_class import TinyClass


def ace_step() -> nn.Module:
    # Layers take turns at a sliding window and at full attention.
    return diffusers.AceStepTransformer1DModel(
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


def ace_step_inputs() -> dict[str, Any]:
    # 13 frames make 7 tokens: the last patch is padded. The context is the source latents and a mask of as many
    # channels that says what to make anew.
    return latents_and_text(latents=(13, 4), text=(5, 10), timestep=0.7) | {
        "timestep_r": both_rows(0.7),
        "context_latents": torch.cat([torch.randn(2, 13, 4), torch.ones(2, 13, 4)], dim=-1),
    }


def longcat_audio() -> nn.Module:
    return diffusers.LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=3, dit_heads=2, dit_text_dim=10, latent_dim=6, ff_mult=2.0
    )


def longcat_audio_inputs() -> dict[str, Any]:
    # The second piece is two latents shorter.
    return latents_and_text(latents=(11, 6), text=(7, 10), timestep=0.7) | {
        "encoder_attention_mask": padding_mask(7, 5),
        "attention_mask": padding_mask(11, 9, torch.bool),
        "latent_cond": torch.randn(2, 11, 6),
    }


def stable_audio(conditions: int = 14, text: int = 10) -> nn.Module:
    """The layout of Stable Audio Open; two query heads share one key/value head.

    Args:
        conditions: width of begin and end of the sound, embedded.
        text: width of the text's tokens.
    """
    return diffusers.StableAudioDiTModel(
        sample_size=12,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=conditions,
        cross_attention_input_dim=text,
    )


def stable_audio_inputs() -> dict[str, Any]:
    """Twelve latents (thirteen tokens with the global one), one timestep for both rows of guidance."""
    angles = torch.outer(torch.arange(13.0), 100.0 ** -torch.linspace(0, 1, 4)).repeat(1, 2)
    return latents_and_text(latents=(4, 12), text=(7, 10), timestep=torch.tensor([0.61])) | {
        "global_hidden_states": torch.randn(2, 1, 14),
        "rotary_embedding": (angles.cos(), angles.sin()),
        "return_dict": False,
    }


def stable_audio_3() -> nn.Module:
    """The layout of Stable Audio 3: memory tokens and attention that subtracts a second attention."""
    return diffusers.StableAudio3DiTModel(
        io_channels=4,
        patch_size=1,
        embed_dim=24,
        depth=3,
        num_heads=2,
        cond_token_dim=10,
        global_cond_dim=14,
        local_add_cond_dim=5,
        timestep_features_dim=8,
        ff_mult=2.0,
        use_differential_attention=True,
        num_memory_tokens=5,
    )


def stable_audio_3_inputs() -> dict[str, Any]:
    """Twelve latents with the mask and the latents to keep, as for inpainting; the first row's text is padded."""
    return latents_and_text(latents=(4, 12), text=(7, 10), timestep=0.61) | {
        "global_hidden_states": torch.randn(2, 14),
        "encoder_attention_mask": padding_mask(3, 7),
        "local_add_cond": torch.randn(2, 5, 12),
        "return_dict": False,
    }


def t5_film_decoder() -> nn.Module:
    """The decoder of the spectrogram diffusion pipeline."""
    return diffusers.T5FilmDecoder(
        input_dims=6,
        targets_length=12,
        max_decoder_noise_time=2000.0,
        d_model=16,
        num_layers=3,
        num_heads=2,
        d_kv=8,
        d_ff=24,
    )


def t5_film_decoder_inputs() -> dict[str, Any]:
    """Twelve frames of a spectrogram, encoded notes (the first row padded) and the encoded frames before."""
    return {
        "encodings_and_masks": [
            (torch.randn(2, 7, 16), padding_mask(5, 7, torch.bool)),
            (torch.randn(2, 4, 16), padding_mask(4, 4, torch.bool)),
        ],
        "decoder_input_tokens": torch.randn(2, 12, 6),
        "decoder_noise_time": both_rows(0.61),
    }


def unet_1d() -> nn.Module:
    """The layout of Dance Diffusion; its attention has one head per 32 channels, so 64 channels give two heads."""
    return diffusers.UNet1DModel(
        sample_size=64,
        in_channels=2,
        out_channels=2,
        # The first block takes the embedded timestep as further channels of the sample.
        extra_in_channels=16,
        time_embedding_type="fourier",
        time_embedding_dim=16,
        flip_sin_to_cos=True,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        mid_block_type="UNetMidBlock1D",
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        block_out_channels=(32, 32, 64),
    )


def unet_1d_inputs() -> dict[str, Any]:
    """A stereo waveform and a timestep that the scheduler counts from 1 to 0."""
    return {"sample": torch.randn(2, 2, 64), "timestep": torch.tensor(0.61), "return_dict": False}


CLASSES: dict[str, TinyClass] = {
    "AceStepTransformer1DModel": TinyClass(ace_step, ace_step_inputs),
    "LongCatAudioDiTTransformer": TinyClass(longcat_audio, longcat_audio_inputs),
    "StableAudio3DiTModel": TinyClass(stable_audio_3, stable_audio_3_inputs),
    "StableAudioDiTModel": TinyClass(stable_audio, stable_audio_inputs),
    "T5FilmDecoder": TinyClass(t5_film_decoder, t5_film_decoder_inputs),
    "UNet1DModel": TinyClass(unet_1d, unet_1d_inputs),
}
