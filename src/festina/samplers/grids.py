"""The grid of a diffusers scheduler: its family, and the noise levels and times that it would use itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers

from festina.errors import FestinaError
from festina.samplers.frames import Frame, shifted, training_noise_of
from festina.samplers.interpolation import order_within_ratio
from festina.samplers.table import SolverStep, SolverTable

__all__ = ["SOURCES", "Grid", "custom_grid", "frame_of", "make_source", "shift_noises", "solver_table", "usual_grid"]

_BY_TIMES = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
_BY_SIGMAS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
)
_EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
_FLOW = "FlowMatchEulerDiscreteScheduler"
_LINEAR_SHIFT = (_FLOW, "UniPCMultistepScheduler")
"""Schedulers that shift by mu itself where time_shift_type is "linear", and not by its exponential."""

SOURCES = (*_BY_TIMES, *_BY_SIGMAS, *_EDM, _FLOW)
"""Schedulers of diffusers whose place a `PlanScheduler` can take."""

_REFUSED = {
    "clip_sample": "clips predictions, which a linear step cannot",
    "thresholding": "clips predictions, which a linear step cannot",
    "invert_sigmas": "counts noise the other way round",
    "stochastic_sampling": "adds noise in every step",
}


@dataclass(frozen=True)
class Grid:
    """Noise levels of a run as the scheduler counts them, and what the network is told.

    Attributes:
        noises: one per network call, and the final level.
        times: one per network call.
    """

    noises: tuple[float, ...]
    times: tuple[float, ...]


def make_source(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a class and config.

    Raises:
        FestinaError: a class or a setting whose place a `PlanScheduler` cannot take.
    """
    if name not in SOURCES:
        raise FestinaError(
            f"{name or 'no scheduler'} gives no noise levels that are known here. Begin with PlanScheduler."
            f"from_scheduler(scheduler), with one of {', '.join(SOURCES)}."
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise FestinaError(f"{name} with {key}=True {reason}. Use the scheduler with {key}=False.")
    if config.get("timestep_type") == "continuous":
        raise FestinaError(f"{name} with continuous timesteps is not known here. Keep it as the pipeline's scheduler.")
    # A PNDM scheduler repeats timesteps for its warm-up; without Runge-Kutta steps the distinct ones are its grid.
    extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    return getattr(diffusers, name).from_config({**config, **extra})


def frame_of(source: Any) -> Frame:
    """The frame of a scheduler made by `make_source`.

    Raises:
        FestinaError: a prediction type that the family does not know.
    """
    config, name = source.config, type(source).__name__
    if name in _EDM:
        scale = float(source.init_noise_sigma)
        return Frame(
            "edm",
            config.prediction_type,
            config.num_train_timesteps,
            sigma_data=float(config.sigma_data),
            initial_scale=scale,
            smallest_noise=float(config.sigma_min),
        )
    if name == _FLOW or config.get("use_flow_sigmas"):
        return Frame("flow", config.get("prediction_type", "flow_prediction"), config.num_train_timesteps)
    return Frame("variance_preserving", config.prediction_type, config.num_train_timesteps, training_noise_of(source))


def usual_grid(source: Any, frame: Frame, steps: int, mu: float | None) -> Grid:
    """The scheduler's own grid, read off after its `set_timesteps(steps)`; flow models' times are never truncated.

    Args:
        source: the scheduler.
        frame: its frame.
        steps: network calls.
        mu: of a shift that depends on the size of the picture.

    Raises:
        FestinaError: such a shift without `mu`, or no steps.
    """
    if steps < 1:
        raise FestinaError(f"a run of {steps} steps was asked for. Use 1 or more.")
    source.set_timesteps(steps, **_shift_by(source, mu))
    if type(source).__name__ in _BY_TIMES:
        times = tuple(sorted({float(time) for time in source.timesteps}, reverse=True))
        return Grid((*(frame.noise_at(time) for time in times), _final_noise(source, frame)), times)
    noises = tuple(float(noise) for noise in source.sigmas.double())
    times = tuple(float(time) for time in source.timesteps.double())
    return Grid(noises, tuple(map(frame.network_time, noises[:-1])) if frame.family == "flow" else times)


def custom_grid(
    source: Any, frame: Frame, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, mu: float | None
) -> Grid:
    """A grid that the caller of a pipeline asks for.

    Args:
        source: the scheduler.
        frame: its frame.
        timesteps: what the network shall be told, fractions kept; used as they are, with no shift.
        sigmas: noise levels. A flow model's are shifted once, as diffusers does; others are used as they are. A last
            level of 0 is the end of the last step.
        mu: of a shift that depends on the size of the picture.

    Raises:
        FestinaError: such a shift without `mu`, or an empty list.
    """
    if not any(given is not None and len(given) > 0 for given in (timesteps, sigmas)):
        raise FestinaError("the list of timesteps or sigmas is empty. Give at least one.")
    if timesteps is not None:
        times = tuple(float(time) for time in timesteps)
        return Grid((*(frame.noise_at(time) for time in times), _final_noise(source, frame)), times)
    assert sigmas is not None
    noises = [float(noise) for noise in sigmas]
    ends = noises.pop() if noises[-1] == 0 else _final_noise(source, frame)
    if frame.family == "flow":
        noises = shift_noises(source, noises, mu)
    return Grid((*noises, ends), tuple(map(frame.network_time, noises)))


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


def shift_noises(source: Any, noises: Sequence[float], mu: float | None) -> list[float]:
    """Levels of a flow model after the scheduler's shift, applied once."""
    dynamic = _shift_by(source, mu)
    if type(source).__name__ == _FLOW:
        source.set_timesteps(sigmas=list(noises), **dynamic)
        return [float(noise) for noise in source.sigmas[:-1].double()]
    if source.config.get("shift_terminal"):
        raise FestinaError(
            f"levels before the shift of a {type(source).__name__} with shift_terminal are not known here. Use levels "
            "after the shift (timesteps), or a FlowMatchEulerDiscreteScheduler."
        )
    if not dynamic:
        factor = float(source.config.flow_shift)
    else:
        linear = source.config.get("time_shift_type") == "linear"
        factor = dynamic["mu"] if linear else math.exp(dynamic["mu"])
    return [shifted(noise, factor) for noise in noises]


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
    if config.get("final_sigmas_type") == "sigma_min":
        return float(config.sigma_min) if frame.family == "edm" else 1 / frame.train_steps
    return 0.0
