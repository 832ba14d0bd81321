"""Interleaved timing in rounds that are kept one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from festina.benchmark.folder import Folder, Round
from festina.benchmark.variants import Variant
from festina.search.generation import generate
from festina.search.workload import Workload


def timed_rounds(
    pipe: Any,
    variants: Sequence[Variant],
    workload: Workload,
    folder: Folder,
    count: int,
    told: Callable[[int], None],
) -> list[Round]:
    """At least `count` complete rounds, those that are in the folder already among them.

    In a round every variant makes one batch of pictures, one after another, so that what slows the machine for a while
    slows all of them, and ratios are taken within it. A round that was not completed leaves nothing. Before the first
    round of a process the first variant warms up untimed.

    Args:
        pipe: the pipeline, untouched.
        variants: what is timed.
        workload: its first batch is drawn.
        folder: receives each round once it is complete.
        count: how many there shall be.
        told: told after each round how many there are.

    Returns:
        seconds of one batch by name, one mapping per round.

    Raises:
        FestinaError: a variant cannot be run any more, or the folder cannot be written.
    """
    rounds = folder.rounds(variants)
    if len(rounds) < count:
        seconds_of(pipe, variants[0], workload)
    while len(rounds) < count:
        made = {variant.name: seconds_of(pipe, variant, workload) for variant in variants}
        folder.keep_round(variants, made)
        rounds.append(made)
        told(len(rounds))
    return rounds


def seconds_of(pipe: Any, variant: Variant, workload: Workload) -> float:
    """Wall seconds of drawing the workload's first batch; putting a plan on and taking it off does not count."""
    pictures = workload.pictures()[: workload.batch]
    own = replace(workload, steps=variant.steps)
    with variant.running(pipe):
        began = time.perf_counter()
        generate(pipe, pictures, own)
        return time.perf_counter() - began
