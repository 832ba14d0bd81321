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

_BETWEEN = 8
"""Ways between two runs of the yardstick: it costs a fifth more seconds, where most ways are faster than it."""


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


def timed_round(pipe: Any, ways: Sequence[Way], workload: Workload, yardstick: Way) -> dict[str, float]:
    """Seconds of one batch by name, as if the machine had been equally fast throughout the round.

    The ways take turns, and ratios are taken within a round. In a long round the machine may become faster or slower:
    the yardstick runs before the first way, after the last, and after every `_BETWEEN` ways, and what ran between two
    of its runs is set against the mean of these. Figures are wall seconds times what the yardstick took in the middle
    of the round's runs, by what it took around them; its own is that middle.

    Args:
        pipe: the pipeline, untouched.
        ways: what is timed, in this order; the yardstick may be among them.
        workload: its first batch is drawn, with each way's own steps.
        yardstick: what the others are compared with.

    Raises:
        FestinaError: a way does not fit the pipeline.
    """
    others = [way for way in ways if way.name != yardstick.name]
    before = seconds_of(pipe, yardstick, workload)
    marks, spans = [before], dict[str, float]()
    for first in range(0, len(others), _BETWEEN):
        block = others[first : first + _BETWEEN]
        took = {way.name: seconds_of(pipe, way, workload) for way in block}
        after = seconds_of(pipe, yardstick, workload)
        spans |= {name: 2 * seconds / (before + after) for name, seconds in took.items()}
        marks.append(after)
        before = after
    middle = median(marks)
    return {way.name: middle * spans.get(way.name, 1.0) for way in ways}


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
