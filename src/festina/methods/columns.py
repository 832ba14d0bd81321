"""What methods share: from one text of actions per site to a plan, and checks of knobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.forecasts import NEWTON
from festina.gates import Gate
from festina.plan import COMPUTE, REUSE, Plan, Step, even_noise
from festina.sites import component_sites, find_denoiser, sampler_of


def plan_of_columns(
    pipe: Any,
    columns: Mapping[str, str],
    method: str,
    settings: Mapping[str, Any],
    basis: str = NEWTON,
    gate: Gate | None = None,
) -> Plan:
    """The plan in which each site does what its text says, one letter per step; noise levels are evenly spaced.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        columns: by name of a site its actions, all texts of one length.
        method, settings, basis, gate: see `festina.Plan`.

    Raises:
        FestinaError: there is no site or no step, or a letter is no action.
    """
    rows = ["".join(row) for row in zip(*columns.values(), strict=True)]
    steps = tuple(Step(noise, row) for noise, row in zip(even_noise(len(rows)), rows, strict=True))
    name = type(find_denoiser(pipe)).__name__
    return Plan(name, tuple(columns), steps, method, settings, sampler_of(pipe), basis=basis, gate=gate)


def computing(pipe: Any, steps: int, method: str, settings: Mapping[str, Any]) -> Plan:
    """The plan in which every component computes in each of `steps` steps; for its arguments see `plan_of_columns`."""
    columns = dict.fromkeys((site.name for site in component_sites(find_denoiser(pipe))), COMPUTE * steps)
    return plan_of_columns(pipe, columns, method, settings)


def letters(computes: NDArray[np.bool_]) -> str:
    """Actions of a site that computes where it is marked, bool (steps,), and reuses elsewhere."""
    return "".join(COMPUTE if step else REUSE for step in computes)


def want_whole(what: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise a `FestinaError` that names the knob `what`, unless it is a whole number from `least` to `most`."""
    if type(value) is not int or value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise FestinaError(f"{what} is {value!r:.40}; wanted a whole number {wanted}.")


def want_one_of(what: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise a `FestinaError` that names the knob `what`, unless it has one of the known values."""
    if value not in known:
        raise FestinaError(f"{what} is {value!r:.40}; wanted one of {', '.join(known)}.")
