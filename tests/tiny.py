"""Tiny random-weight pipelines of the real diffusers classes, for tests of structure and exactness."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from festina.zoo.components import build_tokenizer

PROMPT = "a small red circle left of a large blue square on a white background"


def _vae(latent_channels: int) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        shift_factor=0.0,
        sample_size=16,
    ).eval()


def _t5(width: int) -> T5EncoderModel:
    torch.manual_seed(2)
    config = T5Config(vocab_size=128, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    return T5EncoderModel(config).eval()


def _randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Noise on every parameter, so that no zero-initialised gate hides a served value."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def pixart_transformer(blocks: int = 3) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        patch_size=2,
        use_additional_conditions=False,
        norm_num_groups=2,
    )
    return _randomised(model)


def dit_transformer(blocks: int = 3) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=2,
    )
    return _randomised(model)


def flux_transformer(doubles: int = 2, singles: int = 2, guidance: bool = True) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=doubles,
        num_single_layers=singles,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    return _randomised(model)


def pixart_pipeline(blocks: int = 3) -> PixArtAlphaPipeline:
    pipe = PixArtAlphaPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=_t5(16),
        vae=_vae(4),
        transformer=pixart_transformer(blocks),
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dit_pipeline(blocks: int = 3) -> DiTPipeline:
    pipe = DiTPipeline(transformer=dit_transformer(blocks), vae=_vae(4), scheduler=DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_pipeline(guidance: bool = True) -> FluxPipeline:
    torch.manual_seed(4)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=128,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in letters + [f"{letter}</w>" for letter in letters]:
        vocabulary[letter] = len(vocabulary)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4),
        text_encoder=clip,
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        text_encoder_2=_t5(16),
        tokenizer_2=build_tokenizer(),
        transformer=flux_transformer(guidance=guidance),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompts: list[str] | None = None, steps: int = 4, seed: int = 0, **call: Any) -> torch.Tensor:
    """Latents or pictures of a tiny pipeline, from fixed noise."""
    prompts = prompts or [PROMPT]
    generator = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    shared = {"num_inference_steps": steps, "generator": generator}
    if isinstance(pipe, PixArtAlphaPipeline):
        size = {"height": 16, "width": 16} | call
        return pipe(
            prompts,
            use_resolution_binning=False,
            clean_caption=False,
            max_sequence_length=20,
            output_type="pt",
            **shared,
            **size,
        ).images
    if isinstance(pipe, DiTPipeline):
        shared["generator"] = generator[0]
        images = pipe(class_labels=list(range(len(prompts))), output_type="np", **shared, **call).images
        return torch.from_numpy(images)
    size = {"height": 16, "width": 16} | call
    return pipe(prompts, max_sequence_length=20, output_type="pt", **shared, **size).images
