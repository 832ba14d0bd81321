"""Tiny pipelines that make videos: LTX, HunyuanVideo, CogVideoX, Mochi, Latte, Allegro, Kandinsky 5, and others."""

from __future__ import annotations

from typing import Any

import transformers
from denoisers.all_classes import CLASSES
from diffusers import (
    AllegroPipeline,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    Kandinsky5T2VPipeline,
    LattePipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    MochiPipeline,
)

from festina.zoo.components import build_clip_tokenizer
from pipelines import videos_unets, videos_wan
from pipelines.parts_images import HEIGHT, NEGATIVE, WIDTH, denoiser, pictures, prompts, quiet, run, seeded, vae
from pipelines.parts_images_text import (
    clip_text,
    decoder_text,
    llama_tokenizer,
    qwen_tokenizer,
    qwen_vl_text,
    t5_text,
    t5_tokenizer,
)
from pipelines.parts_videos import (
    VIDEO_HEIGHT,
    VIDEO_WIDTH,
    frames_of,
    vae_allegro,
    vae_cogvideox,
    vae_hunyuan,
    vae_ltx,
    vae_mochi,
)
from pipelines.tiny_pipeline import TinyPipeline


def call_text(steps: int, batch: int, **others: Any) -> dict[str, Any]:
    """A run from a prompt with guidance and at most 20 tokens of text."""
    usual = {"height": HEIGHT, "width": WIDTH, "max_sequence_length": 20, "guidance_scale": 4.0}
    return run(steps, prompt=prompts(batch), output_type="latent", **{**usual, **others})


def _ltx_parts() -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            base_image_seq_len=1024,
            base_shift=0.95,
            max_image_seq_len=4096,
            max_shift=2.05,
            shift_terminal=0.1,
            use_dynamic_shifting=True,
        ),
        "vae": vae_ltx(6),
        "text_encoder": t5_text(10),
        "tokenizer": t5_tokenizer(),
        "transformer": seeded(CLASSES["LTXVideoTransformer3DModel"].build, 0),
    }


def build_ltx() -> LTXPipeline:
    """LTX-Video from text."""
    return quiet(LTXPipeline(**_ltx_parts()))


def call_ltx(steps: int, batch: int) -> dict[str, Any]:
    """A run of three latent frames of one by two, both halves of the guidance in one batch."""
    sizes = {"height": 32, "width": 64, "num_frames": 17}
    return call_text(steps, batch, negative_prompt=[NEGATIVE] * batch, **sizes)


def build_ltx_i2v() -> LTXImageToVideoPipeline:
    """LTX-Video from a picture, which is the first latent frame and is not denoised."""
    return quiet(LTXImageToVideoPipeline(**_ltx_parts()))


def call_ltx_i2v(steps: int, batch: int) -> dict[str, Any]:
    """A run with another picture in each row; the denoiser gets a timestep for every token."""
    return {**call_ltx(steps, batch), "image": pictures(batch, 32, 64)}


def build_hunyuanvideo() -> HunyuanVideoPipeline:
    """HunyuanVideo, whose guidance is distilled."""
    tokenizer = llama_tokenizer()
    tokenizer.padding_side = "right"
    return quiet(
        HunyuanVideoPipeline(
            # The pipeline takes the hidden states two layers before the last.
            text_encoder=decoder_text(transformers.LlamaModel, tokenizer, 10, num_hidden_layers=3),
            tokenizer=tokenizer,
            transformer=seeded(CLASSES["HunyuanVideoTransformer3DModel"].build, 0),
            vae=vae_hunyuan(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=clip_text(12, tokens=77),
            tokenizer_2=build_clip_tokenizer(),
        )
    )


def call_hunyuanvideo(steps: int, batch: int, **others: Any) -> dict[str, Any]:
    """A run with the guidance scale as an input of the denoiser: one row and one call in each step.

    Without the pipeline's long instruction, of which it cuts 95 tokens off, so many as Llama's tokenizer makes of it.
    """
    sizes = {"height": VIDEO_HEIGHT, "width": VIDEO_WIDTH, "num_frames": 9}
    template = {"template": "{}", "crop_start": 0}
    return call_text(steps, batch, guidance_scale=6.0, prompt_template=template, **{**sizes, **others})


def call_hunyuanvideo_true_cfg(steps: int, batch: int) -> dict[str, Any]:
    """A run with a negative prompt beside the distilled guidance, in a call of its own."""
    return call_hunyuanvideo(steps, batch, negative_prompt=[NEGATIVE] * batch, true_cfg_scale=3.0)


def _cogvideox_transformer(rotary: bool) -> CogVideoXTransformer3DModel:
    return denoiser(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=12,
            text_embed_dim=10,
            num_layers=3,
            sample_width=8,
            sample_height=4,
            # Pixels: two latent frames.
            sample_frames=5,
            max_text_seq_length=20,
            use_rotary_positional_embeddings=rotary,
        )
    )


def _cogvideox_parts(scheduler: type, shift: float) -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_text(10),
        "vae": vae_cogvideox(),
        "scheduler": scheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            rescale_betas_zero_snr=True,
            snr_shift_scale=shift,
            timestep_spacing="trailing",
        ),
    }


def build_cogvideox() -> CogVideoXPipeline:
    """CogVideoX of 5 billion parameters, whose scheduler gets its own last prediction back in each step."""
    parts = _cogvideox_parts(CogVideoXDPMScheduler, 1.0)
    return quiet(CogVideoXPipeline(transformer=_cogvideox_transformer(rotary=True), **parts))


def build_cogvideox_2b() -> CogVideoXPipeline:
    """CogVideoX of 2 billion parameters, with positions added to the tokens."""
    parts = _cogvideox_parts(CogVideoXDDIMScheduler, 3.0)
    return quiet(CogVideoXPipeline(transformer=_cogvideox_transformer(rotary=False), **parts))


def call_cogvideox(steps: int, batch: int) -> dict[str, Any]:
    """A run of two latent frames with both halves of the guidance in one batch."""
    return call_text(steps, batch, num_frames=5)


def build_mochi() -> MochiPipeline:
    """Mochi, whose noise levels count from 0 to 1."""
    return quiet(
        MochiPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            vae=vae_mochi(),
            text_encoder=t5_text(24),
            tokenizer=t5_tokenizer(),
            transformer=seeded(CLASSES["MochiTransformer3DModel"].build, 0),
        )
    )


def call_mochi(steps: int, batch: int) -> dict[str, Any]:
    """A run of two latent frames of two by four with both halves of the guidance in one batch."""
    return call_text(steps, batch, height=VIDEO_HEIGHT, width=VIDEO_WIDTH, num_frames=7)


def build_latte() -> LattePipeline:
    """Latte from text."""
    return quiet(
        LattePipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_text(10),
            vae=vae(),
            transformer=seeded(CLASSES["LatteTransformer3DModel"].build, 0),
            scheduler=DDIMScheduler(clip_sample=False),
        )
    )


def call_latte(steps: int, batch: int) -> dict[str, Any]:
    """A run of three frames with both halves of the guidance in one batch; the pipeline fixes the length of texts."""
    call = call_text(steps, batch, video_length=3, clean_caption=False)
    del call["max_sequence_length"]
    return call


def build_allegro() -> AllegroPipeline:
    """Allegro from text; its scheduler adds noise in each step, and its autoencoder decodes with tiling only."""
    return quiet(
        AllegroPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_text(10),
            vae=vae_allegro(),
            transformer=seeded(CLASSES["AllegroTransformer3DModel"].build, 0),
            scheduler=EulerAncestralDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
            ),
        )
    )


def call_allegro(steps: int, batch: int) -> dict[str, Any]:
    """A run of two latent frames with both halves of the guidance in one batch."""
    return call_text(steps, batch, num_frames=8, clean_caption=False)


def build_kandinsky5() -> Kandinsky5T2VPipeline:
    """Kandinsky 5 from text."""
    pipe = Kandinsky5T2VPipeline(
        transformer=seeded(CLASSES["Kandinsky5Transformer3DModel"].build, 0),
        vae=vae_hunyuan(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=clip_text(6, tokens=77),
        tokenizer_2=build_clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    # The pipeline drops 128 tokens. This tokenizer knows the words of the instruction and makes three tokens more of
    # it, so that all of the prompt stays.
    tokenizer = qwen_tokenizer(pipe.prompt_template)
    tokenizer.padding_side = "right"
    pipe.register_modules(text_encoder=qwen_vl_text(tokenizer, 10), tokenizer=tokenizer)
    return quiet(pipe)


def call_kandinsky5(steps: int, batch: int) -> dict[str, Any]:
    """A run of two latent frames with the negative prompt in a call of its own."""
    sizes = {"height": VIDEO_HEIGHT, "width": VIDEO_WIDTH, "num_frames": 5}
    return call_text(steps, batch, negative_prompt=[NEGATIVE] * batch, **sizes)


PIPELINES: dict[str, TinyPipeline] = {
    **videos_wan.PIPELINES,
    "ltx": TinyPipeline(build_ltx, call_ltx, frames_of, rows=2),
    "ltx-i2v": TinyPipeline(build_ltx_i2v, call_ltx_i2v, frames_of, rows=2),
    "hunyuanvideo": TinyPipeline(build_hunyuanvideo, call_hunyuanvideo, frames_of),
    "hunyuanvideo-true-cfg": TinyPipeline(build_hunyuanvideo, call_hunyuanvideo_true_cfg, frames_of, calls_per_step=2),
    "cogvideox": TinyPipeline(build_cogvideox, call_cogvideox, frames_of, rows=2),
    "cogvideox-2b": TinyPipeline(build_cogvideox_2b, call_cogvideox, frames_of, rows=2),
    "mochi": TinyPipeline(build_mochi, call_mochi, frames_of, rows=2),
    "latte": TinyPipeline(build_latte, call_latte, frames_of, rows=2),
    "allegro": TinyPipeline(build_allegro, call_allegro, frames_of, rows=2),
    "kandinsky5": TinyPipeline(build_kandinsky5, call_kandinsky5, frames_of, calls_per_step=2),
    **videos_unets.PIPELINES,
}

LEFT_OUT: dict[str, str] = {**videos_wan.LEFT_OUT, **videos_unets.LEFT_OUT}
