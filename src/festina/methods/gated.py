"""What methods with a gate share: the stack in steps that the gate decides, or that always compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from festina.errors import FestinaError
from festina.forecasts import NEWTON
from festina.gates import Gate
from festina.methods.columns import plan_of_columns, want_whole
from festina.plan import COMPUTE, GATED, MAX_STEPS, Plan
from festina.strict import is_number


def gated_plan(
    pipe: Any,
    steps: int,
    runs: Sequence[str],
    computing: Collection[int],
    gate: Gate,
    method: str,
    settings: Mapping[str, Any],
    basis: str = NEWTON,
) -> Plan:
    """The plan in which a gate decides for runs of blocks, but for the steps in which they compute.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, at least 1.
        runs: names of the gated sites.
        computing: the steps in which it does not decide.
        gate: the gate.
        method, settings, basis: see `festina.Plan`.

    Raises:
        FestinaError: there is no such number of steps.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    actions = "".join(COMPUTE if step in computing else GATED for step in range(steps))
    return plan_of_columns(pipe, dict.fromkeys(runs, actions), method, settings, basis, gate)


def first_steps(warm_up: int) -> range:
    """The first `warm_up` steps. Raises a `FestinaError` unless there is such a number of them."""
    want_whole("the warm-up", warm_up, 0)
    return range(warm_up)


def share_of_steps(retention: float, steps: int, rounding: float = 0.0) -> int:
    """How many steps a share of a run is: floor(retention * steps + rounding).

    Raises:
        FestinaError: the share is not in [0, 1].
    """
    if not is_number(retention) or not 0 <= retention <= 1:
        raise FestinaError(f"the retention is {retention!r:.40}; wanted a share of the steps from 0 to 1.")
    return int(retention * steps + rounding)
