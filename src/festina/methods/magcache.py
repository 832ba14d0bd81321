"""MagCache: serve the stack as long as the measured magnitudes of its residual stay near one (arXiv 2506.09045)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.calibration import Calibration
from festina.calibration.record import MAGNITUDES
from festina.errors import FestinaError
from festina.methods.calibrated import want_fit, want_threshold
from festina.methods.columns import letters, plan_of_columns, want_whole
from festina.methods.gated import share_of_steps
from festina.plan import Plan
from festina.sites import find_denoiser, stack_runs


def magcache(
    pipe: Any,
    steps: int,
    ratios: Calibration | Sequence[float],
    threshold: float,
    longest: int = 3,
    retention: float = 0.2,
) -> Plan:
    """The schedule of MagCache (arXiv 2506.09045). It depends on no picture, so it is a table, not a gate.

    Args:
        pipe: a diffusers pipeline with a transformer, or the transformer.
        steps: sampling steps.
        ratios: a calibration of so many steps, or per step the mean over tokens of ||R(i)|| / ||R(i-1)|| of the stack's
            residual R; the first does not matter, and NaN says that the step computes. For another number of steps see
            `resample_ratios`.
        threshold: largest sum of deviations that is served, at least 0. Published: 0.24 for FLUX and HunyuanVideo, 0.12
            for Wan 2.1; 0.06 in diffusers.
        longest: most steps served in a row, at least 1.
        retention: share of the steps at the beginning that compute, from 0 to 1: floor(retention * steps + 0.5) steps
            as for FLUX, and at least one.

    Raises:
        FestinaError: the denoiser has no stack of blocks, the calibration does not fit, there is not a ratio per step,
            or a knob is out of its range.
    """
    runs = stack_runs(find_denoiser(pipe))
    if isinstance(ratios, Calibration):
        want_fit(ratios, pipe, steps, MAGNITUDES)
        source: dict[str, Any] = {"calibration": ratios.told()}
        table = ratios.magnitude_ratios()
    else:
        table = tuple(float(ratio) for ratio in ratios)
        source = {"ratios": [None if math.isnan(ratio) else ratio for ratio in table]}
    if len(table) != steps:
        raise FestinaError(
            f"{len(table)} magnitude ratios for {steps} steps; give one per step. As published does "
            f"resample_ratios(ratios, {steps}); a calibration of {steps} steps is better."
        )
    want_threshold(threshold)
    want_whole("the longest reuse", longest, 1)
    first = max(1, share_of_steps(retention, steps, 0.5))
    actions = letters(computed_steps(table, threshold, longest, first))
    settings = {"threshold": threshold, "longest": longest, "retention": retention, **source}
    return plan_of_columns(pipe, dict.fromkeys(runs, actions), "magcache", settings)


def computed_steps(ratios: Sequence[float], threshold: float, longest: int, first: int) -> NDArray[np.bool_]:
    """MagCache's rule: the ratios since the last computed step are multiplied, the deviations of these products from 1
    added up; a step is served while the sum is at most the threshold.

    Args:
        ratios: magnitude ratio of each step to the step before; NaN where there is none.
        threshold: largest sum that is served.
        longest: most steps served in a row.
        first: the first step that may be served, at least 1.

    Returns:
        which steps compute, bool (steps,).
    """
    computing = np.ones(len(ratios), dtype=np.bool_)
    product, served, total = 1.0, 0, 0.0
    for step in range(first, len(ratios)):
        product *= ratios[step]
        served += 1
        total += abs(1 - product)
        computing[step] = not total <= threshold or served > longest
        if computing[step]:
            product, served, total = 1.0, 0, 0.0
    return computing


def resample_ratios(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """Magnitude ratios for another number of steps: each step takes that of the nearest one, ends to ends.

    As MagCache's released code does; a ratio stays that of neighbours in the old grid.

    Args:
        ratios: a ratio per step, as `Calibration.magnitude_ratios` gives them.
        steps: the other number of steps, at least 1; one takes the last ratio.

    Raises:
        FestinaError: there are no ratios, or `steps` is less than 1.
    """
    if not ratios or steps < 1:
        raise FestinaError(f"cannot resample {len(ratios)} ratios to {steps} steps; wanted at least one of each.")
    if steps == 1:
        return (ratios[-1],)
    # Python rounds halves to even, as numpy does there.
    return tuple(ratios[round(step * (len(ratios) - 1) / (steps - 1))] for step in range(steps))
