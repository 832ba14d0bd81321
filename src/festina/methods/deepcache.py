"""DeepCache: run only the shallow levels of a U-Net, keep what the deep ones sent up (arXiv 2312.00858)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.methods.columns import letters, plan_of_columns, want_whole
from festina.methods.fora import every
from festina.plan import MAX_STEPS, Plan
from festina.sites import find_denoiser, levels_of, run_of
from festina.strict import is_number

CENTRE, POWER = 15, 1.4
"""The released demonstration for Stable Diffusion at 50 steps."""


def deepcache(
    pipe: Any,
    steps: int,
    interval: int,
    branch: int = 0,
    uniform: bool = True,
    centre: int | None = None,
    power: float | None = None,
) -> Plan:
    """The static schedule of DeepCache (arXiv 2312.00858; rules as in its released code).

    In a full step the whole U-Net runs. In the others the levels below `branch` do not: the feature that they last sent
    up is served. The cut lies between two levels; the released code can also cut between two layers of a level.

    Args:
        pipe: a diffusers pipeline around a U-Net, or the U-Net.
        steps: sampling steps, at least 1.
        interval: one step in so many is full, at least 1; 1 computes everything.
        branch: the deepest level that always runs, 0 = the shallowest; the smaller, the more is saved.
        uniform: whether full steps are the multiples of `interval`. Otherwise there are ceil(steps / interval) of them,
            densest around a step.
        centre: that step, 0 to steps - 1; `CENTRE` if not given. Only where steps are not uniform.
        power: how much denser they are there, above 1; `POWER` if not given. Only where steps are not uniform.

    Raises:
        FestinaError: the denoiser is no U-Net, a knob is out of its range, `centre` or `power` is given for uniform
            steps, or there is no such choice of steps.
    """
    levels = levels_of(find_denoiser(pipe))
    want_whole("the branch", branch, 0, len(levels.down) - 1)
    below = (*levels.down[branch + 1 :], *levels.middle, *levels.up[: len(levels.up) - 1 - branch])
    if not below:
        raise FestinaError(f"nothing lies below level {branch} of this U-Net; take a smaller branch.")
    if uniform:
        if centre is not None or power is not None:
            raise FestinaError("uniform steps have no centre and no power; leave them out, or give uniform=False.")
        full = every(steps, interval)
    else:
        centre, power = CENTRE if centre is None else centre, POWER if power is None else power
        full = dense_around(steps, interval, centre, power)
    settings = {"interval": interval, "branch": branch, "uniform": uniform, "centre": centre, "power": power}
    return plan_of_columns(pipe, {run_of(below): letters(full)}, "deepcache", settings)


def dense_around(steps: int, interval: int, centre: int, power: float) -> NDArray[np.bool_]:
    """DeepCache's full steps that are no uniform ones, bool (steps,): ceil(steps / interval) of them.

    As released: the ends of the run, counted from the centre, are put to the power 1 / `power`, points are spread
    evenly between these, and put to `power` again. The first end is negative, so its root is complex, and so are the
    points; only at the end the real part is taken. Where rounding makes two steps one, `power` falls by 0.02.

    Args:
        steps, interval, centre, power: see `deepcache`.

    Raises:
        FestinaError: a knob is out of its range, or no power above 1 gives that many steps.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    want_whole("the interval", interval, 1)
    want_whole("the centre", centre, 0, steps - 1)
    if not is_number(power) or power <= 1:
        raise FestinaError(f"the power is {power!r:.40}; wanted a number above 1.")
    count = math.ceil(steps / interval)
    if count == steps:
        return np.ones(steps, dtype=bool)
    tried = power
    while tried > 1:
        ends = complex(-centre) ** (1 / tried), complex(steps - centre) ** (1 / tried)
        places = np.trunc((np.linspace(*ends, count + 1) ** tried).real).astype(int)
        chosen = [0, *(np.unique(places)[1:-1] + centre)]
        if len(chosen) == count:
            marks = np.zeros(steps, dtype=bool)
            marks[chosen] = True
            return marks
        tried -= 0.02
    raise FestinaError(
        f"no {count} of {steps} steps are dense around step {centre} with a power from {power:g} down to 1; take a "
        f"larger interval or power, another centre, or uniform steps."
    )
