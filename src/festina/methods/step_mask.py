"""Step masks: a 0 or 1 per step for the whole stack, as in cache-dit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from festina.errors import FestinaError
from festina.methods.columns import plan_of_columns
from festina.plan import COMPUTE, REUSE, Plan
from festina.sites import find_denoiser, stack_runs


def step_mask(pipe: Any, mask: Sequence[int], first: int = 0, last: int = 0) -> Plan:
    """cache-dit's static policy: in steps marked 0 all blocks but the first and last ones are left out.

    In their place the change that they made in the last step marked 1, out - in, is added to their present input, one
    tensor per stream and list of blocks.

    Args:
        pipe: a diffusers pipeline around a transformer, or the transformer.
        mask: 1 (compute) or 0 (serve) per step, the noisiest first; it begins with 1.
        first, last: blocks at both ends of the stack that always compute (cache-dit's Fn and Bn); of lists whose
            blocks take turns, so many of each.

    Raises:
        FestinaError: the mask is something else, no blocks are left to serve, or the denoiser has no stack of blocks.
    """
    bits = list(mask)
    if not bits or any(bit not in (0, 1) for bit in bits) or not bits[0]:
        raise FestinaError(f"the mask is {bits!s:.40}; wanted a 0 or 1 per step, the first 1: the first step computes.")
    actions = "".join(COMPUTE if bit else REUSE for bit in bits)
    columns = dict.fromkeys(stack_runs(find_denoiser(pipe), first, last), actions)
    settings = {"mask": [int(bit) for bit in bits], "first": first, "last": last}
    return plan_of_columns(pipe, columns, "step_mask", settings)
