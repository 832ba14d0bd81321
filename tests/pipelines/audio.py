"""Tiny pipelines that make sounds: Stable Audio and AudioLDM 2."""

from __future__ import annotations

from typing import Any

import transformers
from denoisers.audio import stable_audio
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderOobleck,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    StableAudioPipeline,
    StableAudioProjectionModel,
)

from pipelines.parts_images import NEGATIVE, denoiser, prompts, quiet, run, seeded, vae
from pipelines.parts_images_text import byte_level, t5_text, t5_tokenizer
from pipelines.parts_videos import audios_of
from pipelines.tiny_pipeline import TinyPipeline


def build_stable_audio() -> StableAudioPipeline:
    """Stable Audio Open.

    With the scheduler class that the pipeline declares; the checkpoints name its sibling that adds noise in each step,
    CosineDPMSolverMultistepScheduler, which needs the torchsde package.
    """
    transformer = denoiser(
        # Begin and end of the sound, embedded by the projection model.
        lambda: stable_audio(conditions=2 * 12, text=12)
    )
    autoencoder = seeded(
        lambda: AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 2],
            decoder_channels=8,
            decoder_input_channels=4,
            # Twelve latents of four samples are three seconds.
            sampling_rate=16,
        ),
        1,
    )
    projection = seeded(
        lambda: StableAudioProjectionModel(text_encoder_dim=10, conditioning_dim=12, min_value=0, max_value=8), 7
    )
    return quiet(
        StableAudioPipeline(
            vae=autoencoder,
            text_encoder=t5_text(10),
            projection_model=projection,
            tokenizer=t5_tokenizer(),
            transformer=transformer,
            scheduler=EDMDPMSolverMultistepScheduler(
                sigma_min=0.3,
                sigma_max=500.0,
                sigma_data=1.0,
                sigma_schedule="exponential",
                prediction_type="v_prediction",
            ),
        )
    )


def call_stable_audio(steps: int, batch: int) -> dict[str, Any]:
    """A run of three seconds with both halves of the guidance in one batch."""
    texts = {"prompt": prompts(batch), "negative_prompt": [NEGATIVE] * batch, "guidance_scale": 5.0}
    return run(steps, audio_end_in_s=3.0, output_type="latent", **texts)


def _roberta_tokenizer() -> Any:
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocabulary, merges = byte_level(special)
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=20)


def _clap(tokenizer: Any, width: int) -> transformers.ClapModel:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        # Positions count from the one behind that of the padding token.
        "max_position_embeddings": tokenizer.pad_token_id + 1 + tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_factor": 10.0,
        "projection_dim": width,
    }
    audio = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "patch_size": 2,
        "patch_stride": [2, 2],
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "projection_dim": width,
    }
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=width)
    return seeded(lambda: transformers.ClapModel(config), 2)


def build_audioldm2() -> AudioLDM2Pipeline:
    """AudioLDM 2: a language model writes the first condition from two text encodings, the T5 text is the second."""
    tokenizer = _roberta_tokenizer()
    written, read = 12, 10
    unet = denoiser(
        lambda: AudioLDM2UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            attention_head_dim=2,
            # Behind each layer three transformers: for the sound itself, the written condition and the text.
            cross_attention_dim=((None, written, read),) * 3,
        )
    )
    language = transformers.GPT2Config(
        vocab_size=16,
        n_positions=64,
        n_embd=written,
        n_layer=2,
        n_head=2,
        max_new_tokens=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    vocoder = transformers.SpeechT5HifiGanConfig(
        model_in_dim=16,
        sampling_rate=16000,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    return quiet(
        AudioLDM2Pipeline(
            vae=vae(in_channels=1, out_channels=1),
            text_encoder=_clap(tokenizer, 14),
            text_encoder_2=t5_text(read),
            projection_model=seeded(lambda: AudioLDM2ProjectionModel(14, read, written), 7),
            language_model=seeded(lambda: transformers.GPT2LMHeadModel(language), 4),
            tokenizer=tokenizer,
            tokenizer_2=t5_tokenizer(),
            feature_extractor=transformers.ClapFeatureExtractor(feature_size=8, sampling_rate=16000),
            unet=unet,
            scheduler=DDIMScheduler(
                beta_start=0.0015,
                beta_end=0.0195,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            vocoder=seeded(lambda: transformers.SpeechT5HifiGan(vocoder), 8),
        )
    )


def call_audioldm2(steps: int, batch: int) -> dict[str, Any]:
    """A run of 8 by 8 latents (four milliseconds) with both halves of the guidance in one batch."""
    texts = {"prompt": prompts(batch), "negative_prompt": [NEGATIVE] * batch, "guidance_scale": 3.5}
    # Sixteen frames of four samples.
    return run(steps, audio_length_in_s=16 * 4 / 16000, output_type="latent", **texts)


PIPELINES: dict[str, TinyPipeline] = {
    "stable-audio": TinyPipeline(build_stable_audio, call_stable_audio, audios_of, rows=2),
    "audioldm2": TinyPipeline(build_audioldm2, call_audioldm2, audios_of, ("unet",), rows=2),
}

LEFT_OUT: dict[str, str] = {}
