"""A sampler as part of a plan: the solver's table, with a row of the schedule for each of its network calls."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from festina.errors import FestinaError
from festina.methods.columns import computing
from festina.noise import even_noise, nearest
from festina.plan import Plan

if TYPE_CHECKING:
    from festina.samplers.table import SolverTable


def solver(pipe: Any, table: SolverTable, plan: Plan | None = None) -> Plan:
    """A plan that runs a solver's table; see `festina.samplers`.

    Args:
        pipe: a diffusers pipeline, whose scheduler says how noise is counted.
        table: the table.
        plan: a plan of another method to run with it. Each network call takes its record nearest in noise. Without one
            everything computes.

    Raises:
        FestinaError: the pipeline has no scheduler, or one whose place the table cannot take; the plan has a solver, or
            is for another denoiser.
    """
    levels = call_noise(pipe, table)
    settings: dict[str, Any] = {"calls": table.calls}
    if plan is None:
        made = computing(pipe, len(levels), "solver", settings)
        steps = tuple(replace(step, noise=level) for step, level in zip(made.steps, levels, strict=True))
        return replace(made, steps=steps, solver=table)
    if plan.solver is not None:
        raise FestinaError("the plan has a solver. Use dataclasses.replace(plan, solver=None) first.")
    known = np.array([step.noise for step in plan.steps])
    # How far a step answers ahead depends on those that follow, now others.
    steps = tuple(replace(plan.steps[nearest(known, level)], noise=level, ahead=0) for level in levels)
    settings |= {"schedule": plan.method, "schedule_settings": dict(plan.settings)}
    return replace(plan, steps=steps, solver=table, method="solver", settings=settings, measured=())


def call_noise(pipe: Any, table: SolverTable) -> tuple[float, ...]:
    """Where a table's network calls lie on a plan's noise axis: shares of the training schedule, falling.

    Levels that a table comes to twice, and those of EDM, have no such places; then they are even.

    Args:
        pipe: a diffusers pipeline.
        table: the table; its levels are meant after any shift.

    Raises:
        FestinaError: the pipeline has no scheduler whose place a table can take, or not these levels.
    """
    # diffusers' schedulers take seconds to import.
    from festina.samplers.scheduler import PlanScheduler

    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise FestinaError("a solver's table wants a pipeline with a scheduler; found none. Give the whole pipeline.")
    frame = PlanScheduler.from_scheduler(scheduler, table).frame
    calls = [step for step in table.steps if step.call == "network"]
    shares = [frame.network_time(step.noise) / frame.train_steps for step in calls]
    placed = all(0 <= share <= 1 for share in shares) and all(one > next_ for one, next_ in pairwise(shares))
    return tuple(shares) if placed else tuple(even_noise(len(calls)))
