"""Measuring what DPM-Solver-v3 (arXiv 2310.13268) wants to know of a model, from runs of a pipeline with guidance.

Every level is called twice: at the sample, and at the sample moved a little along a random vector of signs. The two
outputs give the derivative that l is the mean of. A scheduler sees outputs after guidance, and so the statistics belong
to a model and a strength of guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from festina.errors import FestinaError
from festina.samplers.compiling import compile_table
from festina.samplers.dpm_solver_v3 import ModelStatistics
from festina.samplers.frames import Frame
from festina.samplers.recording import Trajectory, record
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.table import LinearWeights, SolverStep, SolverTable
from festina.samplers.times import table_on

__all__ = ["measure_statistics"]

_FEWEST = 3
"""Levels between noise 0 and pure noise that a derivative along the run is taken from."""
_ROUNDING = 1e-12
"""Share of the mean square of x / alpha up to which f is nothing but rounding."""


def measure_statistics(
    pipe: Any, noises: Sequence[float], draw: Callable[[], object], nudge: float = 0.05, seed: int = 0
) -> ModelStatistics:
    """l and s of a pipeline's model, as means over pictures and dimensions.

    l = E[sigma d noise / d x], the mean over the diagonal, estimated along random signs v by the difference of two
    outputs (Hutchinson 1990; 2310.13268 takes exact products with the derivative). s minimises E |f' - s f|^2, where
    f' is the derivative of f along the run: the paper's s for b = 0. It is E[f f'] / E[f f], which is the derivative of
    ln(E[f f]) / 2, taken here as a difference of the recorded levels.

    The run follows the probability flow by second-order steps of the data form between the levels. Errors of l are
    largest against f at large noise; more pictures, or larger ones, make them smaller.

    Args:
        pipe: a diffusers pipeline, or anything that draws with the scheduler in its attribute `scheduler`.
        noises: levels to measure at, as the scheduler counts them, strictly falling from the model's largest one; at
            least three below pure noise. Tables may lie between the outermost. The paper takes 120 to 1200.
        draw: calls the pipeline, once or several times, with `num_inference_steps` twice the number of levels, as
            `festina.samplers.recording.record` wants it. It decides prompts, seeds and guidance.
        nudge: size of the move in every dimension as a share of sigma, above 0. For latents in half precision use one
            that their rounding leaves, e.g. 0.2.
        seed: of the signs.

    Raises:
        FestinaError: a nudge out of range, too few levels, runs that cannot be recorded, a move that rounding undoes,
            or samples along which f vanishes, as for Gaussian data of one variance around 0.
    """
    if not nudge > 0:
        raise FestinaError(f"the nudge is {nudge:g}. Use a number above 0, e.g. 0.05.")
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    generator = torch.Generator().manual_seed(seed)
    moves = [nudge * frame.level(noise).sigma for noise in noises]

    def probed() -> None:
        with _moving(pipe.scheduler, moves, generator):
            draw()

    return _statistics(record(pipe, _doubled(frame, noises), probed))


def _doubled(frame: Frame, noises: Sequence[float]) -> SolverTable:
    """Two calls at every level: the first leaves the sample, the second takes the step from there by earlier ones."""
    steps = []
    for noise, slot in zip(noises, compile_table(table_on(frame, noises), frame).slots, strict=True):
        outputs = [share for weight in slot.update.data for share in (0.0, weight)]
        steps.append(SolverStep(noise, linear=LinearWeights((), sample=1.0)))
        steps.append(SolverStep(noise, linear=LinearWeights(tuple(outputs), "data", previous=slot.update.sample)))
    return SolverTable(tuple(steps))


@contextmanager
def _moving(scheduler: PlanScheduler, moves: Sequence[float], generator: torch.Generator) -> Iterator[None]:
    """Move the sample after every first call at a level, along signs that stay the same in a run.

    That they stay leaves the errors of l at neighbouring levels alike, and so those of its change small.
    """
    step = scheduler.step
    signs = torch.zeros(0)

    @wraps(step)
    def moved(*arguments: Any, **named: Any) -> Any:
        nonlocal signs
        result = step(*arguments, **named)
        made = scheduler.step_index
        assert made is not None
        if made % 2 == 0:
            return result
        sample = result[0]
        if made == 1 or signs.shape != sample.shape:
            signs = torch.randint(0, 2, sample.shape, generator=generator) * 2 - 1
        there = sample + (moves[made // 2] * signs).to(sample)
        return (there,) if isinstance(result, tuple) else SchedulerOutput(prev_sample=there)

    scheduler.step = moved  # type: ignore[method-assign]
    try:
        yield
    finally:
        scheduler.step = step  # type: ignore[method-assign]


def _statistics(runs: Trajectory) -> ModelStatistics:
    """l and s of recorded runs with two calls at each level."""
    places, linear, sizes = [], [], []
    for first in range(0, runs.calls, 2):
        level = runs.levels[first]
        if level.alpha == 0:
            continue
        here, there = (runs.samples[call].double() for call in (first, first + 1))
        picture, noise = runs.frame.predictions(runs.outputs[first].double(), here, level)
        noise_there = runs.frame.predictions(runs.outputs[first + 1].double(), there, level)[1]
        move = there - here
        if float(move.square().sum()) == 0:
            raise FestinaError(
                f"at the noise level {runs.noises[first]:g} the samples were not moved: their precision rounds the "
                "nudge away. Use a larger nudge, or a pipeline in float32."
            )
        slope = level.sigma * float((move * (noise_there - noise)).sum() / move.square().sum())
        rest = (1 - slope) * level.sigma_hat * noise - slope * picture
        places.append(level.half_log_snr)
        linear.append(slope)
        sizes.append(float(rest.square().mean()))
        if not sizes[-1] > _ROUNDING * float((here / level.alpha).square().mean()):
            raise FestinaError(
                f"at the noise level {runs.noises[first]:g} the predicted noise is a multiple of the sample, so that "
                "nothing is left whose growth s could be. Draw pictures that differ more."
            )
    if len(places) < _FEWEST:
        raise FestinaError(f"{len(places)} levels below pure noise were given. Measure at {_FEWEST} or more.")
    growth = np.gradient(np.log(sizes) / 2, np.array(places), edge_order=2)
    return ModelStatistics(tuple(places), tuple(linear), tuple(growth.tolist()))
