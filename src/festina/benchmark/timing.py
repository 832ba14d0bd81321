"""Interleaved timing in rounds that are kept one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from festina.benchmark.folder import Folder, Round
from festina.benchmark.variants import Variant
from festina.report.rounds import timed_round
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

    For a round see `festina.report.rounds`; its yardstick is the first variant, which warms up untimed before the first
    round of a process. A round that was not completed leaves nothing.

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
        timed_round(pipe, (), workload, variants[0])
    while len(rounds) < count:
        made = timed_round(pipe, variants, workload, variants[0])
        folder.keep_round(variants, made)
        rounds.append(made)
        told(len(rounds))
    return rounds
