"""Skipped blocks, as in AutoDiffusion's architectures (arXiv 2309.10438)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from festina.errors import FestinaError
from festina.methods.columns import plan_of_columns, want_whole
from festina.plan import COMPUTE, MAX_STEPS, SKIP, Plan
from festina.sites import block_sites, find_denoiser


def block_skipping(pipe: Any, steps: int, skipped: Sequence[Sequence[int]] | Mapping[int, Sequence[int]]) -> Plan:
    """Leave blocks out of single steps: a skipped block passes its input on, nothing is stored.

    AutoDiffusion (arXiv 2309.10438) searches for such lists, together with the timesteps; here the lists are given.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, at least 1.
        skipped: for each step the blocks to leave out, or these lists by step for some steps. Blocks are numbered from
            0 in the order of `festina.sites.block_sites`. The first step skips none.

    Raises:
        FestinaError: there is no such step or block, a list per step is missing, the first step skips a block, or the
            denoiser has no blocks.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    denoiser = find_denoiser(pipe)
    names = [site.name for site in block_sites(denoiser)]
    if not names:
        raise FestinaError(f"{type(denoiser).__name__} has no blocks, so none can be skipped.")
    if not isinstance(skipped, Mapping) and len(skipped) != steps:
        raise FestinaError(f"{len(skipped)} lists of skipped blocks for {steps} steps; wanted one each, or a mapping.")
    lists = dict(skipped if isinstance(skipped, Mapping) else enumerate(skipped))
    table = [[COMPUTE] * steps for _ in names]
    for step, blocks in lists.items():
        want_whole("a step that skips blocks", step, 0, steps - 1)
        for block in blocks:
            want_whole("a skipped block", block, 0, len(names) - 1)
            table[block][step] = SKIP
    if any(row[0] == SKIP for row in table):
        raise FestinaError("the first step skips a block, but it always computes everything; begin with step 1.")
    columns = {name: "".join(row) for name, row in zip(names, table, strict=True)}
    settings = {"skipped": {str(step): list(blocks) for step, blocks in sorted(lists.items()) if len(blocks)}}
    return plan_of_columns(pipe, columns, "block_skipping", settings)
