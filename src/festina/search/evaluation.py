"""What is known of a candidate after its pictures were made and judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from festina.plan import Plan


@dataclass(frozen=True)
class Evaluation:
    """A plan and what was measured with it on one workload.

    Attributes:
        plan: the plan in canonical form; None for the untouched sampler.
        steps: sampling steps.
        scores: reward of every picture, pictures of one prompt side by side.
        images_per_prompt: pictures per prompt.
        macs: multiply-accumulates, as priced before the run.
        seconds: wall seconds of the pipeline over all pictures; judging them is not counted.
        peak_bytes: most bytes held between steps, for a batch of the workload's size.
    """

    plan: Plan | None
    steps: int
    scores: tuple[float, ...]
    images_per_prompt: int
    macs: int
    seconds: float
    peak_bytes: int

    @property
    def reward(self) -> float:
        """Mean reward of the pictures."""
        return math.fsum(self.scores) / len(self.scores)

    @property
    def seconds_per_image(self) -> float:
        """Wall seconds of the pipeline per picture."""
        return self.seconds / len(self.scores)


class Evaluates(Protocol):
    """What a search needs to know of candidates; `festina.search.evaluator.Evaluator` is the one for pipelines."""

    @property
    def price(self) -> Callable[[Plan], int]:
        """MACs of a plan, known before it runs."""

    @property
    def conditions(self) -> str:
        """Workload, hardware and library versions in a sentence, for the measured figures of a plan."""

    def evaluate(self, plan: Plan) -> Evaluation:
        """Run a plan over the workload; the same plan always gets the same answer."""
