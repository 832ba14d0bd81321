"""FORA: compute everything every few steps, reuse it in between (arXiv 2407.01425)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.methods.columns import letters, plan_of_columns, want_whole
from festina.plan import MAX_STEPS, Plan
from festina.sites import component_sites, find_denoiser


def fora(pipe: Any, steps: int, interval: int, countdown: bool = False) -> Plan:
    """The static schedule of FORA: every component computes in step s if and only if s mod `interval` = 0.

    FORA (arXiv 2407.01425) recomputes attention and feed-forward outputs at a fixed interval. Steps count from 0, the
    noisiest, as in ECAD's comparison (arXiv 2506.15682), so that a run of 20 steps computes 10, 7, 5 and 4 of them at
    the intervals 2, 3, 4 and 5.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, at least 1.
        interval: steps from one computation to the next, at least 1; 1 computes everything.
        countdown: count from the last step instead, as FORA's released code does: a step computes if it is the first or
            (steps - 1 - s) mod `interval` = 0.

    Raises:
        FestinaError: the denoiser has no components, or `steps` or `interval` is less than 1.
    """
    computes = every(steps, interval)
    if countdown:
        computes = computes[::-1].copy()
        computes[0] = True
    columns = dict.fromkeys((site.name for site in component_sites(find_denoiser(pipe))), letters(computes))
    return plan_of_columns(pipe, columns, "fora", {"interval": interval, "countdown": countdown})


def every(steps: int, interval: int) -> NDArray[np.bool_]:
    """Which of `steps` steps are a multiple of `interval`, bool (steps,).

    Raises:
        FestinaError: `steps` or `interval` is less than 1.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    want_whole("the interval", interval, 1)
    marks: NDArray[np.bool_] = np.arange(steps) % interval == 0
    return marks
