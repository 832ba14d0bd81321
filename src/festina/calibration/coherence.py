"""How alike the outputs of successive steps are: the angle between them, and the factor that makes one of the other.

LTC-Accel (arXiv 2503.09675) measures both on the change of the latents. Here they are those of the guided output that a
scheduler is given, in double precision: where latents are kept in few bits, their differences are mostly rounding. For
Euler steps of a velocity, or of noise in sigma, the angle is the same.

A plan multiplies each branch's answer before the pipeline guides. With a strength that stays the same this is a factor
on the guided output. Where a pipeline changes its strength from one step to the next, a factor measured here holds that
change too, and guidance adds it a second time; the same goes for a plan that is given factors on guidance afterwards.
Nothing of this can be seen here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from festina.calibration.running import call_arguments, want_whole_run
from festina.errors import FestinaError
from festina.executor import Run, accelerate
from festina.executor.attach import denoisers_of
from festina.executor.replay import why_not_replayed
from festina.plan import Plan
from festina.sites import component_sites


@dataclass(frozen=True, eq=False)
class Coherence:
    """What was measured in runs of a pipeline, one per picture.

    Attributes:
        replayed: the steps in which the sampler was given the last output again, times the factor found there.
        pictures: prompt and seed of each picture.
        angles: angle in radians, from 0 to pi, between a step's output and the last one before it that was not
            replayed, float (pictures, steps); NaN in the first step.
        factors: what the earlier output is multiplied with to come closest to the later one, float (pictures, steps):
            <later, earlier> / <earlier, earlier>; NaN in the first step.
    """

    replayed: tuple[int, ...]
    pictures: tuple[tuple[str, int], ...]
    angles: NDArray[np.float64]
    factors: NDArray[np.float64]

    def interval(self, threshold: float = 0.1) -> tuple[int, int]:
        """First and last step of the longest run of steps whose mean angle is below a threshold; of equals the first.

        The paper's rule for where to accelerate. Published is 0.1; what it shows for Stable Diffusion 2 (steps 12 to 38
        of 40) takes about 0.2.

        Args:
            threshold: the angle in radians.

        Raises:
            FestinaError: there is no such step, the run had only one, or it replayed, so that angles are not of
                neighbours.
        """
        if self.angles.shape[1] < 2:
            raise FestinaError(
                "these angles are of a run of 1 step, which has no neighbour; measure one of more steps."
            )
        if self.replayed:
            raise FestinaError("these angles are of a run that replayed; measure one that does not.")
        below = self.angles.mean(axis=0) < threshold
        best, length = (0, -1), 0
        for step, close in enumerate(below):
            length = length + 1 if close else 0
            if length > best[1] - best[0] + 1:
                best = (step - length + 1, step)
        if best[1] < 0:
            least = float(np.nanmin(self.angles.mean(axis=0)))
            raise FestinaError(f"no angle is below {threshold}; the least is {least:.3f}. Nothing is to be replayed.")
        return best

    def mean_factors(self) -> dict[int, float]:
        """By step that was replayed the mean factor over all pictures."""
        return {step: float(self.factors[:, step].mean()) for step in self.replayed}

    def deviations(self) -> dict[int, float]:
        """By step that was replayed the standard deviation of its factor over the pictures; 0 for a single one."""
        return {step: float(self.factors[:, step].std()) for step in self.replayed}


def measure_coherence(
    pipe: Any,
    prompts: Sequence[str],
    steps: int,
    replayed: Collection[int] = (),
    seeds: Sequence[int] | None = None,
    guidance: float | None = None,
    call: Mapping[str, Any] | None = None,
) -> Coherence:
    """Measure angles and factors, in one run per prompt in which the denoiser runs in every step.

    In the steps `replayed` the sampler is given the replayed output all the same, so that later factors are found where
    an accelerated run will be (the paper's calibration). Without such steps nothing of the pictures is changed.

    Args:
        pipe: a diffusers pipeline that takes prompts, or class labels.
        prompts: what to draw, one picture each; numbers as texts where the pipeline takes class labels.
        steps: rows of the plan to be made.
        replayed: the steps that it replays, from 1 on.
        seeds, guidance, call: see `festina.calibration.calibrate`.

    Raises:
        FestinaError: the pipeline cannot be called so, its runs have another number of steps or begin midway, its
            sampler cannot replay, or there is no such step.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    if not prompts or len(seeds) != len(prompts):
        raise FestinaError(f"{len(prompts)} prompts and {len(seeds)} seeds; wanted at least one prompt, one seed each.")
    if outside := [step for step in replayed if not 0 < step < steps]:
        raise FestinaError(f"nothing can be replayed in step {outside[0]}; wanted 1 to {steps - 1}.")
    if reason := why_not_replayed(getattr(pipe, "scheduler", None)):
        raise FestinaError(f"nothing is to be measured for replaying: {reason}.")
    pictures = tuple((str(prompt), int(seed)) for prompt, seed in zip(prompts, seeds, strict=True))
    denoiser = denoisers_of(pipe)[0][1]
    names = [site.name for site in component_sites(denoiser)]
    uncached = Plan.computing_all(type(denoiser).__name__, names, steps)
    angles, factors = np.full((2, len(pictures), steps), np.nan)
    for number, picture in enumerate(pictures):
        arguments = call_arguments(pipe, picture, steps, guidance, call or {})
        with accelerate(pipe, uncached) as run:
            outputs = _Outputs(run, replayed, angles[number], factors[number])
            run.revise = outputs.revise
            pipe(**arguments)
            want_whole_run(run, steps)
    return Coherence(tuple(sorted(replayed)), pictures, angles, factors)


class _Outputs:
    """Measures the outputs of a run into an angle and a factor per step."""

    def __init__(
        self, run: Run, replayed: Collection[int], angles: NDArray[np.float64], factors: NDArray[np.float64]
    ) -> None:
        self.run, self.replayed, self.angles, self.factors = run, replayed, angles, factors
        self._before: Tensor | None = None

    def revise(self, output: Any) -> Any:
        """Take note of what the sampler is given in a step; returns what it steps with."""
        if not isinstance(output, Tensor):
            raise FestinaError(
                f"the sampler is given a {type(output).__name__}, not a tensor; nothing can be measured."
            )
        step, now = self.run.clock.ended, output.detach().cpu().double().flatten()
        before = self._before
        if before is not None:
            self.angles[step], self.factors[step] = angle_and_factor(now, before)
            if step in self.replayed:
                replay: Tensor = (before * self.factors[step]).reshape(output.shape).to(output)
                return replay
        self._before = now
        return output


def angle_and_factor(later: Tensor, earlier: Tensor) -> tuple[float, float]:
    """The angle between two tensors in radians, and the factor of the earlier one that comes closest to the later.

    Args:
        later, earlier: tensors of one shape, of double precision.

    Raises:
        FestinaError: one of them is 0 or not finite.
    """
    inner, square = float((later * earlier).sum()), float(earlier.square().sum())
    length = math.sqrt(square) * float(torch.linalg.vector_norm(later))
    if not length > 0 or not math.isfinite(length):
        raise FestinaError("an output of the denoiser is 0 or not finite, so that nothing can be compared with it.")
    # A cosine of one may be rounded to more.
    return math.acos(max(-1.0, min(1.0, inner / length))), inner / square
