"""FORA: compute everything every few steps, reuse it in between (arXiv 2407.01425)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.plan import Plan
from festina.sites import component_sites, find_denoiser, sampler_of


def fora(pipe: Any, steps: int, interval: int) -> Plan:
    """The static schedule of FORA: every component computes in step s if and only if s mod `interval` = 0.

    FORA (arXiv 2407.01425) recomputes attention and feed-forward outputs at a fixed interval. Steps count from 0, the
    noisiest, as in ECAD's comparison (arXiv 2506.15682), so that a run of 20 steps computes 10, 7, 5 and 4 of them at
    the intervals 2, 3, 4 and 5.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, at least 1.
        interval: steps from one computation to the next, at least 1; 1 computes everything.

    Raises:
        FestinaError: the denoiser's class has no site row, or `steps` or `interval` is less than 1.
    """
    denoiser = find_denoiser(pipe)
    names = [site.name for site in component_sites(denoiser)]
    mask = np.repeat(every(steps, interval)[:, None], len(names), axis=1)
    plan = Plan.from_mask(type(denoiser).__name__, names, mask, method="fora", settings={"interval": interval})
    return replace(plan, sampler=sampler_of(pipe))


def every(steps: int, interval: int) -> NDArray[np.bool_]:
    """Which of `steps` steps are a multiple of `interval`, bool (steps,).

    Raises:
        FestinaError: `steps` or `interval` is less than 1.
    """
    if steps < 1 or interval < 1:
        raise FestinaError(f"{steps} steps at an interval of {interval}; wanted at least 1 of each.")
    marks: NDArray[np.bool_] = np.arange(steps) % interval == 0
    return marks
