"""Recording the states and guided outputs of a pipeline's runs, seen through its scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch

from festina.errors import FestinaError
from festina.samplers.compiling import compile_table
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.table import SolverTable

__all__ = ["Trajectory", "record"]


@dataclass(frozen=True)
class Trajectory:
    """What the scheduler saw in runs of one table.

    Attributes:
        frame: of the model.
        noises: levels of the network calls as the scheduler counts them, and the final one.
        samples: (calls + 1, pictures, ...), the sample at each of these levels. Float32 on the CPU; float64 where the
            pipeline's samples are.
        outputs: (calls, pictures, ...), the raw output of the network after guidance for each sample but the last.
    """

    frame: Frame
    noises: tuple[float, ...]
    samples: torch.Tensor
    outputs: torch.Tensor

    @property
    def calls(self) -> int:
        """Network calls of a run."""
        return len(self.outputs)

    @property
    def levels(self) -> tuple[NoiseLevel, ...]:
        """Levels of all samples."""
        return tuple(self.frame.level(noise) for noise in self.noises)


def record(pipe: Any, table: SolverTable, draw: Callable[[], object]) -> Trajectory:
    """Run a pipeline by a table, and keep every sample and output.

    The pipeline has a `PlanScheduler` while it draws, and afterwards the very scheduler that it had. The memory needed
    is two latents per picture and network call.

    Args:
        pipe: a diffusers pipeline, or anything that draws with the scheduler in its attribute `scheduler`.
        table: the sampler's steps.
        draw: calls the pipeline, once or several times, all runs from noise, in latents of one shape and with as many
            steps as the table has. It decides prompts, seeds and guidance.

    Raises:
        FestinaError: the scheduler's place cannot be taken, `draw` made no run, or one that did not go from the first
            step to the last.
    """
    before = pipe.scheduler
    scheduler = PlanScheduler.from_scheduler(before, table)
    pipe.scheduler = scheduler
    try:
        with _listening(scheduler) as runs:
            draw()
    finally:
        pipe.scheduler = before
    table_run = scheduler.run_table
    if not runs or table_run is None:
        raise FestinaError("nothing was drawn with the pipeline's scheduler. Let `draw` call the pipeline.")
    for run in runs:
        if len(run.outputs) != table.calls:
            raise FestinaError(
                f"a run made {len(run.outputs)} of the table's {table.calls} network calls. Let every run begin at "
                "noise and go to its end."
            )
    noises = compile_table(table_run, scheduler.frame).noises
    samples = [torch.stack([*run.samples, run.end]) for run in runs]
    outputs = [torch.stack(run.outputs) for run in runs]
    if len({tuple(part.shape[2:]) for part in samples}) > 1:
        raise FestinaError("the runs have samples of different shapes. Let `draw` make pictures of one size.")
    return Trajectory(scheduler.frame, noises, torch.cat(samples, 1), torch.cat(outputs, 1))


@dataclass
class _Run:
    """The samples and outputs of a run so far, and the last step's result; its timesteps tell it from other runs."""

    timesteps: torch.Tensor
    samples: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    end: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


@contextmanager
def _listening(scheduler: PlanScheduler) -> Iterator[list[_Run]]:
    """Keep what every step of this scheduler is given and makes, run by run."""
    runs: list[_Run] = []
    step = scheduler.step
    signature = inspect.signature(step)

    @wraps(step)
    def listened(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named).arguments
        # Not the step index: a model whose samples are scaled for the network begins its run with the scaling.
        if not runs or runs[-1].timesteps is not scheduler.timesteps:
            runs.append(_Run(scheduler.timesteps))
        result = step(*arguments, **named)
        runs[-1].samples.append(_kept(given["sample"]))
        runs[-1].outputs.append(_kept(given["model_output"]))
        runs[-1].end = _kept(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    scheduler.step = listened  # type: ignore[method-assign]
    try:
        yield runs
    finally:
        del scheduler.step


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    exact = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", exact, copy=True)
