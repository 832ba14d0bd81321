"""Where the steps of a run lie in the model's training time, before the run."""

from __future__ import annotations

from typing import Any

from festina.errors import FestinaError
from festina.methods.columns import want_whole
from festina.plan import MAX_STEPS
from festina.strict import brief

TRAINING_STEPS = 1000
"""Training time of pure noise, whatever the number of timesteps that a model was trained with."""


def training_times(pipe: Any, steps: int) -> tuple[float, ...]:
    """Training time of each step, from 1000 (pure noise) to 0 (clean), as the pipeline's scheduler will set it.

    A new scheduler of the same settings is asked, so that the pipeline's own is left alone. For a bare denoiser the
    times are evenly spaced from 999 towards 0.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: entries of the schedule, at least 1; a scheduler of order 2 makes nearly two for each step asked for.

    Raises:
        FestinaError: the scheduler makes no such number of entries, needs more than a number of steps to make them
            (such as the size of the picture), or counts time in other units.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        return tuple((TRAINING_STEPS - 1) * (steps - step) / steps for step in range(steps))
    found = _schedule_of(scheduler, steps)
    trained = getattr(scheduler.config, "num_train_timesteps", TRAINING_STEPS)
    if getattr(scheduler.config, "invert_sigmas", False):
        # As in Mochi: time is counted from noise to picture.
        found = [trained - time for time in found]
    # One step may lie anywhere; of several, the first lies among the noisy ones.
    if min(found) < 0 or max(found) > trained or (steps > 1 and max(found) <= 1 < trained):
        raise FestinaError(
            f"{type(scheduler).__name__} has timesteps from {max(found):g} to {min(found):g}, which is no training "
            f"time from {trained} to 0; give the times of the steps."
        )
    return tuple(time * TRAINING_STEPS / trained for time in found)


def _schedule_of(scheduler: Any, entries: int) -> list[float]:
    """The timesteps of a new scheduler like this one, told to make so many steps that it has this many entries."""
    name = type(scheduler).__name__
    for asked in range(entries, 0, -1):
        twin = type(scheduler).from_config(scheduler.config)
        try:
            twin.set_timesteps(asked)
        except Exception as error:
            raise FestinaError(
                f"{name} makes no timesteps from a number of steps alone ({brief(error)}); give the times of the "
                f"steps, after a run pipe.scheduler.timesteps.tolist()."
            ) from error
        if len(twin.timesteps) <= entries:
            break
    if len(twin.timesteps) != entries:
        raise FestinaError(
            f"{name} makes {len(twin.timesteps)} timesteps for {asked} steps, and never {entries}; give a number of "
            f"steps that it makes."
        )
    return [float(time) for time in twin.timesteps]
