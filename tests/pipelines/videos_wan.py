"""Tiny pipelines of the Wan family: Wan 2.1, Wan 2.2 with two denoisers, image to video, and SkyReels V2."""

from __future__ import annotations

from typing import Any

import transformers
from denoisers.all_classes import CLASSES
from denoisers.wan import WAN_TEXT_TOKENS
from diffusers import SkyReelsV2Pipeline, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

from pipelines.parts_images import NEGATIVE, pictures, prompts, quiet, run, seeded
from pipelines.parts_images_text import t5_text, t5_tokenizer
from pipelines.parts_videos import (
    VIDEO_HEIGHT,
    VIDEO_WIDTH,
    clip_pictures,
    clip_vision,
    embedded_prompts,
    frames_of,
    vae_wan,
)
from pipelines.tiny_pipeline import TinyPipeline

SIZES = {"height": VIDEO_HEIGHT, "width": VIDEO_WIDTH, "num_frames": 9}
"""Three latent frames of two by four, two tokens each."""

BOUNDARY = 0.875
"""Where Wan 2.2 text to video changes its denoiser: with the shift 3 after 2 of 4 steps and after 3 of 8."""


def _parts(shift: float) -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_text(10, transformers.UMT5EncoderModel),
        "vae": vae_wan(),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift),
    }


def build_wan() -> WanPipeline:
    """Wan 2.1 from text, of 480 lines."""
    return quiet(WanPipeline(transformer=seeded(CLASSES["WanTransformer3DModel"].build, 0), **_parts(3.0)))


def build_wan22() -> WanPipeline:
    """Wan 2.2 of 14 billion parameters: one denoiser for the early, noisy steps and another for the rest."""
    return quiet(
        WanPipeline(
            transformer=seeded(CLASSES["WanTransformer3DModel"].build, 0),
            transformer_2=seeded(CLASSES["WanTransformer3DModel"].build, 5),
            boundary_ratio=BOUNDARY,
            **_parts(3.0),
        )
    )


def build_wan22_5b() -> WanPipeline:
    """Wan 2.2 of 5 billion parameters, whose denoiser gets a timestep for every token."""
    transformer = seeded(CLASSES["WanTransformer3DModel"].build, 0)
    return quiet(WanPipeline(transformer=transformer, expand_timesteps=True, **_parts(5.0)))


def call_wan(steps: int, batch: int) -> dict[str, Any]:
    """A run with the negative prompt in a call of its own."""
    texts = {"prompt": prompts(batch), "negative_prompt": [NEGATIVE] * batch, "max_sequence_length": 20}
    return run(steps, guidance_scale=5.0, output_type="latent", **texts, **SIZES)


def call_wan22(steps: int, batch: int) -> dict[str, Any]:
    """The same with another scale of guidance for the second denoiser."""
    return {**call_wan(steps, batch), "guidance_scale": 4.0, "guidance_scale_2": 3.0}


def build_wan_i2v() -> WanImageToVideoPipeline:
    """Wan 2.1 from a picture, whose embedding the denoiser attends to."""
    return quiet(
        WanImageToVideoPipeline(
            transformer=seeded(CLASSES["WanTransformer3DModel-image"].build, 0),
            image_encoder=clip_vision(14),
            image_processor=clip_pictures(),
            **_parts(3.0),
        )
    )


def call_wan_i2v(steps: int, batch: int) -> dict[str, Any]:
    """A run from one picture, which all prompts share, and 512 embedded tokens, as many as the denoiser counts on."""
    texts = embedded_prompts(batch, WAN_TEXT_TOKENS, 10)
    picture = pictures(1, VIDEO_HEIGHT, VIDEO_WIDTH)
    return run(steps, image=picture, guidance_scale=5.0, output_type="latent", **texts, **SIZES)


def build_skyreels_v2() -> SkyReelsV2Pipeline:
    """SkyReels V2 from text, the model without diffusion forcing."""
    return quiet(
        SkyReelsV2Pipeline(transformer=seeded(CLASSES["SkyReelsV2Transformer3DModel"].build, 0), **_parts(8.0))
    )


def call_skyreels_v2(steps: int, batch: int) -> dict[str, Any]:
    """A run from embedded prompts, the negative ones in a call of their own."""
    return run(steps, guidance_scale=6.0, output_type="latent", **embedded_prompts(batch, 20, 10), **SIZES)


PIPELINES: dict[str, TinyPipeline] = {
    "wan": TinyPipeline(build_wan, call_wan, frames_of, calls_per_step=2),
    "wan22": TinyPipeline(build_wan22, call_wan22, frames_of, ("transformer", "transformer_2"), calls_per_step=2),
    "wan22-5b": TinyPipeline(build_wan22_5b, call_wan, frames_of, calls_per_step=2),
    "wan-i2v": TinyPipeline(build_wan_i2v, call_wan_i2v, frames_of, calls_per_step=2),
    "skyreels-v2": TinyPipeline(build_skyreels_v2, call_skyreels_v2, frames_of, calls_per_step=2),
}

LEFT_OUT: dict[str, str] = {}
