"""What a plan is made of: its steps, with the letters and words they say it with, and measured figures. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from festina.errors import FestinaError
from festina.names import OUTPUT, parse
from festina.strict import is_number
from festina.tokens import check_shares

COMPUTE, REUSE, SKIP, GATED, PARTIAL = "C", "R", "S", "G", "T"
FORECASTS = "123456789"
ACTIONS = COMPUTE + REUSE + SKIP + GATED + PARTIAL + FORECASTS

ALL, CONDITIONAL, MERGED, DIFFERENCE, JOINT = "all", "conditional", "merged", "difference", "joint"
BRANCHES = (ALL, CONDITIONAL, MERGED, DIFFERENCE, JOINT)
"""Which branches of guidance the denoiser runs for: all that the pipeline asks for; only the one with the caption,
whose answer stands for the other; only one, with the mean of what was stored of both (T-GATE, arXiv 2404.02747);
only the one with the caption, the other one being its answer less what lay between both when both ran last; or, where a
pipeline guides by two conditions, the one with both and the one with none (SpaText, arXiv 2211.14305)."""

MAX_STEPS, MAX_NAME = 10_000, 512


@dataclass(frozen=True)
class Step:
    """One sampling step.

    Attributes:
        noise: place on the noise axis as a share of the training schedule, 1 = pure noise, 0 = clean; falls from
            step to step. Records belong to noise levels: `Plan.resample` looks a new step up by it.
        actions: one character of `ACTIONS` per site of the plan, in the plan's order of sites.
        branches: which branches of guidance run, one of `BRANCHES`.
        injected: how much of the initial latents is added to the latents after this step.
        ahead: for how many of the steps that follow the denoiser answers too, all in one call (Faster Diffusion, arXiv
            2312.09608). For U-Nets, where these serve all that comes of the latents.
        shares: for each site whose action is `T` the share of its tokens that is computed, in [0, 1], and 0 for all
            others; () in a step without `T`.
        replay: None where the denoiser is called; else it is not, and its last answer is given again, times this factor
            (LTC-Accel, arXiv 2503.09675). Actions mean nothing in such a step.
        guidance: what the difference of the branches' answers, with the caption and without, is multiplied with before
            the pipeline guides by it: 1 leaves it alone, 0 does not guide, and (g - 1) / (s - 1) makes the pipeline's
            strength s a g. Means nothing where one answer stands for both branches.
        model: name of the denoiser that is called in the place of the pipeline's own (T-Stitch, arXiv 2402.14167), ""
            for its own. Actions, which are of the sites of the pipeline's own, mean nothing in such a step.
    """

    noise: float
    actions: str
    branches: str = ALL
    injected: float = 0.0
    ahead: int = 0
    shares: tuple[float, ...] = ()
    replay: float | None = None
    guidance: float = 1.0
    model: str = ""

    @property
    def replays(self) -> bool:
        """Whether the denoiser's last answer is given again."""
        return self.replay is not None

    @property
    def visits(self) -> bool:
        """Whether the pipeline's own denoiser is called, so that its sites are come to."""
        return not self.replays and not self.model


@dataclass(frozen=True)
class Measurement:
    """One measured figure of a plan.

    Attributes:
        name: what was measured, e.g. "reward".
        value: the figure.
        unit: its unit, "" for a pure number.
        conditions: prompts, hardware, library versions, ... in a sentence.
    """

    name: str
    value: float
    unit: str
    conditions: str

    def __post_init__(self) -> None:
        words = (self.name, self.unit, self.conditions)
        want(all(isinstance(word, str) for word in words), "the words of a measurement are texts")
        want(is_number(self.value), f"the measured {self.name!r} is no finite number")


def check_steps(sites: int, steps: Sequence[Step]) -> None:
    """See that steps are such as a plan of so many sites may have.

    Raises:
        FestinaError: they are not.
    """
    want(0 < len(steps) <= MAX_STEPS, f"{len(steps)} steps; a plan has 1 to {MAX_STEPS}")
    last = math.inf
    for index, step in enumerate(steps):
        if len(step.actions) != sites:
            raise FestinaError(f"step {index} has {len(step.actions)} actions for {sites} sites; wanted one each.")
        if unknown := set(step.actions) - set(ACTIONS):
            raise FestinaError(f"step {index} has unknown actions {sorted(unknown)}; wanted letters of {ACTIONS!r}.")
        want(step.branches in BRANCHES, f"step {index} has branches {step.branches!r:.40}, none of {BRANCHES}")
        want(is_number(step.injected), f"what is injected after step {index} is no finite number")
        whole = type(step.ahead) is int and 0 <= step.ahead <= MAX_STEPS
        want(whole, f"the steps that step {index} answers ahead are no whole number from 0 to {MAX_STEPS}")
        check_shares(index, step.shares, [action == PARTIAL for action in step.actions])
        want(is_number(step.guidance), f"the factor on the guidance of step {index} is no finite number")
        named = isinstance(step.model, str) and len(step.model) <= MAX_NAME
        want(named, f"the model of step {index} is {step.model!r:.40}, no text of at most {MAX_NAME} letters")
        scaled = step.replay is None or is_number(step.replay)
        want(scaled, f"the factor of what is replayed in step {index} is no finite number")
        if not 0 <= step.noise <= 1 or not step.noise < last:
            raise FestinaError(
                f"step {index} lies at noise {step.noise}; wanted shares in [0, 1] that fall from step to step."
            )
        last = step.noise


def one_kind(branches: str) -> str:
    """What of `BRANCHES` two steps have in common where the one can go on with what the other stored.

    A step that uses the last difference again runs for the same branch as one whose answer stands for the other.
    """
    return CONDITIONAL if branches == DIFFERENCE else branches


def difference_kept(steps: Sequence[Step]) -> tuple[bool, ...]:
    """After which steps the difference of the last step in which both branches ran is still to be used.

    Args:
        steps: the steps of a plan in canonical form.
    """
    kept, read = [], False
    for step in reversed(steps):
        kept.append(read)
        if step.branches == DIFFERENCE:
            read = True
        elif step.branches == ALL and not step.replays:
            read = False
    return tuple(reversed(kept))


def enclosing_sites(sites: Sequence[str]) -> list[list[int]]:
    """For each site the indices of the sites that contain it, read off the names (`festina.names`)."""
    names = [parse(site) for site in sites]
    wide = [(index, name) for index, name in enumerate(names) if name.kind != OUTPUT]
    return [[index for index, outer in wide if outer.encloses(inner)] for inner in names]


def want(holds: bool, message: str) -> None:
    """Raise a `FestinaError` that says what a valid plan has, unless it holds."""
    if not holds:
        raise FestinaError(f"not a valid plan: {message}.")
