"""Tiny instances of image transformers (SD3, Qwen-Image, Z-Image, ...) with the inputs of one forward call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import transformers
from torch import nn

from denoisers.stirring import stirred
from denoisers.tiny_class import TinyClass


def build_sd3() -> nn.Module:
    """The layout of Stable Diffusion 3.5 medium: the first blocks attend twice, the last one drops the text."""
    return stirred(
        transformers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=4,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=6,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        )
    )


def inputs_sd3() -> dict[str, Any]:
    """Twelve image tokens, both rows of classifier-free guidance."""
    return {
        "hidden_states": torch.randn(2, 4, 6, 8),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor(617.5).expand(2),
        "return_dict": False,
    }


def build_qwen_image(zero_cond_t: bool = False) -> nn.Module:
    """The layout of Qwen-Image; with zero_cond_t that of its edit model, which takes a condition image as clean."""
    return stirred(
        transformers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=10,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=zero_cond_t,
        )
    )


def inputs_qwen_image() -> dict[str, Any]:
    """Twelve packed image tokens; the second row's text is padded."""
    return {
        "hidden_states": torch.randn(2, 12, 16),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_hidden_states_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]),
        "timestep": torch.tensor(0.617).expand(2),
        "img_shapes": [[(1, 3, 4)], [(1, 3, 4)]],
        "guidance": None,
        "return_dict": False,
    }


def inputs_qwen_image_edit() -> dict[str, Any]:
    """Twelve tokens of the image to make, then four of the condition image."""
    return {
        **inputs_qwen_image(),
        "hidden_states": torch.randn(2, 16, 16),
        "img_shapes": [[(1, 3, 4), (1, 2, 2)], [(1, 3, 4), (1, 2, 2)]],
    }


def build_qwen_image_21() -> nn.Module:
    """The layout of Qwen-Image 2.1: one sequence of text, condition images and the image to make."""
    return stirred(
        transformers.QwenImage21Transformer2DModel(
            patch_size=1,
            in_channels=6,
            out_channels=6,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=10,
            mlp_ratio=2,
            axes_dims_rope=(4, 6, 6),
            causal_condition=True,
        )
    )


def inputs_qwen_image_21() -> dict[str, Any]:
    """One condition image (two places of the text, four tokens each) before the sixteen tokens of the image to make.

    Without the key/value cache that the pipeline may hand over; the second row's text is padded.
    """
    places = torch.tensor([False, False, True, True, False, False, False, False, False] + [True] * 4)
    return {
        "hidden_states": torch.randn(2, 8 + 16, 6),
        "encoder_hidden_states": torch.randn(2, 9, 10),
        "timestep": torch.tensor(0.617).expand(2),
        "img_shapes": [[(1, 2, 4), (1, 4, 4)], [(1, 2, 4), (1, 4, 4)]],
        "img_mask": places.expand(2, -1),
        "encoder_hidden_states_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]]),
        "kv_cache": None,
        "kv_cache_mode": None,
        "return_dict": False,
    }


def build_z_image(siglip: bool = False) -> nn.Module:
    """The layout of Z-Image; with siglip that of its omni model, which also takes condition images."""
    return stirred(
        transformers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=24,
            n_layers=3,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            qk_norm=True,
            cap_feat_dim=10,
            siglip_feat_dim=14 if siglip else None,
            axes_dims=[4, 4, 4],
            axes_lens=[128, 16, 16],
        )
    )


def inputs_z_image() -> dict[str, Any]:
    """Lists instead of batches; the class pads both streams to multiples of 32, the text to 64 and 32 tokens."""
    return {
        "x": [torch.randn(4, 1, 6, 8), torch.randn(4, 1, 6, 8)],
        "t": torch.tensor(0.383).expand(2),
        "cap_feats": [torch.randn(35, 10), torch.randn(7, 10)],
        "return_dict": False,
    }


def inputs_z_image_omni() -> dict[str, Any]:
    """A condition image before the image to make, each with a piece of text before it."""
    return {
        "x": [[torch.randn(4, 1, 4, 4), torch.randn(4, 1, 6, 8)] for _ in range(2)],
        "t": torch.tensor(0.383).expand(2),
        "cap_feats": [[torch.randn(5, 10), torch.randn(7, 10), torch.randn(3, 10)] for _ in range(2)],
        "siglip_feats": [[torch.randn(2, 3, 14), None] for _ in range(2)],
        "image_noise_mask": [[0, 1], [0, 1]],
        "return_dict": False,
    }


def build_transformer_2d_patches() -> nn.Module:
    """The layout of PixArt-alpha 512, whose checkpoints name this class."""
    return stirred(
        transformers.Transformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=3,
            cross_attention_dim=16,
            attention_bias=True,
            sample_size=8,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=10,
        )
    )


def inputs_transformer_2d_patches() -> dict[str, Any]:
    """Twelve image tokens; the first row's text is padded."""
    return {
        "hidden_states": torch.randn(2, 4, 6, 8),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "timestep": torch.tensor(617).expand(2),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def build_transformer_2d_vectors() -> nn.Module:
    """The layout of VQ-Diffusion, which denoises the ids of image tokens."""
    return stirred(
        transformers.Transformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            cross_attention_dim=10,
            attention_bias=True,
            sample_size=4,
            num_vector_embeds=33,
            activation_fn="geglu-approximate",
            num_embeds_ada_norm=100,
            norm_type="ada_norm",
        )
    )


def inputs_transformer_2d_vectors() -> dict[str, Any]:
    """Sixteen token ids (32 stands for the mask) and an integer timestep under 100."""
    return {
        "hidden_states": torch.randint(0, 33, (2, 16)),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.tensor(61),
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "SD3Transformer2DModel": TinyClass(build_sd3, inputs_sd3),
    "QwenImageTransformer2DModel": TinyClass(build_qwen_image, inputs_qwen_image),
    "QwenImageTransformer2DModel-edit": TinyClass(lambda: build_qwen_image(zero_cond_t=True), inputs_qwen_image_edit),
    "QwenImage21Transformer2DModel": TinyClass(build_qwen_image_21, inputs_qwen_image_21),
    "ZImageTransformer2DModel": TinyClass(build_z_image, inputs_z_image),
    "ZImageTransformer2DModel-omni": TinyClass(lambda: build_z_image(siglip=True), inputs_z_image_omni),
    "Transformer2DModel": TinyClass(build_transformer_2d_patches, inputs_transformer_2d_patches),
    "Transformer2DModel-vector": TinyClass(build_transformer_2d_vectors, inputs_transformer_2d_vectors),
}
