"""First-Block-Cache and DBCache: the first blocks say whether the others have changed (ParaAttention, cache-dit)."""

from __future__ import annotations

from typing import Any

from festina.forecasts import TAYLOR
from festina.gates import Gate
from festina.methods.gated import first_steps, gated_plan
from festina.plan import Plan
from festina.sites import find_denoiser, first_blocks, stack_runs


def first_block_cache(pipe: Any, steps: int, threshold: float, warm_up: int = 0, decider: str = "call") -> Plan:
    """First-Block-Cache (ParaAttention, github.com/chengzeyi/ParaAttention): the first block always computes; if its
    residual is near that of the last computed step, the residual of all others is served.

    Near means mean|old - new| / mean|old| below the threshold, old being that of the last computed step.

    Args:
        pipe: a diffusers pipeline with a transformer, or the transformer.
        steps: sampling steps, at least 1.
        threshold: at least 0; at 0 everything computes. Published: 0.08 for FLUX with 28 steps, 0.06 for HunyuanVideo.
        warm_up: first steps that compute everything; the very first one always does.
        decider: who decides in a step, see `festina.gates.Gate`.

    Raises:
        FestinaError: the denoiser has no stack of at least two blocks, or a knob is out of its range.
    """
    denoiser = find_denoiser(pipe)
    gate = Gate(first_blocks(denoiser), "residual", "computed", threshold, decider=decider)
    settings = {"threshold": threshold, "warm_up": warm_up, "decider": decider}
    runs = stack_runs(denoiser, first=1)
    return gated_plan(pipe, steps, runs, first_steps(warm_up), gate, "first_block_cache", settings)


def dbcache(
    pipe: Any,
    steps: int,
    threshold: float,
    first: int = 8,
    last: int = 0,
    warm_up: int = 8,
    longest: int = 0,
    order: int = 0,
    decider: str = "call",
) -> Plan:
    """DBCache (cache-dit, github.com/vipshop/cache-dit): `first` blocks always compute and decide as the first block of
    First-Block-Cache does; `last` blocks always compute on top of what is served.

    Args:
        pipe: a diffusers pipeline with a transformer, or the transformer.
        steps: sampling steps, at least 1.
        threshold: at least 0; at 0 everything computes. cache-dit's default is 0.08.
        first: blocks that compute first, at least 1.
        last: blocks that compute last, at least 0; some block has to remain between them.
        warm_up: first steps that compute everything; the very first one always does.
        longest: most steps served in a row; 0 for any number.
        order: order of the Taylor forecast of the residual, 0 to 9; 0 holds it.
        decider: who decides in a step, see `festina.gates.Gate`.

    Raises:
        FestinaError: the denoiser has no stack of so many blocks, or a knob is out of its range.
    """
    denoiser = find_denoiser(pipe)
    probe = first_blocks(denoiser, first)
    gate = Gate(probe, "residual", "computed", threshold, order=order, longest=longest, decider=decider)
    settings = {
        "threshold": threshold,
        "first": first,
        "last": last,
        "warm_up": warm_up,
        "longest": longest,
        "order": order,
        "decider": decider,
    }
    runs = stack_runs(denoiser, first, last)
    return gated_plan(pipe, steps, runs, first_steps(warm_up), gate, "dbcache", settings, TAYLOR)
