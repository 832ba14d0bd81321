"""The grid of a diffusers scheduler: its family, and the noise levels and times that it would use itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from festina.errors import FestinaError
from festina.samplers.frames import Frame, shifted, training_noise_of
from festina.samplers.interpolation import order_within_ratio
from festina.samplers.sources import BY_TIMES, FLOW
from festina.samplers.table import SolverStep, SolverTable

__all__ = ["Grid", "asked_grid", "custom_grid", "shifted_table", "solver_table", "usual_grid"]

_LINEAR_SHIFT = (FLOW, "UniPCMultistepScheduler")
"""Schedulers that shift by mu itself where time_shift_type is "linear", and not by its exponential."""

_ROUNDED = 1e-5
"""Share by which a final level may lie above the last one: schedulers compute both in float32."""


@dataclass(frozen=True)
class Grid:
    """Noise levels of a run as the scheduler counts them, and what the network is told.

    Attributes:
        noises: one per network call, and the final level.
        times: one per network call.
    """

    noises: tuple[float, ...]
    times: tuple[float, ...]


def asked_grid(
    source: Any,
    frame: Frame,
    steps: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> Grid:
    """`usual_grid` or `custom_grid`, by what the caller of `set_timesteps` gave.

    Raises:
        FestinaError: neither steps nor timesteps nor sigmas, or both of the latter; and as the two functions.
    """
    if sum(given is not None for given in (timesteps, sigmas)) > 1:
        raise FestinaError("timesteps and sigmas are given. Give one of them.")
    if timesteps is not None or sigmas is not None:
        return custom_grid(source, frame, timesteps, sigmas, mu)
    if steps is None:
        raise FestinaError("neither num_inference_steps nor timesteps nor sigmas are given. Give one of them.")
    return usual_grid(source, frame, steps, mu)


def usual_grid(source: Any, frame: Frame, steps: int, mu: float | None) -> Grid:
    """The scheduler's own grid, read off after its `set_timesteps(steps)`; flow models' times are never truncated.

    Args:
        source: the scheduler.
        frame: its frame.
        steps: network calls.
        mu: of a shift that depends on the size of the picture.

    Raises:
        FestinaError: such a shift without `mu`, no steps, or a grid whose levels do not belong to its times.
    """
    if steps < 1:
        raise FestinaError(f"a run of {steps} steps was asked for. Use 1 or more.")
    source.set_timesteps(steps, **_shift_by(source, mu))
    if type(source).__name__ in BY_TIMES:
        times = tuple(sorted({float(time) for time in source.timesteps}, reverse=True))
        return Grid(_ended((frame.noise_at(time) for time in times), _final_noise(source, frame)), times)
    *noises, final = (float(noise) for noise in source.sigmas.double())
    times = tuple(float(time) for time in source.timesteps.double())
    if len(noises) != len(times):
        raise FestinaError(
            f"this {type(source).__name__} gives {len(noises)} noise levels for {len(times)} timesteps. Use other "
            'settings, e.g. interpolation_type="linear".'
        )
    return Grid(_ended(noises, final), tuple(map(frame.network_time, noises)) if frame.family == "flow" else times)


def custom_grid(
    source: Any, frame: Frame, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, mu: float | None
) -> Grid:
    """A grid that the caller of a pipeline asks for.

    Args:
        source: the scheduler.
        frame: its frame.
        timesteps: what the network shall be told, fractions kept; used as they are, with no shift.
        sigmas: noise levels. A flow model's are shifted once and go through what else the scheduler makes of levels
            that it is given, as in diffusers; others are used as they are. A last level of 0 is the end of the last
            step.
        mu: of a shift that depends on the size of the picture.

    Raises:
        FestinaError: such a shift without `mu`, or an empty list.
    """
    if not any(given is not None and len(given) > 0 for given in (timesteps, sigmas)):
        raise FestinaError("the list of timesteps or sigmas is empty. Give at least one.")
    if timesteps is not None:
        times = tuple(float(time) for time in timesteps)
        return Grid(_ended((frame.noise_at(time) for time in times), _final_noise(source, frame)), times)
    assert sigmas is not None
    noises = [float(noise) for noise in sigmas]
    ends = noises.pop() if noises[-1] == 0 else _final_noise(source, frame)
    if frame.family == "flow":
        noises = _as_passed(source, noises, mu)
    return Grid(_ended(noises, ends), tuple(map(frame.network_time, noises)))


def solver_table(
    grid: Grid,
    frame: Frame,
    solver: str,
    order: int,
    corrector: bool,
    lower_order_final: bool,
    largest_step_ratio: float | None,
) -> SolverTable:
    """One solver on a grid.

    Args:
        grid: levels and times.
        frame: of the model.
        solver: a name of `festina.samplers.KINDS`.
        order: its order, lowered in the first steps.
        corrector: whether every step but the first corrects its sample.
        lower_order_final: whether a step's order is at most the number of steps left.
        largest_step_ratio: a step longer than this many times the last one takes an order less; None = never.
    """
    calls = len(grid.times)
    levels = [frame.level(noise) for noise in grid.noises]
    steps = []
    for place in range(calls):
        own = min(order, place + 1, calls - place if lower_order_final else order)
        if largest_step_ratio is not None:
            own = order_within_ratio(levels[place::-1], levels[place + 1], own, largest_step_ratio)
        steps.append(SolverStep(grid.noises[place], solver, own, corrector and place > 0, grid.times[place]))
    return SolverTable(tuple(steps), grid.noises[-1])


def shifted_table(
    source: Any,
    table: SolverTable,
    steps: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> SolverTable:
    """A table at the levels of a run: those before the scheduler's shift are shifted by its formula.

    A curve that the scheduler draws through its own levels (Karras', exponential, beta) is left out: the levels of a
    table are the user's own.

    Args:
        source: the scheduler.
        table: what it runs.
        steps, timesteps, sigmas: what the caller of `set_timesteps` asks for; levels are only counted.
        mu: of a shift that depends on the size of the picture.

    Raises:
        FestinaError: timesteps, or another number of steps than the table's; a shift by size without `mu`; a scheduler
            with shift_terminal for a table with a final level above 0, or whose last step begins at pure noise.
    """
    asked = steps if sigmas is None else len(sigmas)
    wanted = sorted({len(table.steps), table.calls})
    if timesteps is not None or asked not in wanted:
        found = "timesteps of one's own" if timesteps is not None else f"{asked} steps"
        raise FestinaError(
            f"the scheduler runs a table of {len(table.steps)} steps with {table.calls} network calls, and the "
            f"pipeline asks for {found}. Use num_inference_steps={' or '.join(map(str, wanted))}."
        )
    if not table.before_shift:
        return table
    if source.config.get("shift_terminal") and table.final_noise > 0:
        raise FestinaError(
            f"the table ends at the level {table.final_noise:g} before the shift, and the scheduler's shift_terminal "
            "sets where levels end. Use final_noise 0, or levels after the shift."
        )
    noises = _shifted(source, [step.noise for step in table.steps], mu)
    moved = tuple(replace(step, noise=noise) for step, noise in zip(table.steps, noises, strict=True))
    final = shifted(table.final_noise, _shift_factor(source, mu))
    return replace(table, steps=moved, final_noise=final, before_shift=False)


def _as_passed(source: Any, noises: Sequence[float], mu: float | None) -> list[float]:
    """What the scheduler of a flow model makes of levels that it is given."""
    if type(source).__name__ != FLOW:
        return _shifted(source, noises, mu)
    source.set_timesteps(sigmas=list(noises), **_shift_by(source, mu))
    return [float(noise) for noise in source.sigmas[:-1].double()]


def _shifted(source: Any, noises: Sequence[float], mu: float | None) -> list[float]:
    """Levels of a flow model after the scheduler's shift, and after its stretch to a last level (shift_terminal)."""
    factor, terminal = _shift_factor(source, mu), source.config.get("shift_terminal")
    moved = [shifted(noise, factor) for noise in noises]
    if not terminal:
        return moved
    if moved[-1] == 1:
        raise FestinaError("the last step begins at pure noise, which shift_terminal cannot stretch. Use more steps.")
    scale = (1 - terminal) / (1 - moved[-1])
    return [1 - scale * (1 - noise) for noise in moved]


def _shift_factor(source: Any, mu: float | None) -> float:
    """k of the shift k s / (1 + (k - 1) s)."""
    if not (dynamic := _shift_by(source, mu)):
        return float(source.config.shift if type(source).__name__ == FLOW else source.config.flow_shift)
    return dynamic["mu"] if source.config.get("time_shift_type") == "linear" else math.exp(dynamic["mu"])


def _shift_by(source: Any, mu: float | None) -> dict[str, float]:
    """The keyword of `set_timesteps` for a shift that depends on the size of the picture; empty if there is none."""
    if not source.config.get("use_dynamic_shifting"):
        return {}
    if mu is None:
        raise FestinaError(
            "this scheduler shifts its noise levels by the size of the picture, and no mu was given. Pass mu to "
            "set_timesteps, or use a scheduler with use_dynamic_shifting=False."
        )
    if source.config.get("time_shift_type") == "linear" and type(source).__name__ not in _LINEAR_SHIFT:
        raise FestinaError(
            f'a {type(source).__name__} knows no time_shift_type="linear", only "exponential". Set that, or use one '
            f"of {', '.join(_LINEAR_SHIFT)}."
        )
    return {"mu": float(mu)}


def _final_noise(source: Any, frame: Frame) -> float:
    """Level that the scheduler's last step ends at."""
    name, config = type(source).__name__, source.config
    if frame.family == "variance_preserving":
        stays = not config.get("set_alpha_to_one", True) or name == "DEISMultistepScheduler"
        return frame.training_noise[0] if stays or config.get("final_sigmas_type") == "sigma_min" else 0.0
    if config.get("final_sigmas_type") != "sigma_min":
        return 0.0
    if name == "EulerDiscreteScheduler":
        return training_noise_of(source)[0]
    return float(config.sigma_min) if frame.family == "edm" else 1 / frame.train_steps


def _ended(noises: Iterable[float], final: float) -> tuple[float, ...]:
    """Levels and the final one, which rounding to float32 may have put a little above the last."""
    *_, last = levels = tuple(noises)
    return (*levels, last if last < final <= last * (1 + _ROUNDED) else final)
