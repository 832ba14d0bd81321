"""Tiny instances of audio and protein transformers with the inputs of one forward call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import transformers
from diffusers.models.transformers.t5_film_transformer import T5FilmDecoder
from torch import nn

from denoisers.stirring import stirred
from denoisers.tiny_class import TinyClass


def build_stable_audio() -> nn.Module:
    """The layout of Stable Audio Open; two query heads share one key/value head."""
    return stirred(
        transformers.StableAudioDiTModel(
            sample_size=12,
            in_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            out_channels=4,
            cross_attention_dim=16,
            time_proj_dim=8,
            global_states_input_dim=14,
            cross_attention_input_dim=10,
        )
    )


def inputs_stable_audio() -> dict[str, Any]:
    """Twelve latents (thirteen tokens with the global one), one timestep for both rows of guidance."""
    angles = torch.outer(torch.arange(13.0), 100.0 ** -torch.linspace(0, 1, 4)).repeat(1, 2)
    return {
        "hidden_states": torch.randn(2, 4, 12),
        "timestep": torch.tensor([0.61]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "global_hidden_states": torch.randn(2, 1, 14),
        "rotary_embedding": (angles.cos(), angles.sin()),
        "return_dict": False,
    }


def build_stable_audio_3() -> nn.Module:
    """The layout of Stable Audio 3: memory tokens and attention that subtracts a second attention."""
    return stirred(
        transformers.StableAudio3DiTModel(
            io_channels=4,
            patch_size=1,
            embed_dim=24,
            depth=3,
            num_heads=2,
            cond_token_dim=10,
            global_cond_dim=14,
            local_add_cond_dim=5,
            timestep_features_dim=8,
            ff_mult=2.0,
            num_memory_tokens=5,
            use_differential_attention=True,
        )
    )


def inputs_stable_audio_3() -> dict[str, Any]:
    """Twelve latents with the mask and the latents to keep, as for inpainting; the first row's text is padded."""
    return {
        "hidden_states": torch.randn(2, 4, 12),
        "timestep": torch.tensor(0.61).expand(2),
        "encoder_hidden_states": torch.randn(2, 7, 10),
        "global_hidden_states": torch.randn(2, 14),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
        "local_add_cond": torch.randn(2, 5, 12),
        "return_dict": False,
    }


def build_t5_film_decoder() -> nn.Module:
    """The decoder of the spectrogram diffusion pipeline."""
    return stirred(
        T5FilmDecoder(
            input_dims=6,
            targets_length=12,
            max_decoder_noise_time=2000.0,
            d_model=16,
            num_layers=3,
            num_heads=2,
            d_kv=8,
            d_ff=24,
        )
    )


def inputs_t5_film_decoder() -> dict[str, Any]:
    """Twelve frames of a spectrogram, encoded notes (the first row padded) and the encoded frames before."""
    notes = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    return {
        "encodings_and_masks": [
            (torch.randn(2, 7, 16), notes),
            (torch.randn(2, 4, 16), torch.ones(2, 4, dtype=torch.bool)),
        ],
        "decoder_input_tokens": torch.randn(2, 12, 6),
        "decoder_noise_time": torch.tensor([0.61, 0.61]),
    }


def build_rfd4_proteina() -> nn.Module:
    """The layout of RFD4-Proteina: a stream of residues and one of their pairs, updated after every second layer."""
    return stirred(
        transformers.RFD4ProteinaTransformer(
            nlayers=5,
            token_dim=16,
            nheads=2,
            dim_cond=12,
            pair_repr_dim=10,
            latent_dim=6,
            token_type_emb_dim=4,
            cath_emb_dim=4,
            t_emb_dim=8,
            seq_sep_dim=6,
            xt_pair_dist_dim=5,
            update_pair_repr_every_n=2,
            tri_mult_c=8,
            num_sequence_classes=9,
            num_token_types=7,
            recycle_conditioning_dim=3,
        )
    )


def inputs_rfd4_proteina() -> dict[str, Any]:
    """Nine residues (the second row has two less), with those annotations that the class insists on.

    The trunk runs twice in one call (recycle_depth), the second time on top of its first result.
    """
    padding = torch.tensor([[True] * 9, [True] * 7 + [False] * 2])
    atoms = torch.rand(2, 9, 37) < 0.6
    required = ("hbond", "pistack", "pication", "saltbridge", "hydrophobic", "metal-coord")
    ones = torch.ones(2, 9, dtype=torch.long)
    return {
        "bb_ca": torch.randn(2, 9, 3),
        "local_latents": torch.randn(2, 9, 6),
        "bb_ca_time": torch.tensor(0.61).expand(2),
        "local_latents_time": torch.tensor(0.47).expand(2),
        "padding_mask": padding,
        "token_type": torch.randint(0, 7, (2, 9)),
        "atom37_mask": atoms,
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(2, 9, dtype=torch.bool),
            "supports_local_latent": torch.ones(2, 9, dtype=torch.bool),
            "token_bond_path_length": torch.randint(0, 6, (2, 9, 9)),
            "molecule_iid": torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1]) * ones,
            "molecule_entity_id": ones,
            "condition_index-group_1_token": ones,
            **{f"condition_{name}_1_atom": torch.randint(0, 4, (2, 9, 37)) for name in required},
        },
        "recycle_depth": 2,
        "return_dict": False,
    }


CLASSES: dict[str, TinyClass] = {
    "StableAudioDiTModel": TinyClass(build_stable_audio, inputs_stable_audio),
    "StableAudio3DiTModel": TinyClass(build_stable_audio_3, inputs_stable_audio_3),
    "T5FilmDecoder": TinyClass(build_t5_film_decoder, inputs_t5_film_decoder),
    "RFD4ProteinaTransformer": TinyClass(build_rfd4_proteina, inputs_rfd4_proteina),
}
