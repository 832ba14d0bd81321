"""Tiny denoisers: the transformers of PixArt, Latte, LTX, Lumina, Mochi, Kandinsky and the CLIP prior."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.latte_transformer_3d import LatteTransformer3DModel
from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiT2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Transformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from torch import nn

from denoisers.tiny_class import TinyClass

Model = TypeVar("Model", bound=nn.Module)


def with_noise(model: Model) -> Model:
    """Add noise to every parameter, since projections and gates that start at zero would hide what lies before them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def text_mask(tokens: int, kept: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """A mask of two prompts, as a tokenizer gives it: the first fills all tokens, the second only the first `kept`."""
    mask = torch.ones(2, tokens, dtype=dtype)
    mask[1, kept:] = 0
    return mask


def pixart() -> nn.Module:
    """PixArt with the sizes of the picture as extra conditions, as the checkpoints of 1024 pixels have them."""
    return with_noise(
        PixArtTransformer2DModel(
            num_attention_heads=2,
            # The embeddings of height, width and aspect ratio are a third of the width each.
            attention_head_dim=12,
            in_channels=4,
            out_channels=8,
            num_layers=3,
            cross_attention_dim=24,
            sample_size=8,
            patch_size=2,
            use_additional_conditions=True,
            caption_channels=10,
        )
    )


def pixart_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_attention_mask": text_mask(7, 5),
        "timestep": torch.tensor([701, 701]),
        "added_cond_kwargs": {
            "resolution": torch.tensor([[64.0, 64.0], [64.0, 64.0]]),
            "aspect_ratio": torch.tensor([[1.0], [1.0]]),
        },
    }


def latte() -> nn.Module:
    return with_noise(
        LatteTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=3,
            cross_attention_dim=16,
            attention_bias=True,
            sample_size=4,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=10,
            video_length=3,
        )
    )


def latte_inputs() -> dict[str, Any]:
    # The pipeline cuts the padding off the prompt instead of giving a mask.
    return {
        "hidden_states": torch.randn(2, 4, 3, 4, 4),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.tensor([701, 701]),
        "enable_temporal_attentions": True,
    }


def ltx() -> nn.Module:
    return with_noise(
        LTXVideoTransformer3DModel(
            in_channels=6,
            out_channels=6,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=3,
            caption_channels=10,
        )
    )


def ltx_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 2 * 2 * 3, 6),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "timestep": torch.tensor([701.0, 701.0]),
        "encoder_attention_mask": text_mask(7, 5),
        "num_frames": 2,
        "height": 2,
        "width": 3,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def lumina2() -> nn.Module:
    return with_noise(
        Lumina2Transformer2DModel(
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
            axes_lens=(30, 8, 8),
            cap_feat_dim=10,
        )
    )


def lumina2_inputs() -> dict[str, Any]:
    # Lumina counts time upwards: 0 is noise and 1 the picture.
    return {
        "hidden_states": torch.randn(2, 4, 6, 8),
        "timestep": torch.tensor([0.3, 0.3]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_attention_mask": text_mask(7, 5),
    }


def lumina_next() -> nn.Module:
    model = LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=3,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        learn_sigma=True,
        cross_attention_dim=10,
    )
    # The class leaves this parameter uninitialised (and does not use it).
    nn.init.normal_(model.pad_token, std=0.02)
    return with_noise(model)


def lumina_next_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 6, 8),
        "timestep": torch.tensor([0.3, 0.3]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "encoder_mask": text_mask(7, 5),
        # The pipeline makes a table of the largest size for the width of one head; the model cuts out what it needs.
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 16, 16, linear_factor=1.0, ntk_factor=1.0),
        "cross_attention_kwargs": {"base_sequence_length": 16},
    }


def mochi() -> nn.Module:
    return with_noise(
        MochiTransformer3DModel(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            pooled_projection_dim=12,
            in_channels=4,
            # The pooling of the prompt has always eight heads.
            text_embed_dim=24,
            time_embed_dim=8,
            max_sequence_length=7,
        )
    )


def mochi_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": torch.tensor([299.0, 299.0]),
        "encoder_attention_mask": text_mask(7, 5, torch.bool),
    }


def kandinsky5() -> nn.Module:
    return with_noise(
        Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=10,
            in_text_dim2=6,
            time_dim=12,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=24,
            num_text_blocks=2,
            num_visual_blocks=3,
            axes_dims=(4, 2, 2),
            visual_cond=True,
        )
    )


def kandinsky5_inputs() -> dict[str, Any]:
    # Behind the channels of the latents lie those of the conditioning picture and its mask, both zero for text alone.
    latents = torch.cat([torch.randn(2, 2, 4, 6, 4), torch.zeros(2, 2, 4, 6, 5)], dim=-1)
    return {
        "hidden_states": latents,
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "pooled_projections": torch.randn(2, 6),
        "timestep": torch.tensor([701.0, 701.0]),
        "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(3)],
        "text_rope_pos": torch.arange(7),
        "scale_factor": (1.0, 2.0, 2.0),
        "sparse_params": None,
    }


def prior() -> nn.Module:
    return with_noise(
        PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            embedding_dim=10,
            num_embeddings=7,
            # The projected prompt, the time, the noisy embedding and the token that is read out.
            additional_embeddings=4,
        )
    )


def prior_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 10),
        "timestep": torch.tensor(701),
        "proj_embedding": torch.randn(2, 10),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "attention_mask": text_mask(7, 5, torch.bool),
    }


CLASSES: dict[str, TinyClass] = {
    "Kandinsky5Transformer3DModel": TinyClass(kandinsky5, kandinsky5_inputs),
    "LTXVideoTransformer3DModel": TinyClass(ltx, ltx_inputs),
    "LatteTransformer3DModel": TinyClass(latte, latte_inputs),
    "Lumina2Transformer2DModel": TinyClass(lumina2, lumina2_inputs),
    "LuminaNextDiT2DModel": TinyClass(lumina_next, lumina_next_inputs),
    "MochiTransformer3DModel": TinyClass(mochi, mochi_inputs),
    "PixArtTransformer2DModel": TinyClass(pixart, pixart_inputs),
    "PriorTransformer": TinyClass(prior, prior_inputs),
}

LEFT_OUT: dict[str, str] = {}
