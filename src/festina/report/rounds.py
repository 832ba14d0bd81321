"""Timing ways to run one pipeline in rounds, one after another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import median
from typing import Any, Protocol

from festina.search.generation import generate
from festina.search.workload import Workload


class Way(Protocol):
    """A way to run a pipeline."""

    @property
    def name(self) -> str:
        """What it is called; no two ways of a round have one name."""

    @property
    def steps(self) -> int:
        """Its sampling steps."""

    def running(self, pipe: Any) -> AbstractContextManager[object]:
        """A context in which the pipeline runs this way."""


def timed_round(pipe: Any, ways: Sequence[Way], workload: Workload) -> dict[str, float]:
    """Wall seconds of one batch by name. The ways take turns, so that what slows the machine for a while slows all of
    them, and ratios are taken within a round.

    Args:
        pipe: the pipeline, untouched.
        ways: what is timed, in this order.
        workload: its first batch is drawn, with each way's own steps.

    Raises:
        FestinaError: a way does not fit the pipeline.
    """
    return {way.name: seconds_of(pipe, way, workload) for way in ways}


def seconds_of(pipe: Any, way: Way, workload: Workload) -> float:
    """Wall seconds of drawing the workload's first batch; putting a plan on and taking it off does not count."""
    pictures = workload.pictures()[: workload.batch]
    own = replace(workload, steps=way.steps)
    with way.running(pipe):
        began = time.perf_counter()
        generate(pipe, pictures, own)
        return time.perf_counter() - began


def over_rounds(rounds: Sequence[Mapping[str, float]], first: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and ratio of each way over several rounds.

    Args:
        rounds: seconds by name, of the same ways in each.
        first: the way that the others are compared with.

    Returns:
        by name the seconds of one batch, which are the median of the first way's over its ratio, so that a round in
        which the machine was slow moves no way against another; and the ratio: the median of the ratios of the first
        way's seconds to its own, each within a round.
    """
    ratios = {name: median(made[first] / made[name] for made in rounds) for name in rounds[0]}
    whole = median(made[first] for made in rounds)
    return {name: whole / ratio for name, ratio in ratios.items()}, ratios
