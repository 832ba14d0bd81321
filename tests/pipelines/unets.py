"""Tiny pipelines around U-Nets: Stable Diffusion 1.5, 2 and XL, ControlNet, and DDIM without a condition."""

from __future__ import annotations

from typing import Any

import torch
from denoisers.all_classes import CLASSES
from denoisers.tiny_class import with_noise
from diffusers import (
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from festina.zoo.components import build_clip_tokenizer
from pipelines.parts_images import HEIGHT, WIDTH, images_of, pictures, prompts, quiet, run, seeded, vae
from pipelines.parts_images_text import clip_text
from pipelines.tiny_pipeline import TinyPipeline

NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""What the checkpoints of Stable Diffusion set in their schedulers."""


def _sd_parts() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip_text(12),
        "tokenizer": build_clip_tokenizer(),
        "unet": seeded(CLASSES["UNet2DConditionModel"].build, 0),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _pndm() -> PNDMScheduler:
    # Its first entry runs twice, so that 4 steps are 5 entries.
    return PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **NOISE_SCHEDULE)


def build_sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5."""
    return quiet(StableDiffusionPipeline(scheduler=_pndm(), **_sd_parts()))


def build_sd2() -> StableDiffusionPipeline:
    """Stable Diffusion 2.1 of 768 pixels, whose U-Net predicts v."""
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, **NOISE_SCHEDULE
    )
    return quiet(StableDiffusionPipeline(scheduler=scheduler, **_sd_parts()))


def call_text(steps: int, batch: int) -> dict[str, Any]:
    """A run from a prompt with both halves of the guidance in one batch."""
    return run(steps, prompt=prompts(batch), height=HEIGHT, width=WIDTH, guidance_scale=5.0, output_type="latent")


def _controlnet() -> ControlNetModel:
    return with_noise(
        ControlNetModel(
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            block_out_channels=(8, 16, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=12,
            # The number of heads, as in the U-Net.
            attention_head_dim=2,
            # One change of width halves the picture, as much as the autoencoder does.
            conditioning_embedding_out_channels=(8, 8),
        )
    )


def build_sd15_controlnet() -> StableDiffusionControlNetPipeline:
    """Stable Diffusion 1.5 with a ControlNet, which runs once before each call of the U-Net."""
    controlnet = seeded(_controlnet, 5)
    return quiet(StableDiffusionControlNetPipeline(scheduler=_pndm(), controlnet=controlnet, **_sd_parts()))


def call_controlnet(steps: int, batch: int) -> dict[str, Any]:
    """A run from a prompt and a control picture."""
    return {**call_text(steps, batch), "image": pictures(batch)}


def _sdxl_parts() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip_text(6),
        "text_encoder_2": clip_text(6, pooled=10),
        "tokenizer": build_clip_tokenizer(),
        "tokenizer_2": build_clip_tokenizer(),
        "unet": seeded(CLASSES["UNet2DConditionModel-sdxl"].build, 0),
        "scheduler": EulerDiscreteScheduler(timestep_spacing="leading", **NOISE_SCHEDULE),
        "add_watermarker": False,
    }


def build_sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL."""
    return quiet(StableDiffusionXLPipeline(**_sdxl_parts()))


def build_sdxl_img2img() -> StableDiffusionXLImg2ImgPipeline:
    """Stable Diffusion XL from a picture."""
    return quiet(StableDiffusionXLImg2ImgPipeline(**_sdxl_parts()))


def call_sdxl_img2img(steps: int, batch: int) -> dict[str, Any]:
    """A run from the middle of the schedule: the last half of its steps."""
    return run(
        steps,
        prompt=prompts(batch),
        image=pictures(batch),
        strength=0.5,
        guidance_scale=5.0,
        output_type="latent",
    )


def build_sdxl_inpaint() -> StableDiffusionXLInpaintPipeline:
    """Stable Diffusion XL that fills a part of a picture, with the U-Net of four channels of text to image."""
    return quiet(StableDiffusionXLInpaintPipeline(**_sdxl_parts()))


def call_sdxl_inpaint(steps: int, batch: int) -> dict[str, Any]:
    """A run over the last three quarters of the schedule that fills the right half of a picture."""
    mask = torch.zeros(batch, 1, HEIGHT, WIDTH)
    mask[..., WIDTH // 2 :] = 1.0
    sizes = {"height": HEIGHT, "width": WIDTH}
    return {**call_sdxl_img2img(steps, batch), **sizes, "mask_image": mask, "strength": 0.75}


def build_ddim() -> DDIMPipeline:
    """A U-Net of pixels without any condition."""
    return quiet(DDIMPipeline(unet=seeded(CLASSES["UNet2DModel"].build, 0), scheduler=DDIMScheduler()))


def call_ddim(steps: int, batch: int) -> dict[str, Any]:
    """A run without a prompt."""
    return run(steps, batch_size=batch, output_type="np")


PIPELINES: dict[str, TinyPipeline] = {
    "sd15": TinyPipeline(build_sd15, call_text, images_of, ("unet",), rows=2),
    "sd15-controlnet": TinyPipeline(build_sd15_controlnet, call_controlnet, images_of, ("unet",), rows=2),
    "sdxl": TinyPipeline(build_sdxl, call_text, images_of, ("unet",), rows=2),
    "sdxl-img2img": TinyPipeline(build_sdxl_img2img, call_sdxl_img2img, images_of, ("unet",), rows=2),
    "sdxl-inpaint": TinyPipeline(build_sdxl_inpaint, call_sdxl_inpaint, images_of, ("unet",), rows=2),
    "sd2": TinyPipeline(build_sd2, call_text, images_of, ("unet",), rows=2),
    "ddim": TinyPipeline(build_ddim, call_ddim, images_of, ("unet",)),
}

LEFT_OUT: dict[str, str] = {}
