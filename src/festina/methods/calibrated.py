"""What calibrated methods share: seeing that a calibration is of this pipeline and of as many steps, and of knobs."""

from __future__ import annotations

from typing import Any

from festina.calibration import Calibration
from festina.errors import FestinaError
from festina.sites import component_sites, find_denoiser, sampler_of
from festina.strict import is_number


def want_fit(calibration: Calibration, pipe: Any, steps: int, measure: str) -> None:
    """See to it that a calibration holds for a pipeline, a number of steps and a method.

    Args:
        calibration: the calibration.
        pipe: a diffusers pipeline or its denoiser; a denoiser alone says nothing of the scheduler.
        steps: sampling steps of the plan.
        measure: what the method needs, of `festina.calibration.record.MEASURES`.

    Raises:
        FestinaError: it does not; the message says what differs and what to do.
    """
    denoiser = find_denoiser(pipe)
    again = "calibrate this pipeline as it will run: festina.calibrate(pipe, prompts, steps)"
    name, sampler = type(denoiser).__name__, sampler_of(pipe)
    if calibration.denoiser != name or calibration.sites != tuple(site.name for site in component_sites(denoiser)):
        raise FestinaError(
            f"the calibration is of a {calibration.denoiser} with {len(calibration.sites)} component sites, which this "
            f"{name} is not; {again}."
        )
    if sampler and calibration.sampler != sampler:
        raise FestinaError(f"the calibration was made with {calibration.sampler}, not with {sampler}; {again}.")
    if calibration.steps != steps:
        raise FestinaError(f"the calibration has {calibration.steps} steps, the plan {steps}; {again}.")
    if measure not in calibration.measures:
        raise FestinaError(
            f"the calibration has no {measure}, only {', '.join(calibration.measures)}; calibrate again with all "
            f"measures, or with {measure!r} among them."
        )
    if not calibration.pictures:
        raise FestinaError(f"the calibration has no picture yet; {again}.")


def want_threshold(threshold: float) -> None:
    """Raise a `FestinaError` unless a threshold is a number of at least 0."""
    if not is_number(threshold) or threshold < 0:
        raise FestinaError(f"the threshold is {threshold!r:.40}; wanted a number of at least 0.")
