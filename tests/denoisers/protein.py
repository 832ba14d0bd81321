"""The denoiser of proteins: RFD4-Proteina."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from denoisers.inputs import both_rows, padding_mask
from denoisers.tiny_class import TinyClass


def rfd4_proteina() -> nn.Module:
    """The layout of RFD4-Proteina: a stream of residues and one of their pairs, updated after every second layer."""
    return diffusers.RFD4ProteinaTransformer(
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


def rfd4_proteina_inputs() -> dict[str, Any]:
    """Nine residues (the second row has two less), with those annotations that the class insists on.

    The trunk runs twice in one call (recycle_depth), the second time on top of its first result.
    """
    atoms = torch.rand(2, 9, 37) < 0.6
    required = ("hbond", "pistack", "pication", "saltbridge", "hydrophobic", "metal-coord")
    ones = torch.ones(2, 9, dtype=torch.long)
    return {
        "bb_ca": torch.randn(2, 9, 3),
        "local_latents": torch.randn(2, 9, 6),
        "bb_ca_time": both_rows(0.61),
        "local_latents_time": both_rows(0.47),
        "padding_mask": padding_mask(9, 7, torch.bool),
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
    "RFD4ProteinaTransformer": TinyClass(rfd4_proteina, rfd4_proteina_inputs),
}
