"""Tiny pipelines of U-Nets for videos: Stable Video Diffusion and AnimateDiff."""

from __future__ import annotations

from typing import Any

from denoisers.all_classes import CLASSES
from diffusers import AnimateDiffPipeline, DDIMScheduler, EulerDiscreteScheduler, StableVideoDiffusionPipeline

from festina.zoo.components import build_clip_tokenizer
from pipelines.parts_images import HEIGHT, NEGATIVE, WIDTH, pictures, prompts, quiet, run, seeded, vae
from pipelines.parts_images_text import clip_text
from pipelines.parts_videos import clip_pictures, clip_vision, frames_of, vae_temporal_decoder
from pipelines.tiny_pipeline import TinyPipeline


def build_svd() -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion, whose only condition is a picture."""
    return quiet(
        StableVideoDiffusionPipeline(
            vae=vae_temporal_decoder(),
            image_encoder=clip_vision(8, projected=12),
            unet=seeded(CLASSES["UNetSpatioTemporalConditionModel"].build, 0),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                timestep_type="continuous",
                timestep_spacing="leading",
                steps_offset=1,
                use_karras_sigmas=True,
                sigma_min=0.002,
                sigma_max=700.0,
            ),
            feature_extractor=clip_pictures(),
        )
    )


def call_svd(steps: int, batch: int) -> dict[str, Any]:
    """A run of three frames with both halves of the guidance in one batch.

    The picture is as large as its encoder takes, since the pipeline leaves tensors there as they are.
    """
    return run(steps, image=pictures(batch, 16, 16), height=HEIGHT, width=WIDTH, num_frames=3, output_type="latent")


def build_animatediff() -> AnimateDiffPipeline:
    """AnimateDiff whose motion modules are in the U-Net already."""
    return quiet(
        AnimateDiffPipeline(
            vae=vae(),
            text_encoder=clip_text(12),
            tokenizer=build_clip_tokenizer(),
            unet=seeded(CLASSES["UNetMotionModel"].build, 0),
            motion_adapter=None,
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="linear",
                clip_sample=False,
                timestep_spacing="linspace",
                steps_offset=1,
            ),
        )
    )


def call_animatediff(steps: int, batch: int) -> dict[str, Any]:
    """A run of three frames with both halves of the guidance in one batch."""
    texts = {"prompt": prompts(batch), "negative_prompt": [NEGATIVE] * batch, "guidance_scale": 5.0}
    return run(steps, height=HEIGHT, width=WIDTH, num_frames=3, output_type="latent", **texts)


PIPELINES: dict[str, TinyPipeline] = {
    "svd": TinyPipeline(build_svd, call_svd, frames_of, ("unet",), rows=2),
    "animatediff": TinyPipeline(build_animatediff, call_animatediff, frames_of, ("unet",), rows=2),
}

LEFT_OUT: dict[str, str] = {}
