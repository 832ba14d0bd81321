"""The schedulers of diffusers whose place a `PlanScheduler` can take, and how their models are to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import diffusers

from festina.errors import FestinaError
from festina.samplers.frames import Frame, training_noise_of

__all__ = ["BY_TIMES", "FLOW", "SOURCES", "frame_of", "make_source", "original_source"]

BY_TIMES = (
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
)
"""Schedulers that give training times; the levels are those of their training schedule."""

_EULER = "EulerDiscreteScheduler"
_BY_SIGMAS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    _EULER,
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
)
_EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
FLOW = "FlowMatchEulerDiscreteScheduler"

SOURCES = (*BY_TIMES, *_BY_SIGMAS, *_EDM, FLOW)
"""Schedulers of diffusers whose place a `PlanScheduler` can take."""

_TWICE = "calls the network twice per step. Its levels are those of {0}: begin with {0}.from_config(scheduler.config)."
_UNLIKE = {
    "CosineDPMSolverMultistepScheduler": "tells the network 2 / pi arctan(noise), a time that no family here has.",
    "FlowMatchHeunDiscreteScheduler": _TWICE.format(FLOW),
    "HeunDiscreteScheduler": _TWICE.format(_EULER),
    "IPNDMScheduler": "has no training schedule: its times are places of 0..1 on a circle of its own.",
    "KDPM2AncestralDiscreteScheduler": _TWICE.format(_EULER),
    "KDPM2DiscreteScheduler": _TWICE.format(_EULER),
}
"""Why a scheduler's place cannot be taken."""

_REFUSED = {
    "clip_sample": "clips predictions, which a linear step cannot",
    "thresholding": "clips predictions, which a linear step cannot",
    "invert_sigmas": "counts noise the other way round",
    "stochastic_sampling": "adds noise in every step",
}
_IGNORED = {name: ("clip_sample",) for name in BY_TIMES if name.startswith("CogVideoX")}
"""Settings that a scheduler has and does not heed."""


def original_source(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a class and config, whose place a `PlanScheduler` takes.

    Raises:
        FestinaError: a class or a setting whose place a `PlanScheduler` cannot take.
    """
    if name in _UNLIKE:
        raise FestinaError(f"{name} {_UNLIKE[name]}")
    if name not in SOURCES:
        raise FestinaError(
            f"{name or 'no scheduler'} gives no noise levels that are known here. Begin with PlanScheduler."
            f"from_scheduler(scheduler), with one of {', '.join(SOURCES)}."
        )
    for key, reason in _REFUSED.items():
        if config.get(key) and key not in _IGNORED.get(name, ()):
            raise FestinaError(f"{name} with {key}=True {reason}. Use the scheduler with {key}=False.")
    if _continuous(config) and name != _EULER:
        raise FestinaError(
            f'{name} heeds no timestep_type "continuous", for which the network was trained. Use {_EULER}.'
        )
    return getattr(diffusers, name).from_config(config)


def make_source(name: str, config: Mapping[str, Any]) -> Any:
    """The scheduler whose grid serves a class and config: `original_source`, each of its timesteps once.

    Raises:
        FestinaError: as `original_source`.
    """
    # A PNDM scheduler repeats timesteps for its warm-up; without Runge-Kutta steps the distinct ones are its grid.
    extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    return original_source(name, {**config, **extra})


def frame_of(source: Any) -> Frame:
    """The frame of a scheduler made by `make_source`.

    Raises:
        FestinaError: a prediction type that the family does not know, or continuous times whose largest noise level
            changes with the number of steps.
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
    if name == FLOW or config.get("use_flow_sigmas"):
        return Frame("flow", config.get("prediction_type", "flow_prediction"), config.num_train_timesteps)
    if _continuous(config):
        return _continuous_frame(source)
    return Frame("variance_preserving", config.prediction_type, config.num_train_timesteps, training_noise_of(source))


def _continuous(config: Mapping[str, Any]) -> bool:
    """Whether the network is told ln(noise) / 4. Diffusers heeds the setting with v_prediction only."""
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def _continuous_frame(source: Any) -> Frame:
    """EDM's frame with sigma_data 1, which continuous times and v_prediction are (Karras et al. 2022, table 1)."""
    # Where the grid begins follows from half a dozen settings; two grids tell whether it is one level.
    largest = []
    for steps in (2, 7):
        probe = type(source).from_config(source.config)
        probe.set_timesteps(steps)
        largest.append(float(probe.sigmas[0]))
    if not math.isclose(*largest, rel_tol=1e-5):
        raise FestinaError(
            f"the largest noise level of this {_EULER} with continuous timesteps is {largest[0]:g} with 2 steps and "
            f'{largest[1]:g} with 7. Set sigma_max and use_karras_sigmas=True, or timestep_spacing="trailing".'
        )
    least = source.config.get("sigma_min")
    return Frame(
        "edm",
        "v_prediction",
        source.config.num_train_timesteps,
        sigma_data=1.0,
        initial_scale=math.hypot(largest[0], 1),
        smallest_noise=training_noise_of(source)[0] if least is None else float(least),
    )
