"""Tiny pipelines of image transformers with CLIP and T5 text encoders: SD3, FLUX, PixArt, DiT, Chroma, AuraFlow, ..."""

from __future__ import annotations

from typing import Any

import transformers
from denoisers.all_classes import CLASSES
from denoisers.hunyuan import hunyuan_dit
from denoisers.pixart import pixart
from diffusers import (
    AuraFlowPipeline,
    ChromaPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
)

from festina.zoo.components import build_clip_tokenizer
from pipelines import images_language
from pipelines.parts_images import (
    HEIGHT,
    NEGATIVE,
    WIDTH,
    denoiser,
    images_of,
    pictures,
    prompts,
    quiet,
    run,
    seeded,
    vae,
)
from pipelines.parts_images_text import (
    bert_tokenizer,
    clip_text,
    llama_tokenizer,
    t5_text,
    t5_tokenizer,
)
from pipelines.tiny_pipeline import TinyPipeline

FLUX_SCHEDULE = {"shift": 3.0, "use_dynamic_shifting": True}
"""What the checkpoints of FLUX set in their scheduler: the shift depends on the number of image tokens."""


def build_sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 medium."""
    return quiet(
        StableDiffusion3Pipeline(
            transformer=seeded(CLASSES["SD3Transformer2DModel"].build, 0),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(),
            text_encoder=clip_text(6, pooled=4),
            tokenizer=build_clip_tokenizer(),
            text_encoder_2=clip_text(6, pooled=6),
            tokenizer_2=build_clip_tokenizer(),
            text_encoder_3=t5_text(12),
            tokenizer_3=t5_tokenizer(),
        )
    )


def call_text(steps: int, batch: int, **others: Any) -> dict[str, Any]:
    """A run from a prompt with guidance and at most 20 tokens of text."""
    sizes = {"height": HEIGHT, "width": WIDTH, "max_sequence_length": 20}
    return run(steps, prompt=prompts(batch), guidance_scale=4.0, output_type="latent", **sizes, **others)


def _flux_parts() -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE),
        # Four neighbours of one channel are packed to a token of four.
        "vae": vae(1),
        "text_encoder": clip_text(12),
        "tokenizer": build_clip_tokenizer(),
        "text_encoder_2": t5_text(10),
        "tokenizer_2": t5_tokenizer(),
        "transformer": seeded(CLASSES["FluxTransformer2DModel"].build, 0),
    }


def build_flux() -> FluxPipeline:
    """FLUX.1 dev."""
    return quiet(FluxPipeline(**_flux_parts()))


def call_flux_true_cfg(steps: int, batch: int) -> dict[str, Any]:
    """A run with a negative prompt beside the distilled guidance, in a call of its own."""
    return call_text(steps, batch, negative_prompt=[NEGATIVE] * batch, true_cfg_scale=3.0)


def build_flux_img2img() -> FluxImg2ImgPipeline:
    """FLUX.1 dev from a picture."""
    return quiet(FluxImg2ImgPipeline(**_flux_parts()))


def call_flux_img2img(steps: int, batch: int) -> dict[str, Any]:
    """A run from the middle of the schedule: the last half of its steps."""
    return call_text(steps, batch, image=pictures(batch), strength=0.5)


def build_flux_kontext() -> FluxKontextPipeline:
    """FLUX.1 Kontext, whose denoiser gets the tokens of a condition picture behind those of the picture to make."""
    return quiet(FluxKontextPipeline(**_flux_parts()))


def call_flux_kontext(steps: int, batch: int) -> dict[str, Any]:
    """A run with a condition picture of another size than the picture to make, both left as small as they are."""
    return call_text(steps, batch, image=pictures(batch, 8, 12), max_area=HEIGHT * WIDTH, _auto_resize=False)


def build_chroma() -> ChromaPipeline:
    """Chroma, a FLUX whose guidance is not distilled."""
    return quiet(
        ChromaPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(1),
            text_encoder=t5_text(10),
            tokenizer=t5_tokenizer(),
            transformer=seeded(CLASSES["ChromaTransformer2DModel"].build, 0),
        )
    )


def call_chroma(steps: int, batch: int) -> dict[str, Any]:
    """A run with the negative prompt in a call of its own."""
    return call_text(steps, batch, negative_prompt=[NEGATIVE] * batch)


def build_aura_flow() -> AuraFlowPipeline:
    """AuraFlow."""
    tokenizer = llama_tokenizer()
    return quiet(
        AuraFlowPipeline(
            tokenizer=tokenizer,
            text_encoder=t5_text(10, transformers.UMT5EncoderModel, len(tokenizer)),
            vae=vae(),
            transformer=seeded(CLASSES["AuraFlowTransformer2DModel"].build, 0),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    )


def _pixart_parts(sigma: bool) -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_text(10),
        "vae": vae(),
        # For 128 (a picture of 1024 pixels) the pipeline of alpha passes the sizes of the picture too; sigma has no
        # use for them.
        "transformer": denoiser(lambda: pixart(sample_size=8 if sigma else 128, sizes=not sigma)),
        "scheduler": DPMSolverMultistepScheduler(),
    }


def build_pixart_alpha() -> PixArtAlphaPipeline:
    """PixArt-alpha of 1024 pixels."""
    return quiet(PixArtAlphaPipeline(**_pixart_parts(sigma=False)))


def build_pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-sigma."""
    return quiet(PixArtSigmaPipeline(**_pixart_parts(sigma=True)))


def call_pixart(steps: int, batch: int) -> dict[str, Any]:
    """A run with both halves of the guidance in one batch and the picture no larger than asked for."""
    return call_text(steps, batch, clean_caption=False, use_resolution_binning=False)


def build_dit() -> DiTPipeline:
    """DiT, whose conditions are the thousand classes of ImageNet; the pictures are square."""
    transformer = denoiser(
        lambda: DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            # The second half of the channels is the variance, which the pipeline drops.
            out_channels=8,
            num_layers=3,
            sample_size=4,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
    )
    return quiet(DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler()))


def call_dit(steps: int, batch: int) -> dict[str, Any]:
    """A run with another class in each row; the pipeline always decodes."""
    return run(steps, class_labels=[3 + 7 * row for row in range(batch)], guidance_scale=4.0, output_type="np")


def build_hunyuan_dit() -> HunyuanDiTPipeline:
    """HunyuanDiT 1.2; the pipeline itself fixes the text lengths and, for the positions, the factor 8 of the VAE."""
    tokenizer = bert_tokenizer()
    transformer = denoiser(lambda: hunyuan_dit(layers=4, text=77, second_text=256))
    bert = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=10, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    return quiet(
        HunyuanDiTPipeline(
            vae=vae(levels=4),
            text_encoder=seeded(lambda: transformers.BertModel(bert, add_pooling_layer=False), 2),
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.018,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                steps_offset=1,
                clip_sample=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            text_encoder_2=t5_text(8),
            tokenizer_2=t5_tokenizer(),
        )
    )


def call_hunyuan_dit(steps: int, batch: int) -> dict[str, Any]:
    """A run with both halves of the guidance in one batch; the scheduler adds noise in each step."""
    sizes = {"height": 32, "width": 64, "use_resolution_binning": False}
    return run(steps, prompt=prompts(batch), guidance_scale=4.0, output_type="latent", **sizes)


PIPELINES: dict[str, TinyPipeline] = {
    "sd3": TinyPipeline(build_sd3, call_text, images_of, rows=2),
    "flux-true-cfg": TinyPipeline(build_flux, call_flux_true_cfg, images_of, calls_per_step=2),
    "flux-img2img": TinyPipeline(build_flux_img2img, call_flux_img2img, images_of),
    "flux-kontext": TinyPipeline(build_flux_kontext, call_flux_kontext, images_of),
    "pixart-alpha": TinyPipeline(build_pixart_alpha, call_pixart, images_of, rows=2),
    "pixart-sigma": TinyPipeline(build_pixart_sigma, call_pixart, images_of, rows=2),
    "dit": TinyPipeline(build_dit, call_dit, images_of, rows=2),
    "hunyuan-dit": TinyPipeline(build_hunyuan_dit, call_hunyuan_dit, images_of, rows=2),
    "aura-flow": TinyPipeline(build_aura_flow, call_text, images_of, rows=2),
    "chroma": TinyPipeline(build_chroma, call_chroma, images_of, calls_per_step=2),
    **images_language.PIPELINES,
}

LEFT_OUT: dict[str, str] = {**images_language.LEFT_OUT}
