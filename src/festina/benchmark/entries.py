"""What a benchmark tries of a method: its name, a range of its knobs, and how a plan is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from festina.calibration import Calibration
from festina.plan import Plan
from festina.samplers.teleportation import GaussianStatistics

Knobs = Mapping[str, Any]
"""A method's settings: JSON values by name."""

Settings = Callable[[int], tuple[Knobs, ...]]
"""From a number of sampling steps to what is tried, one mapping per plan."""

Calibrate = Callable[[], Any]
"""Gives the calibration of the pipeline: made when it is first asked for, the same from then on."""


@dataclass(frozen=True)
class Carried:
    """A plan that carries the first noise, and the statistics of the model by which it does."""

    plan: Plan
    statistics: GaussianStatistics


@dataclass(frozen=True)
class Entry:
    """A method and what of it is tried.

    Attributes:
        method: its name.
        settings: its knobs.
        make: the plan of a pipeline, a number of steps, knobs, and what it is made from: the calibration, what
            `prepare` made of it, or None.
        needs_calibration: whether it is made from a calibration.
        prepare: makes once, of pipeline, steps and calibration, what all its settings are made from.
    """

    method: str
    settings: Settings
    make: Callable[[Any, int, Knobs, Any], Plan | Carried]
    needs_calibration: bool = False
    prepare: Callable[[Any, int, Calibration], Any] | None = None


def each(knob: str, *values: Any) -> Settings:
    """One knob at each of these values."""
    return lambda steps: tuple({knob: value} for value in values)


def these(*settings: Knobs) -> Settings:
    """These, whatever the number of steps."""
    return lambda steps: settings


def intervals(*values: int) -> Settings:
    """Intervals that are shorter than the run."""
    return lambda steps: tuple({"interval": value} for value in values if value < steps)
