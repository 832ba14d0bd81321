"""CacheQuant's schedule: groups of like steps by dynamic programming (arXiv 2503.01323)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.calibration import Calibration
from festina.calibration.record import DISTANCES
from festina.errors import FestinaError
from festina.methods.calibrated import want_fit
from festina.methods.columns import letters, plan_of_columns, want_whole
from festina.plan import Plan


def cachequant(pipe: Any, steps: int, calibration: Calibration, interval: int) -> Plan:
    """The schedule of CacheQuant (arXiv 2503.01323; "dynamic programming schedule" of the released code).

    The steps are cut into ceil(steps / interval) groups of ceil(interval / 2) to 2 * interval steps, so that what is
    served differs least from what would be computed: the sum over all steps of the L1 distance to the first step of the
    group. That step computes, the others reuse it. Served is what `calibration.feature` names: the stack of a
    transformer, or all but the shallowest level of a U-Net.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, as many as calibrated.
        calibration: distances of this pipeline (`festina.calibrate`).
        interval: mean number of steps from one computation to the next, at least 1; 1 computes everything.

    Raises:
        FestinaError: the calibration does not fit, or no groups of these sizes make up so many steps.
    """
    want_fit(calibration, pipe, steps, DISTANCES)
    computing = np.zeros(steps, dtype=np.bool_)
    computing[list(group_starts(calibration.distances(), interval))] = True
    settings = {"interval": interval, "calibration": calibration.told()}
    return plan_of_columns(pipe, dict.fromkeys(calibration.feature, letters(computing)), "cachequant", settings)


def group_starts(distances: NDArray[np.float64], interval: int) -> tuple[int, ...]:
    """First steps of the groups of least cost; of equal ones those whose last group begins first.

    Args:
        distances: distance of the served feature between any two steps, float (steps, steps); infinite where nothing
            can be served.
        interval: mean size of a group, at least 1.

    Raises:
        FestinaError: no groups of ceil(interval / 2) to 2 * interval steps make up so many steps, or all of them would
            serve where nothing can be.
    """
    steps = len(distances)
    want_whole("the interval", interval, 1)
    groups, least, most = math.ceil(steps / interval), math.ceil(interval / 2), 2 * interval
    if not groups * least <= steps <= groups * most:
        raise FestinaError(
            f"{steps} steps in {groups} groups of {least} to {most} steps cannot be; wanted an interval of at most "
            f"{2 * steps}."
        )
    # cost[j, n]: what the steps j to n - 1 cost as one group.
    cost = np.concatenate([np.zeros((steps, 1)), np.cumsum(np.triu(distances), axis=1)], axis=1)
    best = np.full((groups + 1, steps + 1), np.inf)
    start = np.zeros((groups + 1, steps + 1), dtype=np.int_)
    best[0, 0] = 0.0
    for count in range(1, groups + 1):
        for end in range(least, steps + 1):
            starts = np.arange(max(0, end - most), end - least + 1)
            totals = best[count - 1, starts] + cost[starts, end]
            chosen = int(totals.argmin())
            best[count, end], start[count, end] = totals[chosen], starts[chosen]
    if not np.isfinite(best[groups, steps]):
        raise FestinaError(
            f"no {groups} groups of {least} to {most} steps keep what two experts compute apart; take another interval."
        )
    found, end = [], steps
    for count in range(groups, 0, -1):
        end = int(start[count, end])
        found.append(end)
    return tuple(reversed(found))
