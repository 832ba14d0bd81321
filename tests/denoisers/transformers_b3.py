"""Tiny denoisers: younger transformers of video with sound, of video alone, and of music."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_kandinsky6 import Kandinsky6Transformer3DModel
from diffusers.models.transformers.transformer_kandinsky6_sr import Kandinsky6SRTransformer3DModel
from diffusers.models.transformers.transformer_longcat_audio_dit import LongCatAudioDiTTransformer
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed, LTX2VideoTransformer3DModel
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel
from diffusers.models.transformers.transformer_minimax_music3 import MiniMaxMusic3Transformer1DModel
from diffusers.models.transformers.transformer_motif_video import MotifVideoTransformer3DModel
from torch import nn

from denoisers.tiny_class import TinyClass
from denoisers.transformers_b import text_mask, with_noise


def kandinsky6() -> nn.Module:
    return with_noise(
        Kandinsky6Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=10,
            in_text_dim2=6,
            time_dim=12,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=24,
            num_text_blocks=2,
            num_visual_blocks=3,
            axes_dims=(4, 2, 2),
            visual_cond=True,
            in_audio_dim=5,
            out_audio_dim=5,
            model_dim_a=8,
            # The stream of the picture is modulated by the time of the sound as well, so both have the same width.
            time_dim_a=12,
            ff_dim_a=12,
            axes_dims_a=(2, 1, 1),
            visual_token_type_num_embeddings=2,
        )
    )


def kandinsky6_inputs() -> dict[str, Any]:
    # Two frames, and behind them the given first frame, told apart by its type and by the last channel.
    condition = torch.zeros(2, 3, 4, 6, 5)
    condition[:, -1, ..., -1] = 1.0
    return {
        "hidden_states": torch.cat([torch.randn(2, 3, 4, 6, 4), condition], dim=-1),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "pooled_projections": torch.randn(2, 6),
        "timestep": torch.tensor([701.0, 701.0]),
        "audio_hidden_states": torch.randn(2, 5, 5),
        "visual_rope_pos": (torch.tensor([0, 1, 0]), torch.arange(2), torch.arange(3)),
        "encoder_attention_mask": text_mask(7, 5, torch.bool),
        "visual_token_type_ids": torch.tensor([[0, 0, 1], [0, 0, 1]]),
    }


def kandinsky6_sr() -> nn.Module:
    return with_noise(
        Kandinsky6SRTransformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            time_dim=12,
            patch_size=(1, 1, 1),
            # Attention in blocks needs heads of 16 numbers or more.
            model_dim=32,
            ff_dim=24,
            num_visual_blocks=3,
            axes_dims=(4, 6, 6),
            nabla_window=(1, 1, 1),
            tile_sizes=((64, 64),),
        )
    )


def kandinsky6_sr_inputs() -> dict[str, Any]:
    # The attention works on squares of 8 by 8 tokens; two of them are the least that leaves it something to choose.
    latents = torch.cat([torch.randn(2, 2, 8, 8, 4), torch.zeros(2, 2, 8, 8, 5)], dim=-1)
    return {"hidden_states": latents, "timestep": torch.tensor([701.0, 701.0])}


def longcat_audio() -> nn.Module:
    return with_noise(
        LongCatAudioDiTTransformer(
            dit_dim=16,
            dit_depth=3,
            dit_heads=2,
            dit_text_dim=10,
            latent_dim=6,
            ff_mult=2.0,
        )
    )


def longcat_audio_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 11, 6),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_attention_mask": text_mask(7, 5),
        "timestep": torch.tensor([0.7, 0.7]),
        # The second piece is two latents shorter.
        "attention_mask": text_mask(11, 9, torch.bool),
        "latent_cond": torch.randn(2, 11, 6),
    }


def ltx2() -> nn.Module:
    """LTX-2 with the gates and the modulated prompt of its later versions."""
    return with_noise(
        LTX2VideoTransformer3DModel(
            in_channels=6,
            out_channels=6,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            gated_attn=True,
            cross_attn_mod=True,
            audio_in_channels=5,
            audio_out_channels=5,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            audio_gated_attn=True,
            audio_cross_attn_mod=True,
            num_layers=3,
            caption_channels=10,
            rope_type="split",
        )
    )


def ltx2_inputs() -> dict[str, Any]:
    # The model makes the same coordinates from the numbers of frames, rows and columns; pipelines make them beforehand.
    video_rope = LTX2AudioVideoRotaryPosEmbed(dim=16, modality="video", num_attention_heads=2)
    audio_rope = LTX2AudioVideoRotaryPosEmbed(dim=8, modality="audio", num_attention_heads=2, scale_factors=(4,))
    cpu = torch.device("cpu")
    return {
        "hidden_states": torch.randn(2, 2 * 2 * 3, 6),
        "audio_hidden_states": torch.randn(2, 5, 5),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "audio_encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.tensor([701.0, 701.0]),
        "sigma": torch.tensor([701.0, 701.0]),
        "encoder_attention_mask": text_mask(7, 5),
        "audio_encoder_attention_mask": text_mask(7, 5),
        "num_frames": 2,
        "height": 2,
        "width": 3,
        "fps": 24.0,
        "audio_num_frames": 5,
        "video_coords": video_rope.prepare_video_coords(2, 2, 2, 3, cpu, fps=24.0),
        "audio_coords": audio_rope.prepare_audio_coords(2, 5, cpu),
        "use_cross_timestep": True,
    }


def minimax_h3() -> nn.Module:
    return with_noise(
        MiniMaxH3Transformer3DModel(
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
    return with_noise(
        MiniMaxMusic3Transformer1DModel(
            in_channels=6,
            condition_dim=10,
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=8,
            ff_inner_dim=24,
            rotary_dim=4,
            fourier_embedding_dim=12,
        )
    )


def minimax_music3_inputs() -> dict[str, Any]:
    # The condition has one vector for each latent, so the two have the same length; there are no text tokens.
    return {
        "hidden_states": torch.randn(2, 6, 11),
        "timestep": torch.tensor([0.3, 0.3]),
        "encoder_hidden_states": torch.randn(2, 11, 10),
    }


def motif_video() -> nn.Module:
    """Motif from picture to video, with attention to the prompt and a decoder in its last single blocks."""
    return with_noise(
        MotifVideoTransformer3DModel(
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
    )


def motif_video_inputs() -> dict[str, Any]:
    return {
        # Noisy latents, latents of the given picture, and one channel that marks the given frame.
        "hidden_states": torch.randn(2, 9, 2, 4, 6),
        "timestep": torch.tensor([701.0, 701.0]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_attention_mask": text_mask(7, 5),
        "image_embeds": torch.randn(2, 3, 6),
    }


CLASSES: dict[str, TinyClass] = {
    "Kandinsky6SRTransformer3DModel": TinyClass(kandinsky6_sr, kandinsky6_sr_inputs),
    "Kandinsky6Transformer3DModel": TinyClass(kandinsky6, kandinsky6_inputs),
    "LTX2VideoTransformer3DModel": TinyClass(ltx2, ltx2_inputs),
    "LongCatAudioDiTTransformer": TinyClass(longcat_audio, longcat_audio_inputs),
    "MiniMaxH3Transformer3DModel": TinyClass(minimax_h3, minimax_h3_inputs),
    "MiniMaxMusic3Transformer1DModel": TinyClass(minimax_music3, minimax_music3_inputs),
    "MotifVideoTransformer3DModel": TinyClass(motif_video, motif_video_inputs),
}

LEFT_OUT: dict[str, str] = {
    "MiniMaxMusic3RVQDepthDecoder": (
        "no denoiser: it takes no time, and samples the codes of one frame of sound one after the other, "
        "before the sampling loop of the music transformer begins"
    ),
}
