"""The untrained parts of the `scenes` pipeline: stock diffusers and transformers classes at small sizes."""

from __future__ import annotations

import string

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from festina.zoo import grammar

TEXT_WIDTH = 128
LATENT_CHANNELS = 4
LATENT_SIZE = 16

CAPTION_TOKENS = 20
"""Longest caption of the grammar in tokens, with the end token."""


def build_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that knows the grammar's words whole and spells everything else."""
    words = [*grammar.SHAPES, *grammar.COLOURS, *grammar.SIZES, *grammar.BACKGROUNDS]
    words += [word for relation in grammar.RELATIONS for word in relation.split()]
    words += ["a", "an", "on", "background", "and", "the", "to", "with"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -4.0) for word in dict.fromkeys(words)]
    pieces += [(letter, -9.0) for letter in string.ascii_letters + string.digits + ".,;:!?'-()"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=CAPTION_TOKENS)


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """Three T5 encoder layers, 128 wide."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def build_vae() -> AutoencoderKL:
    """64 x 64 RGB to 16 x 16 x 4 and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
    )


def build_transformer() -> PixArtTransformer2DModel:
    """Eight blocks of self-attention, cross-attention and feed-forward, 192 wide, 64 tokens; starts by predicting 0."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=8,
        cross_attention_dim=192,
        caption_channels=TEXT_WIDTH,
        sample_size=LATENT_SIZE,
        patch_size=2,
        use_additional_conditions=False,
    )
    torch.nn.init.zeros_(transformer.proj_out.weight)
    return transformer


def build_scheduler() -> DPMSolverMultistepScheduler:
    """PixArt's own sampler, DPM-Solver++ (2M), on the linear noise schedule, predicting v."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
    )
