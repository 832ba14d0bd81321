"""Faster Diffusion: run a U-Net's encoder at key steps only (arXiv 2312.09608)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from festina.errors import FestinaError
from festina.methods.columns import letters, plan_of_columns, want_whole
from festina.methods.fora import every
from festina.plan import MAX_STEPS, Plan
from festina.sites import entry_site, find_denoiser, levels_of, run_of
from festina.strict import is_number

KEYS, KEYS_OF = (0, 1, 2, 3, 5, 10, 15, 25, 35), 50
"""Key steps of the released code for Stable Diffusion, and the number of steps they are for."""

INJECTED_FROM = 0.5
"""Noise level from which on initial noise is added: the second half, as in the released code."""


def faster_diffusion(
    pipe: Any,
    steps: int,
    keys: Sequence[int] | int | None = None,
    parallel: bool = False,
    injection: float = 0.0,
) -> Plan:
    """Encoder propagation, parallel decoder and noise injection of Faster Diffusion (arXiv 2312.09608; rules and key
    steps as in its released code).

    At key steps the whole U-Net runs. At the others only the way up does, with the present time embedding and text, on
    the skip connections and the middle's output of the last key step.

    Args:
        pipe: a diffusers pipeline around a U-Net, or the U-Net.
        steps: sampling steps, at least 1.
        keys: key steps, rising from 0; a number for its multiples, 1 computes everything; None for `KEYS`, moved in
            proportion where there are not 50 steps (see `scaled_keys`).
        parallel: whether the way up of all steps between two key steps runs in one call. Then the first skip
            connection, which comes before the regions, is of the last key step too, as in the released code; otherwise
            it is computed from the present latents.
        injection: share of the initial latents that is added after each step of the second half of the noise range, 0
            to 1; the paper has 0.003.

    Raises:
        FestinaError: the denoiser is no U-Net, `steps` is less than 1, `keys` are no rising steps from 0, or
            `injection` is out of its range.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    if not is_number(injection) or not 0 <= injection <= 1:
        raise FestinaError(f"the injection is {injection!r:.40}; wanted a share from 0 to 1, such as 0.003.")
    denoiser = find_denoiser(pipe)
    levels = levels_of(denoiser)
    if isinstance(keys, int):
        chosen = tuple(int(step) for step in np.flatnonzero(every(steps, keys)))
    else:
        chosen = scaled_keys(steps) if keys is None else tuple(keys)
    for key in chosen:
        want_whole("a key step", key, 0, steps - 1)
    if not chosen or chosen[0] != 0 or list(chosen) != sorted(set(chosen)):
        raise FestinaError(
            f"the key steps are {list(chosen)!s:.60}; wanted steps that rise from 0, which always is one."
        )
    computes = np.zeros(steps, dtype=bool)
    computes[list(chosen)] = True
    served = (*((entry_site(denoiser).name,) if parallel else ()), run_of((*levels.down, *levels.middle)))
    settings = {"keys": chosen, "parallel": parallel, "injection": injection}
    plan = plan_of_columns(pipe, dict.fromkeys(served, letters(computes)), "faster_diffusion", settings)
    ahead = dict.fromkeys(range(steps), 0)
    if parallel:
        ahead |= {key: after - key - 1 for key, after in zip(chosen, (*chosen[1:], steps), strict=True)}
    records = (
        replace(step, ahead=ahead[place], injected=injection if step.noise <= INJECTED_FROM else 0.0)
        for place, step in enumerate(plan.steps)
    )
    return replace(plan, steps=tuple(records))


def scaled_keys(steps: int) -> tuple[int, ...]:
    """`KEYS` for another number of steps: k becomes k * steps / 50, rounded down; keys that coincide are one."""
    return tuple(sorted({key * steps // KEYS_OF for key in KEYS}))
