"""Measured weights of extrapolated steps: LTC-Accel's least squares scale (arXiv 2503.09675).

An extrapolated step makes x + w g (x - previous x). The scale w that comes closest to what the step makes with a
network call is found in a run in which the network is called in every step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from festina.errors import FestinaError
from festina.samplers.compiling import UnfoldedStep, Weights, unfold_table
from festina.samplers.frames import Frame
from festina.samplers.recording import record
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.table import SolverStep, SolverTable

__all__ = ["fit_latent_scales"]


def fit_latent_scales(pipe: Any, table: SolverTable, draw: Callable[[], object]) -> SolverTable:
    """A table with measured weights (`momentum`) of its extrapolated steps.

    Of a step from x to y, with d the change of the sample in the step before and g the step's ratio, the weight is
    w = <y - x, g d> / <g d, g d> over all numbers of a run's samples, pictures of one call together. y is what the
    step's solver, order and corrector make of a network call at x. The run then goes on from x + w g d, not from y, so
    that later weights are fitted to where a run by the table will be (the paper's calibration). Of several runs each
    has weights of its own, and the table gets their means.

    w g does not depend on the ratio, so that w holds for the table's ratio only. Weights belong to one model, table,
    size of pictures and strength of guidance.

    Args:
        pipe: a diffusers pipeline, or anything that draws with the scheduler in its attribute `scheduler`.
        table: with steps whose call is "extrapolate". Their weights are not looked at.
        draw: calls the pipeline, once or several times, all runs from noise, in latents of one shape, with as many
            steps as the table has, extrapolated ones too: the network is called in all of them but deleted ones. It
            decides prompts, seeds and guidance.

    Raises:
        FestinaError: nothing is extrapolated; the table's start is "gaussian", which a plan carries and this does not;
            the change of the samples in a step is 0 or not finite; or runs that `festina.samplers.recording.record`
            refuses.
    """
    places = [place for place, step in enumerate(table.steps) if step.call == "extrapolate"]
    if not places:
        raise FestinaError('no step of the table is extrapolated. Give the steps without a call call="extrapolate".')
    if table.start == "gaussian":
        raise FestinaError(
            'the table\'s start is "gaussian", and its first samples would be read as pure noise. Fit a table that '
            "begins at the model's largest noise level, and take its weights."
        )
    # Only levels and times of the steps: what is made of the outputs is decided here.
    levels = tuple(
        SolverStep(
            step.noise, order=1, network_time=step.network_time, call="delete" if step.call == "delete" else "network"
        )
        for step in table.steps
    )
    runs: list[_Run] = []

    def continued() -> None:
        with _continuing(pipe.scheduler, table, runs):
            draw()

    record(pipe, replace(table, steps=levels), continued)
    steps = list(table.steps)
    for place in places:
        mean = math.fsum(run.weights[place] for run in runs) / len(runs)
        steps[place] = replace(steps[place], momentum=mean)
    return replace(table, steps=tuple(steps))


@contextmanager
def _continuing(scheduler: PlanScheduler, table: SolverTable, runs: list[_Run]) -> Iterator[None]:
    """Let a scheduler, which makes a step for every level, give back the samples of a run by the table instead."""
    step = scheduler.step
    signature = inspect.signature(step)

    @wraps(step)
    def continued(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named).arguments
        result = step(*arguments, **named)
        assert scheduler.step_index is not None
        assert scheduler.run_table is not None
        if scheduler.step_index == 1:
            noises = [each.noise for each in scheduler.run_table.steps]
            runs.append(_Run(unfold_table(table.at_noises(noises), scheduler.frame), scheduler.frame))
        if not runs or runs[-1].made != scheduler.step_index - 1:
            raise FestinaError(
                f"a run began at step {scheduler.step_index - 1}. Let every run begin at noise and go to its end."
            )
        made = runs[-1].step(given["model_output"], given["sample"])
        return (made,) if isinstance(result, tuple) else SchedulerOutput(prev_sample=made)

    scheduler.step = continued  # type: ignore[method-assign]
    try:
        yield
    finally:
        scheduler.step = step  # type: ignore[method-assign]


class _Run:
    """A run with a network call in every step, along the samples of one that extrapolates.

    Attributes:
        weights: by place in the table, of the extrapolated steps made so far.
        made: steps made so far.
    """

    def __init__(self, steps: Sequence[UnfoldedStep], frame: Frame) -> None:
        self.steps, self.frame = steps, frame
        self.weights: dict[int, float] = {}
        self.made = 0
        # Predictions at the network calls that the table makes, the newest first.
        self._data: list[Tensor] = []
        self._noise: list[Tensor] = []
        self._anchor = self._previous = torch.zeros(0)
        # The samples that the last step went from and to, not rounded to the pipeline's precision.
        self._before = self._after = torch.zeros(0)

    def step(self, output: Tensor, sample: Tensor) -> Tensor:
        """The next sample, in the sample's dtype, from the network's raw output for one, of its shape."""
        exact = torch.float64 if sample.dtype == torch.float64 else torch.float32
        step, here = self.steps[self.made], sample.detach().to(exact)
        if self.made == 0:
            self._anchor = here
        if step.ratio is not None:
            # A run by the table extrapolates before anything is rounded.
            here = self._after
        data, noise = self.frame.predictions(output.detach().to(exact), here, step.slot.level)
        self._data.insert(0, data)
        self._noise.insert(0, noise)
        corrected = here if step.slot.correction is None else self._combined(step.slot.correction, here)
        found = self._combined(step.slot.update, corrected)
        if step.ratio is None:
            self._previous = self._before = corrected
            self._after = found
        else:
            del self._data[0], self._noise[0]
            change = step.ratio * (here - self._before)
            self.weights[step.place] = _scale(found - here, change)
            self._before, self._after = here, here + self.weights[step.place] * change
        self.made += 1
        return self._after.to(sample.dtype)

    def _combined(self, weights: Weights, current: Tensor) -> Tensor:
        terms = [(weights.sample, current), (weights.previous, self._previous), (weights.anchor, self._anchor)]
        terms += [(weight, self._data[back]) for back, weight in enumerate(weights.data)]
        terms += [(weight, self._noise[back]) for back, weight in enumerate(weights.noise)]
        total = torch.zeros_like(current)
        for weight, tensor in terms:
            if weight != 0:
                total = total + weight * tensor
        return total


def _scale(wanted: Tensor, change: Tensor) -> float:
    """The factor of a change that comes closest to the wanted one, by sums in double precision."""
    wanted, change = wanted.cpu().double(), change.cpu().double()
    scale = float((wanted * change).sum() / change.square().sum())
    if not math.isfinite(scale):
        raise FestinaError(
            "the samples do not change in the step before an extrapolated one, or are not finite, so that no weight "
            "fits. Extrapolate steps that go on from one that moves."
        )
    return scale
