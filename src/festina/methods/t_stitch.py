"""T-Stitch: a smaller denoiser takes the first steps (arXiv 2402.14167)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from festina.errors import FestinaError
from festina.methods.columns import computing, want_whole
from festina.plan import MAX_STEPS, Plan
from festina.strict import is_number

Chain = Sequence[tuple[str, float]]
"""Names of models with the share of the steps that each takes, in the order in which they run."""

_SLACK = 1e-9
"""Share by which a step may be late: 0.1 + 0.2 of ten steps are three of them, whatever the sum rounds to."""


def t_stitch(pipe: Any, steps: int, share: float | Chain, model: str = "small") -> Plan:
    """The first share of the steps by a smaller denoiser, the rest by the pipeline's own (T-Stitch, arXiv 2402.14167).

    Both must have been trained on the same latents, noise levels and kind of prediction. Step i of n belongs to the
    smaller one where i / n < share: none at 0, all at 1, and the first `ceil(share * n)` in between. The plan is run by
    `festina.accelerate(pipe, plan, models={model: denoiser})`.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps.
        share: share of the steps, in [0, 1]. Of several models a sequence of (name, share), the one for the noisiest
            steps first; the pipeline's own denoiser takes what they leave.
        model: name of the smaller denoiser in the plan; means nothing where `share` is a sequence.

    Raises:
        FestinaError: a share is outside [0, 1], or all are more than 1 together, or a name is no text or comes twice.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    chain: Chain = share if isinstance(share, Sequence) else [(model, share)]
    names = models_of_steps(steps, chain)
    told = (
        {"share": [list(part) for part in share]} if isinstance(share, Sequence) else {"share": share, "model": model}
    )
    return _with_models(computing(pipe, steps, "t_stitch", told), names)


def stitched(plan: Plan, models: Chain) -> Plan:
    """A plan, such as one of another method, with other denoisers in its first steps.

    What the plan says of sites in these steps means nothing; the pipeline's own denoiser computes everything in its
    first step, whatever the plan says there.

    Args:
        plan: the plan.
        models: names of denoisers with the share of the steps that each takes, see `t_stitch`.

    Raises:
        FestinaError: see `t_stitch`.
    """
    return _with_models(plan, models_of_steps(len(plan.steps), models))


def models_of_steps(steps: int, models: Chain) -> tuple[str, ...]:
    """The name of each step's denoiser, "" for the pipeline's own.

    Args:
        steps: sampling steps.
        models: names of denoisers with the share of the steps that each takes, see `t_stitch`.

    Raises:
        FestinaError: see `t_stitch`.
    """
    ends: list[tuple[str, float]] = []
    for part in models:
        name, share = _name_and_share(part)
        if not isinstance(name, str) or not name:
            raise FestinaError(f"a model is called {name!r:.40}; wanted a text with a letter at least.")
        if name in [known for known, _ in ends]:
            raise FestinaError(f"the model {name!r:.40} comes twice; wanted one share of the steps for each.")
        if not is_number(share) or not 0 <= share <= 1:
            raise FestinaError(f"the share of the steps that {name!r:.40} takes is {share!r:.40}; wanted 0 to 1.")
        ends.append((name, share + (ends[-1][1] if ends else 0.0)))
    if ends and ends[-1][1] > 1 + _SLACK:
        raise FestinaError(f"the models take {ends[-1][1]:.4g} of the steps together; wanted 1 at most.")
    return tuple(next((name for name, end in ends if step / steps < end - _SLACK), "") for step in range(steps))


def _name_and_share(part: Any) -> tuple[Any, Any]:
    if not isinstance(part, Sequence) or isinstance(part, str) or len(part) != 2:
        raise FestinaError(f"one of the models is {part!r:.40}; wanted its name and its share of the steps.")
    return part[0], part[1]


def _with_models(plan: Plan, names: Sequence[str]) -> Plan:
    steps = (replace(step, model=name) for step, name in zip(plan.steps, names, strict=True))
    return replace(plan, steps=tuple(steps), measured=())
