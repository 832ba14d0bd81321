"""U-Nets for images: those of Stable Diffusion 1 and XL, DDPM, DreamLite, Stable Cascade and aMUSEd."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import both_rows, padding_mask, sample_and_text
from denoisers.tiny_class import TinyClass

SIZES: dict[str, Any] = {"sample_size": 8, "layers_per_block": 2, "norm_num_groups": 4}

STABLE_DIFFUSION: dict[str, Any] = {**SIZES, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 12}


STABLE_CASCADE: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "timestep_ratio_embedding_dim": 8,
    "conditioning_dim": 20,
    "clip_text_pooled_in_channels": 10,
}


def dreamlite() -> nn.Module:
    """The layout of DreamLite: no self-attention at the two shallow levels, one key/value head."""
    return diffusers.DreamLiteUNetModel(
        **SIZES,
        in_channels=4,
        out_channels=4,
        down_block_types=(
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        mid_block_type="DreamLiteUNetMidBlock2DCrossAttn",
        up_block_types=(
            "DreamLiteCrossAttnUpBlock2D",
            "DreamLiteCrossAttnNoSelfAttnUpBlock2D",
            "DreamLiteCrossAttnNoSelfAttnUpBlock2D",
        ),
        block_out_channels=(8, 16, 16),
        cross_attention_dim=16,
        transformer_layers_per_block=(1, 2, 2),
        encoder_hid_dim=12,
        encoder_hid_dim_type="text_proj_rms",
        attention_head_dim=2,
        use_linear_projection=True,
        addition_embed_type="time",
        addition_time_embed_dim=4,
        # Width and height, embedded.
        projection_class_embeddings_input_dim=2 * 4,
        qk_norm="rms_norm",
        use_sep_conv=True,
        ff_mult=2,
        num_kv_heads=1,
    )


def dreamlite_inputs() -> dict[str, Any]:
    """The noisy image left, the condition image right of it; the first row's text is padded."""
    return sample_and_text(sample=(4, 4, 8), text=(7, 12), timestep=both_rows(501.0)) | {
        "encoder_attention_mask": padding_mask(5, 7),
        "added_cond_kwargs": {"time_ids": torch.tensor([[64.0, 48.0], [32.0, 64.0]])},
        "return_dict": False,
    }


def stable_cascade_prior() -> nn.Module:
    """The prior of Stable Cascade: two levels of the same resolution, attention everywhere."""
    layer = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    return diffusers.StableCascadeUNet(
        **STABLE_CASCADE,
        patch_size=1,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(2, 3),
        up_num_layers_per_block=(3, 2),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(layer, layer),
        clip_text_in_channels=12,
        clip_image_in_channels=14,
        clip_seq=2,
        timestep_conditioning_type=("sca", "crp"),
        switch_level=(False,),
    )


def stable_cascade_prior_inputs() -> dict[str, Any]:
    """An image embedding to denoise; the timestep is a ratio from 1 to 0, one per row."""
    return {
        "sample": torch.randn(2, 4, 4, 4),
        "timestep_ratio": both_rows(0.61),
        "clip_text_pooled": torch.randn(2, 1, 10),
        "clip_text": torch.randn(2, 7, 12),
        "clip_img": torch.randn(2, 1, 14),
        "return_dict": False,
    }


def stable_cascade_decoder() -> nn.Module:
    """The decoder of Stable Cascade: shallow levels without attention, and up blocks that run more than once."""
    plain = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return diffusers.StableCascadeUNet(
        **STABLE_CASCADE,
        patch_size=2,
        block_out_channels=(8, 16, 16),
        num_attention_heads=(0, 2, 2),
        down_num_layers_per_block=(2, 3, 2),
        up_num_layers_per_block=(2, 3, 2),
        down_blocks_repeat_mappers=(1, 1, 1),
        up_blocks_repeat_mappers=(3, 2, 2),
        block_types_per_layer=(plain, (*plain, "SDCascadeAttnBlock"), (*plain, "SDCascadeAttnBlock")),
        clip_seq=4,
        dropout=(0.0, 0.0, 0.1),
        effnet_in_channels=6,
        pixel_mapper_in_channels=3,
        timestep_conditioning_type=("sca",),
    )


def stable_cascade_decoder_inputs() -> dict[str, Any]:
    """Latents to denoise under the prior's image embedding."""
    return {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep_ratio": both_rows(0.61),
        "clip_text_pooled": torch.randn(2, 1, 10),
        "effnet": torch.randn(2, 6, 3, 3),
        "return_dict": False,
    }


def unet_2d_condition() -> nn.Module:
    """The layout of Stable Diffusion 1.x: four levels, the deepest without attention."""
    return diffusers.UNet2DConditionModel(
        **STABLE_DIFFUSION,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16, 16, 16),
        # In this class the argument means the number of heads.
        attention_head_dim=2,
    )


def unet_2d_condition_inputs() -> dict[str, Any]:
    """One call with both rows of classifier-free guidance."""
    return sample_and_text(sample=(4, 8, 8), text=(7, 12), timestep=501) | {"return_dict": False}


def unet_2d_condition_sdxl() -> nn.Module:
    """The layout of Stable Diffusion XL: three levels, more transformer layers the deeper the level."""
    return diffusers.UNet2DConditionModel(
        **STABLE_DIFFUSION,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 16),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(2, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        # The pooled text embedding (10) and six embedded numbers: sizes and crop.
        projection_class_embeddings_input_dim=10 + 6 * 4,
    )


def unet_2d_condition_sdxl_inputs() -> dict[str, Any]:
    """One call with both rows of classifier-free guidance, pooled text and sizes."""
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0], [64.0, 48.0, 8.0, 0.0, 64.0, 64.0]])
    return sample_and_text(sample=(4, 8, 8), text=(7, 12), timestep=501.0) | {
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 10), "time_ids": sizes},
        "return_dict": False,
    }


def unet_2d() -> nn.Module:
    """The layout of DDPM: no text, attention at the middle level."""
    return diffusers.UNet2DModel(
        **SIZES,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 16),
        # In this class the argument means the width of a head.
        attention_head_dim=8,
    )


def unet_2d_inputs() -> dict[str, Any]:
    """An image in pixels and an integer timestep."""
    return {"sample": torch.randn(2, 3, 8, 8), "timestep": torch.tensor(501), "return_dict": False}


def uvit_2d() -> nn.Module:
    """The layout of aMUSEd at 512 pixels: one block that halves the tokens, a transformer, one that doubles them."""
    return diffusers.UVit2DModel(
        hidden_size=16,
        cond_embed_dim=10,
        micro_cond_encode_dim=4,
        # Sizes, crop and aesthetic score, embedded.
        micro_cond_embed_dim=5 * 4,
        encoder_hidden_size=12,
        vocab_size=40,
        codebook_size=32,
        in_channels=8,
        block_out_channels=24,
        num_res_blocks=2,
        downsample=True,
        upsample=True,
        block_num_heads=2,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=20,
        sample_size=4,
    )


def uvit_2d_inputs() -> dict[str, Any]:
    """Token ids of a partly masked image (39 stands for the mask); the class takes no timestep."""
    ids = torch.randint(0, 32, (2, 4, 6))
    return {
        "input_ids": torch.where(torch.rand(2, 4, 6) < 0.5, torch.full_like(ids, 39), ids),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "pooled_text_emb": torch.randn(2, 10),
        "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0], [64.0, 64.0, 0.0, 0.0, 5.0]]),
    }


CLASSES: dict[str, TinyClass] = {
    "DreamLiteUNetModel": TinyClass(dreamlite, dreamlite_inputs),
    "StableCascadeUNet": TinyClass(stable_cascade_prior, stable_cascade_prior_inputs),
    "StableCascadeUNet-decoder": TinyClass(stable_cascade_decoder, stable_cascade_decoder_inputs),
    "UNet2DConditionModel": TinyClass(unet_2d_condition, unet_2d_condition_inputs),
    "UNet2DConditionModel-sdxl": TinyClass(unet_2d_condition_sdxl, unet_2d_condition_sdxl_inputs),
    "UNet2DModel": TinyClass(unet_2d, unet_2d_inputs),
    "UVit2DModel": TinyClass(uvit_2d, uvit_2d_inputs),
}
