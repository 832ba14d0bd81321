"""Tiny pipelines of image transformers whose text encoder is a language model: Sana, Qwen-Image, Z-Image, ..."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from denoisers.all_classes import CLASSES
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    CogView4Pipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    SanaPipeline,
    ZImagePipeline,
)

from pipelines.parts_images import HEIGHT, NEGATIVE, WIDTH, denoiser, images_of, prompts, quiet, run, seeded, vae
from pipelines.parts_images_text import (
    decoder_text,
    gemma_tokenizer,
    glm_tokenizer,
    mistral_text,
    mistral_tokenizer,
    qwen_tokenizer,
    qwen_vl_text,
)
from pipelines.tiny_pipeline import TinyPipeline


def call_text(steps: int, batch: int, **others: Any) -> dict[str, Any]:
    """A run from a prompt with guidance."""
    usual = {"height": HEIGHT, "width": WIDTH, "guidance_scale": 4.0, "output_type": "latent"}
    return run(steps, prompt=prompts(batch), **{**usual, **others})


def build_sana() -> SanaPipeline:
    """Sana, with an autoencoder of factor 8 instead of 32."""
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    tokenizer = gemma_tokenizer(" ".join(instruction))
    levels = 4
    autoencoder = seeded(
        lambda: AutoencoderDC(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            encoder_layers_per_block=(1,) * levels,
            decoder_layers_per_block=(1,) * levels,
            encoder_qkv_multiscales=((),) * levels,
            decoder_qkv_multiscales=((),) * levels,
        ),
        1,
    )
    return quiet(
        SanaPipeline(
            tokenizer=tokenizer,
            text_encoder=decoder_text(transformers.Gemma2Model, tokenizer, 10),
            vae=autoencoder,
            transformer=seeded(CLASSES["SanaTransformer2DModel"].build, 0),
            scheduler=DPMSolverMultistepScheduler(
                flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
            ),
        )
    )


def call_sana(steps: int, batch: int) -> dict[str, Any]:
    """A run in the smallest sizes that the pipeline takes, multiples of 32, with its instruction before the prompt."""
    return call_text(steps, batch, height=32, width=64, max_sequence_length=20, use_resolution_binning=False)


def build_lumina2() -> Lumina2Pipeline:
    """Lumina Image 2.0; the pipeline itself fixes the factor 8 of its autoencoder."""
    transformer = denoiser(
        lambda: Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=3,
            num_refiner_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            # As long as the longest text and one more.
            axes_lens=(65, 8, 8),
            cap_feat_dim=10,
        )
    )
    pipe = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(levels=4),
        text_encoder=None,
        tokenizer=None,
    )
    # The pipeline puts an instruction before the prompt; words known whole leave more weight to the prompt.
    tokenizer = gemma_tokenizer(pipe.system_prompt)
    pipe.register_modules(text_encoder=decoder_text(transformers.Gemma2Model, tokenizer, 10), tokenizer=tokenizer)
    return quiet(pipe)


def call_lumina2(steps: int, batch: int) -> dict[str, Any]:
    """A run with the negative prompt in a call of its own."""
    return call_text(steps, batch, height=32, width=64, max_sequence_length=64)


def build_cogview4() -> CogView4Pipeline:
    """CogView4."""
    tokenizer = glm_tokenizer()
    return quiet(
        CogView4Pipeline(
            tokenizer=tokenizer,
            text_encoder=decoder_text(transformers.GlmModel, tokenizer, 10),
            vae=vae(levels=3),
            transformer=seeded(CLASSES["CogView4Transformer2DModel"].build, 0),
            scheduler=FlowMatchEulerDiscreteScheduler(
                base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
            ),
        )
    )


def call_cogview4(steps: int, batch: int) -> dict[str, Any]:
    """A run in the smallest sizes that the pipeline takes, multiples of 16."""
    return call_text(steps, batch, height=16, width=32)


def build_qwen_image() -> QwenImagePipeline:
    """Qwen-Image."""
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.5, max_shift=0.9, shift_terminal=0.02, use_dynamic_shifting=True
        ),
        vae=seeded(
            lambda: AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ),
            1,
        ),
        text_encoder=None,
        tokenizer=None,
        transformer=seeded(CLASSES["QwenImageTransformer2DModel"].build, 0),
    )
    # The pipeline drops the 34 tokens of its instruction, so the tokenizer has to know the words of that whole.
    tokenizer = qwen_tokenizer(pipe.prompt_template_encode)
    pipe.register_modules(text_encoder=qwen_vl_text(tokenizer, 10), tokenizer=tokenizer)
    return quiet(pipe)


def call_qwen_image(steps: int, batch: int) -> dict[str, Any]:
    """A run with the negative prompt in a call of its own; there is no distilled guidance."""
    guidance = {"guidance_scale": None, "true_cfg_scale": 4.0, "negative_prompt": [NEGATIVE] * batch}
    return call_text(steps, batch, **guidance)


def build_z_image() -> ZImagePipeline:
    """Z-Image, whose denoiser takes lists of pictures and of texts."""
    tokenizer = qwen_tokenizer()
    return quiet(
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=vae(),
            text_encoder=decoder_text(transformers.Qwen3Model, tokenizer, 10),
            tokenizer=tokenizer,
            transformer=seeded(CLASSES["ZImageTransformer2DModel"].build, 0),
        )
    )


def call_z_image(steps: int, batch: int) -> dict[str, Any]:
    """A run with both halves of the guidance in one list. The pipeline writes into the list of prompts it is given."""
    return call_text(steps, batch, negative_prompt=[NEGATIVE] * batch, max_sequence_length=64)


def build_flux2() -> Flux2Pipeline:
    """FLUX.2 dev."""
    transformer = denoiser(
        lambda: Flux2Transformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            # Three layers of the text encoder side by side.
            joint_attention_dim=24,
            timestep_guidance_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
        )
    )
    autoencoder = seeded(
        lambda: AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=1,
            norm_num_groups=4,
        ),
        1,
    )
    pipe = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    # The pipeline puts an instruction before the prompt; words known whole leave more weight to the prompt.
    tokenizer = mistral_tokenizer(pipe.system_message)
    pipe.register_modules(text_encoder=mistral_text(tokenizer, 8), tokenizer=tokenizer)
    return quiet(pipe)


def call_flux2(steps: int, batch: int) -> dict[str, Any]:
    """A run with distilled guidance: one row and one call in each step."""
    return call_text(steps, batch, max_sequence_length=72, text_encoder_out_layers=(1, 2, 3))


PIPELINES: dict[str, TinyPipeline] = {
    "sana": TinyPipeline(build_sana, call_sana, images_of, rows=2),
    "lumina2": TinyPipeline(build_lumina2, call_lumina2, images_of, calls_per_step=2),
    "cogview4": TinyPipeline(build_cogview4, call_cogview4, images_of, calls_per_step=2),
    "qwen-image": TinyPipeline(build_qwen_image, call_qwen_image, images_of, calls_per_step=2),
    "z-image": TinyPipeline(build_z_image, call_z_image, images_of, rows=2),
    "flux2": TinyPipeline(build_flux2, call_flux2, images_of),
}

LEFT_OUT: dict[str, str] = {}
