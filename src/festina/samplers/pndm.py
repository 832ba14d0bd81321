"""PNDM (Liu et al., arXiv 2202.09778) as tables: pseudo Runge-Kutta or Euler steps first, then Adams-Bashforth.

A pseudo numerical step takes DDIM's step with an output that a classical formula makes of several. A warm-up step makes
several network calls, at levels that repeat; each of them is a step of the table that is given by its weights. A stage
that starts again from the sample at the beginning of its step says that sample by the current one and by what was
added to it since: what a pipeline changes between two calls is then kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from festina.errors import FestinaError
from festina.samplers.coefficients import first_order, higher_order_weights, kind_of
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.table import LinearWeights, SolverStep, SolverTable

__all__ = ["f_pndm", "plms", "s_pndm"]

_ADAMS = "adams_bashforth"
_STAGES, _WARM = 4, 3
"""Calls of a Runge-Kutta step, and how many such steps there are before four outputs are at hand."""


def f_pndm(frame: Frame, steps: int, offset: int = 0, final_noise: float = 0.0) -> SolverTable:
    """F-PNDM: three pseudo Runge-Kutta steps of order 4, then Adams-Bashforth of order 4 (2202.09778, algorithm 2).

    With even strides it makes the samples of diffusers' `PNDMScheduler`, which rounds the time in the middle of a step.

    Args:
        frame: of a variance-preserving model.
        steps: N, from 4 to the number of training times; the table makes N + 9 network calls.
        offset: added to every time, from 0; `steps_offset` of diffusers' schedulers.
        final_noise: level that the last step ends at, 0 = clean (`set_alpha_to_one` of diffusers).

    Raises:
        FestinaError: another family of models, or steps or an offset that do not fit the training times.
    """
    grid = _grid(frame, steps, offset, final_noise, _WARM + 1)
    made = [stage for place in range(_WARM) for stage in _runge_kutta(frame, grid, place)]
    calls = [*range(0, _STAGES * _WARM, _STAGES), *range(len(made), steps + len(made) - _WARM)]
    for place in range(_WARM, steps):
        backs = [calls[place] - calls[place - older] for older in range(_STAGES)]
        if backs[-1] < _STAGES:
            made.append(SolverStep(grid.noises[place], _ADAMS, _STAGES))
            continue
        # Between these outputs lie those of the stages, which no solver passes over by itself.
        levels = [grid.levels[place - older] for older in range(_STAGES)]
        target = grid.levels[place + 1]
        sample, own = first_order(levels[0], target, "noise")
        outputs = [0.0] * (backs[-1] + 1)
        outputs[0] = own
        for back, weight in zip(backs, higher_order_weights(frame, kind_of(_ADAMS), levels, target), strict=True):
            outputs[back] += float(weight)
        made.append(SolverStep(grid.noises[place], linear=LinearWeights(tuple(outputs), "noise", sample)))
    return SolverTable(tuple(made), final_noise)


def s_pndm(frame: Frame, steps: int, offset: int = 0, final_noise: float = 0.0) -> SolverTable:
    """S-PNDM: one pseudo improved Euler step, then Adams-Bashforth of order 2 (2202.09778).

    Args:
        frame: of a variance-preserving model.
        steps: N, from 2 to the number of training times; the table makes N + 1 network calls.
        offset, final_noise: see `f_pndm`.

    Raises:
        FestinaError: another family of models, or steps or an offset that do not fit the training times.
    """
    return _after_improved_euler(frame, steps, offset, final_noise, 2)


def plms(frame: Frame, steps: int, offset: int = 0, final_noise: float = 0.0) -> SolverTable:
    """PLMS, as diffusers' `PNDMScheduler` with `skip_prk_steps`.

    One pseudo improved Euler step, then Adams-Bashforth of the orders 2, 3 and, from there on, 4.

    Args:
        frame: of a variance-preserving model.
        steps: N, from 2 to the number of training times; the table makes N + 1 network calls.
        offset, final_noise: see `f_pndm`.

    Raises:
        FestinaError: another family of models, or steps or an offset that do not fit the training times.
    """
    return _after_improved_euler(frame, steps, offset, final_noise, 4)


@dataclass(frozen=True)
class _Grid:
    """Even times of the training schedule.

    Attributes:
        noises: level at each time, as the scheduler counts it, and the final one.
        middles: level at the time half a stride after each.
        levels: of `noises`.
    """

    noises: tuple[float, ...]
    middles: tuple[float, ...]
    levels: tuple[NoiseLevel, ...]


def _grid(frame: Frame, steps: int, offset: int, final_noise: float, fewest: int) -> _Grid:
    if frame.family != "variance_preserving":
        raise FestinaError(
            f"PNDM is for variance-preserving models, this one is of the family {frame.family}. Use the solver "
            f"{_ADAMS} on it."
        )
    if not fewest <= steps <= frame.train_steps:
        raise FestinaError(f"{steps} steps of PNDM; wanted {fewest} to {frame.train_steps}.")
    stride = frame.train_steps // steps
    if not 0 <= offset < stride + frame.train_steps - stride * steps:
        raise FestinaError(
            f"an offset of {offset} puts {steps} steps with a stride of {stride} outside the {frame.train_steps} "
            f"training times. Use a smaller one."
        )
    times = [offset + stride * place for place in reversed(range(steps))]
    noises = (*(frame.noise_at(time) for time in times), final_noise)
    middles = tuple(frame.noise_at(time - stride / 2) for time in times[:-1])
    return _Grid(noises, middles, tuple(frame.level(noise) for noise in noises))


def _runge_kutta(frame: Frame, grid: _Grid, place: int) -> list[SolverStep]:
    """The four calls of a pseudo Runge-Kutta step (equation 13), with the steps after each of them."""
    start, middle, end = grid.levels[place], frame.level(grid.middles[place]), grid.levels[place + 1]
    half_sample, half = first_order(start, middle, "noise")
    whole_sample, whole = first_order(start, end, "noise")
    further = whole_sample / half_sample
    stages = (
        (half_sample, (half,)),
        (1.0, (half, -half)),
        (further, (whole, -further * half)),
        (1.0, tuple(whole * share / 6 for share in (1, -4, 2, 1))),
    )
    noises = (grid.noises[place], grid.middles[place], grid.middles[place], grid.noises[place + 1])
    return [_stage(noise, sample, outputs) for noise, (sample, outputs) in zip(noises, stages, strict=True)]


def _after_improved_euler(frame: Frame, steps: int, offset: int, final_noise: float, highest: int) -> SolverTable:
    """A pseudo improved Euler step, of two calls, and Adams-Bashforth of orders from 2 to the highest."""
    grid = _grid(frame, steps, offset, final_noise, 2)
    sample, output = first_order(grid.levels[0], grid.levels[1], "noise")
    begun = [
        _stage(grid.noises[0], sample, (output,)),
        _stage(grid.noises[1], 1.0, (output / 2, -output / 2)),
    ]
    later = [SolverStep(grid.noises[place], _ADAMS, min(highest, place + 1)) for place in range(1, steps)]
    return SolverTable((*begun, *later), final_noise)


def _stage(noise: float, sample: float, outputs: Sequence[float]) -> SolverStep:
    return SolverStep(noise, linear=LinearWeights(tuple(outputs), "noise", sample))
