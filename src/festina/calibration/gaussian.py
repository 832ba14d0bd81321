"""Gaussian statistics of what a pipeline draws, for teleportation (`festina.samplers.teleportation`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from festina.calibration.running import call_arguments
from festina.errors import FestinaError
from festina.samplers.recording import record
from festina.samplers.table import SolverTable
from festina.samplers.teleportation import GaussianStatistics, statistics_of


def generated_statistics(
    pipe: Any,
    table: SolverTable,
    prompts: Sequence[str],
    rank: int,
    seeds: Sequence[int] | None = None,
    guidance: float | None = None,
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> GaussianStatistics:
    """Mean and covariance of the clean latents that a pipeline draws, where its training data is not at hand.

    Every prompt is a run of its own. The latents are those that the scheduler ends with, so that they are in its units
    and packed where the pipeline packs them. Statistics hold for one size of picture, and for the guidance they were
    drawn with.

    Args:
        pipe: a diffusers pipeline that takes prompts, or class labels, with no plan applied.
        table: the sampler to draw with.
        prompts: what to draw, one picture each; numbers as texts where the pipeline takes class labels.
        rank: directions to keep, from 1 to the pictures less 1.
        seeds: seed of the noise of each picture; 0, 1, ... if not given.
        guidance: the call's `guidance_scale`; the pipeline's own if not given.
        call: further arguments of the pipeline's call.
        progress: told how many pictures are done, of how many, and what is going on.

    Raises:
        FestinaError: not one seed for each prompt, a rank out of range, or a pipeline that cannot be called or recorded
            so.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(prompts) <= rank or len(seeds) != len(prompts):
        raise FestinaError(
            f"{len(prompts)} prompts and {len(seeds)} seeds for statistics of rank {rank}; wanted more prompts than "
            "the rank, one seed each."
        )
    drawn = []
    for number, picture in enumerate(zip(prompts, seeds, strict=True)):
        arguments = call_arguments(pipe, picture, table.calls, guidance, call or {})
        drawn.append(record(pipe, table, partial(pipe, **arguments)).samples[-1])
        if progress is not None:
            progress(number + 1, len(prompts), f"measuring latents of {len(prompts)} pictures")
    guided = "" if guidance is None else f", guidance {guidance:g}"
    told = f"{type(pipe).__name__}, {table.calls} network calls{guided}"
    return statistics_of(torch.cat(drawn), rank, told)
