"""LTC-Accel: in every second step of the later run the last answer is replayed (arXiv 2503.09675)."""

from __future__ import annotations

import math
from typing import Any

from festina.calibration.coherence import Coherence
from festina.errors import FestinaError
from festina.executor.replay import why_not_replayed
from festina.methods.columns import computing, want_whole
from festina.plan import MAX_STEPS, Plan


def ltc_accel(
    pipe: Any,
    steps: int,
    interval: tuple[int, int] | None = None,
    period: int = 2,
    coherence: Coherence | None = None,
) -> Plan:
    """The schedule of LTC-Accel (arXiv 2503.09675), with the network's output replayed instead of the latents' change.

    In an interval of steps every `period`-th one makes its sampler step of the last output, times a factor. Without a
    calibration the factor is 1: for an Euler sampler this is the same as leaving out these entries of its schedule.

    Args:
        pipe: a diffusers pipeline or its denoiser. The sampler of a pipeline is checked.
        steps: sampling steps, at least 3.
        interval: first and last step that may be replayed; `released_interval(steps)` if not given. The paper's is
            `Coherence.interval`, of a run that replays nothing.
        period: steps from one replayed step to the next, at least 2.
        coherence: factors, measured along a run that replays `replayed_steps(interval, period)`.

    Raises:
        FestinaError: the sampler cannot replay, a knob is out of its range, no step is left to be replayed, or the
            factors are of other steps.
    """
    want_whole("the number of steps", steps, 3, MAX_STEPS)
    if reason := why_not_replayed(getattr(pipe, "scheduler", None)):
        raise FestinaError(f"LTC-Accel replays what the denoiser answered, but {reason}.")
    interval = released_interval(steps) if interval is None else interval
    replayed = replayed_steps(interval, period)
    if interval[1] >= steps:
        raise FestinaError(f"an interval up to step {interval[1]}, in a run of {steps}; wanted {steps - 1} at most.")
    if not replayed:
        raise FestinaError(
            f"no step from {interval[0]} to {interval[1]} is replayed with a period of {period}: wanted one, beyond "
            f"the first two, with step % {period} == {period - 1}. Give a longer interval, or more than {steps} steps."
        )
    settings: dict[str, Any] = {"interval": list(interval), "period": period}
    factors = dict.fromkeys(replayed, 1.0)
    if coherence is not None:
        if coherence.replayed != replayed or coherence.factors.shape[1] != steps:
            raise FestinaError(
                f"the factors were measured in a run of {coherence.factors.shape[1]} steps that replays "
                f"{list(coherence.replayed)}; wanted {steps} steps and {list(replayed)}. Measure along this plan."
            )
        factors = coherence.mean_factors()
        settings |= {"pictures": len(coherence.pictures), "deviations": list(coherence.deviations().values())}
    return computing(pipe, steps, "ltc_accel", settings).replaying(factors)


def released_interval(steps: int, start: float = 0.25, keep_last: int = 1) -> tuple[int, int]:
    """The interval of the released code: what comes after a first share of the steps.

    Args:
        steps: sampling steps.
        start: the share, in [0, 1); 0.25 is published.
        keep_last: how many of the last steps are never replayed, at least 0. The released code has 0; where the run
            ends outputs change most, so that here it is 1.

    Returns:
        first and last step. There may be none between them.

    Raises:
        FestinaError: a knob is out of its range.
    """
    if not 0 <= start < 1:
        raise FestinaError(f"the share before the interval is {start}; wanted one in [0, 1).")
    want_whole("the number of last steps that are kept", keep_last, 0)
    return math.floor(start * steps) + 1, steps - 1 - keep_last


def replayed_steps(interval: tuple[int, int], period: int = 2) -> tuple[int, ...]:
    """The steps of an interval that are replayed: those of which `step % period == period - 1`, but not the first two.

    Args:
        interval: first and last step.
        period: at least 2, so that no two steps in a row are replayed.

    Raises:
        FestinaError: a knob is out of its range.
    """
    want_whole("the period", period, 2)
    first, last = interval
    want_whole("the interval's first step", first, 0)
    if type(last) is not int:
        raise FestinaError(f"the interval's last step is {last!r:.40}; wanted a whole number.")
    return tuple(step for step in range(max(2, first), last + 1) if step % period == period - 1)
