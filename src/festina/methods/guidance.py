"""Guidance in some steps only, of another strength in each, with the difference of an older step, or by all conditions
at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from festina.errors import FestinaError
from festina.methods.columns import computing, want_whole
from festina.plan import ALL, CONDITIONAL, MAX_STEPS, Plan
from festina.records import DIFFERENCE, JOINT
from festina.strict import is_number


def guidance_interval(pipe: Any, steps: int, first: int, last: int) -> Plan:
    """Guidance from one step to another only (arXiv 2404.07724); elsewhere only the branch with the caption runs.

    The paper says its interval in noise levels. It finds that guidance harms at high noise, does nothing at low noise,
    and helps in between.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps.
        first, last: the first and the last step that is guided, 0 <= first <= last < steps.

    Raises:
        FestinaError: a knob is out of its range.
    """
    branches = _interval(steps, first, last, "that is guided", ALL, CONDITIONAL)
    return guided(computing(pipe, steps, "guidance_interval", {"first": first, "last": last}), branches=branches)


def guidance_table(pipe: Any, factors: Sequence[float]) -> Plan:
    """A strength of guidance for each step, as a factor on what the pipeline adds by it.

    A pipeline of strength s, which makes u + s (c - u) of the answers with (c) and without the caption (u), guides with
    a factor k by 1 + k (s - 1). Where the factor is 0 only the branch with the caption runs. A search over such tables
    is the first half of OUSAC (arXiv 2512.14096); weights that grow during the run are those of arXiv 2404.13040.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        factors: one per sampling step, the noisiest first; 1 leaves the pipeline's strength as it is.

    Raises:
        FestinaError: there are too few or too many factors, or one is no finite number.
    """
    want_whole("the number of factors", len(factors), 1, MAX_STEPS)
    if odd := [factor for factor in factors if not is_number(factor)]:
        raise FestinaError(f"a factor on guidance is {odd[0]!r:.40}; wanted finite numbers.")
    table = [float(factor) for factor in factors]
    plan = computing(pipe, len(table), "guidance_table", {"factors": table})
    return guided(plan, table, [ALL if factor else CONDITIONAL for factor in table])


def guidance_reuse(pipe: Any, steps: int, interval: int) -> Plan:
    """Both branches of guidance in every so many steps; between them the one with the caption, and the last difference.

    Differences of the answers with and without the caption are more alike from step to step than the answers. To reuse
    the difference is the idea of FasterCache's CFG-Cache (arXiv 2410.19355), which also weights its low and its high
    frequencies; here it is used as it is.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps.
        interval: both branches run in the multiples of this step, at least 1; at 1 they always do.

    Raises:
        FestinaError: a knob is out of its range.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    want_whole("the interval", interval, 1)
    branches = [DIFFERENCE if step % interval else ALL for step in range(steps)]
    return guided(computing(pipe, steps, "guidance_reuse", {"interval": interval}), branches=branches)


def joint_conditions(pipe: Any, steps: int, first: int, last: int) -> Plan:
    """Guidance by all conditions together from one step to another, where the pipeline guides by two of them.

    Such a pipeline runs its denoiser with both conditions (a), with one (m) and with none (n), and makes of the answers
    n + s_1 (a - m) + s_2 (m - n). SpaText (arXiv 2211.14305) leaves those with some conditions out and has one
    strength, n + s (a - n). In the steps said only a and n are run, two thirds of a call, and s is the pipeline's s_1,
    as it is given n for m; `guided` puts factors on it.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps.
        first, last: the first and the last step that is guided so, 0 <= first <= last < steps.

    Raises:
        FestinaError: a knob is out of its range.
    """
    branches = _interval(steps, first, last, "with joint conditions", JOINT, ALL)
    return guided(computing(pipe, steps, "joint_conditions", {"first": first, "last": last}), branches=branches)


def guided(plan: Plan, factors: Sequence[float] | None = None, branches: Sequence[str] | None = None) -> Plan:
    """A plan, such as one of another method, with other guidance.

    Args:
        plan: the plan.
        factors: for each step the factor on the difference of both branches (`festina.Step.guidance`); as they are if
            not given.
        branches: for each step one of `festina.plan.BRANCHES`; as they are if not given.

    Raises:
        FestinaError: there is not one for each step, or one is not such.
    """
    factors = [step.guidance for step in plan.steps] if factors is None else factors
    branches = [step.branches for step in plan.steps] if branches is None else branches
    if {len(factors), len(branches)} != {len(plan.steps)}:
        raise FestinaError(
            f"{len(factors)} factors on guidance and branches for {len(branches)} steps; the plan has "
            f"{len(plan.steps)} steps."
        )
    steps = (
        replace(step, guidance=factor, branches=which)
        for step, factor, which in zip(plan.steps, factors, branches, strict=True)
    )
    return replace(plan, steps=tuple(steps), measured=())


def _interval(steps: int, first: int, last: int, what: str, inside: str, outside: str) -> list[str]:
    """The branches of each step: some from one step to another, and others elsewhere."""
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    want_whole(f"the first step {what}", first, 0, steps - 1)
    want_whole(f"the last step {what}", last, first, steps - 1)
    return [inside if first <= step <= last else outside for step in range(steps)]
