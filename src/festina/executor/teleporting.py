"""Carrying the first noise of a run to the level at which a plan's solver begins (`festina.samplers.teleportation`).

The pipeline makes its first sample, gives it to the denoiser, and gives it to the scheduler with what the denoiser
said. Both are given the carried sample in its place; what the scheduler returns is a sample of the run as any other.
A run that begins midway, or with a picture that the scheduler put noise on, is left alone.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from festina.errors import FestinaError
from festina.executor.calls import Arguments, changed_arguments
from festina.executor.clock import StepClock
from festina.plan import Plan
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.teleportation import GaussianStatistics, teleported


class Teleport:
    """Puts the carried sample in the place of a run's first one.

    Args:
        scheduler: the scheduler of the plan's solver.
        statistics: of the model's clean latents.
    """

    def __init__(self, scheduler: PlanScheduler, statistics: GaussianStatistics) -> None:
        self.scheduler, self.statistics = scheduler, statistics

    def due(self, clock: StepClock) -> bool:
        """Whether the present step is the first of a run that begins with noise.

        Raises:
            FestinaError: it cannot be told whether the run begins midway, with a picture.
        """
        if clock.ended or self.scheduler.noised:
            return False
        if clock.first is None:
            raise FestinaError(
                "the plan carries the first noise, and it cannot be told in which step this run begins: the pipeline "
                "gives its denoiser copies of the timesteps. Carry the noise by festina.samplers.teleportation."
                'teleported and give it as latents=..., with a table whose start is "given".'
            )
        return clock.first == 0

    def of_call(self, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a call of the denoiser in a run's first step; the sample may be there for each branch."""
        sample = names[0]
        return changed_arguments(names, args, kwargs, lambda path, value: self.of(value) if path == sample else value)

    def of(self, sample: Any) -> Any:
        """The sample, carried.

        Raises:
            FestinaError: it is of another shape than the statistics are, or the pipeline steps with another scheduler.
        """
        table = self.scheduler.run_table
        if table is None:
            raise FestinaError(
                "the plan carries the first noise, and this pipeline steps with a copy of its scheduler. Carry the "
                "noise by festina.samplers.teleportation.teleported and give it as latents=..., with a table whose "
                'start is "given".'
            )
        if not isinstance(sample, Tensor):
            return sample
        return teleported(sample, self.scheduler.frame, self.statistics, table.steps[0].noise)


def teleporting(
    plan: Plan, scheduler: Any, statistics: GaussianStatistics | str | os.PathLike[str] | None
) -> Teleport | None:
    """What carries a run's first sample; None where the plan wants nothing of the kind.

    Args:
        plan: the plan.
        scheduler: what the pipeline runs it with.
        statistics: those that the user gave, or the path of their file.

    Raises:
        FestinaError: the plan wants statistics, and there are none, or the other way round; a file without them; or a
            model of EDM, whose pipelines scale a sample before they give it to the denoiser.
    """
    if plan.solver is None or plan.solver.start != "gaussian":
        if statistics is not None:
            raise FestinaError(
                'statistics were given, and the plan carries nothing: its solver\'s table does not start "gaussian". '
                "Leave them out, or use such a plan."
            )
        return None
    if statistics is None:
        raise FestinaError(
            "the plan carries the first noise to its first level by Gaussian statistics of the model, and none were "
            "given. Give them, or the path of their file, as statistics=... (on the command line --statistics FILE; "
            "festina.calibration.gaussian makes them)."
        )
    if scheduler.frame.family == "edm":
        raise FestinaError(
            "a plan cannot carry the first noise of an EDM model, whose pipelines scale it in between. Carry it by "
            "festina.samplers.teleportation.teleported and give it as latents=..., with a table whose start is "
            '"given".'
        )
    found = statistics if isinstance(statistics, GaussianStatistics) else GaussianStatistics.load(statistics)
    return Teleport(scheduler, found)
