"""A search over a strength of guidance for each step, where weak ones are dropped: the first stage of OUSAC.

OUSAC (arXiv 2512.14096) looks for the steps that keep guidance and for its strength there: a larger strength in few
steps makes up for none in the others. Its evolutionary algorithm minimises a loss plus a weight times the number of
guided steps; here NSGA-II finds the best loss for every such number, so that there is no weight to choose. It is
pymoo's (arXiv 2002.04504), on real numbers, with simulated binary crossover and polynomial mutation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.problems.static import StaticProblem

from festina.errors import FestinaError
from festina.methods.guidance import guided
from festina.plan import ALL, CONDITIONAL, Plan
from festina.strict import is_number

__all__ = ["GuidanceSettings", "GuidedPlan", "guided_steps", "search_guidance"]

Judge = Callable[[Plan], float]
Factors = NDArray[np.float64]

_SPREAD = 5.0
"""Index of the distributions of pymoo's crossover and mutation: lower than its defaults (15 and 20), so that a child
often comes to the other side of the threshold."""

_CHANGES = 2.0
"""Expected number of factors that mutate in a child."""


@dataclass(frozen=True)
class GuidanceSettings:
    """How a search goes. Factors are those of `festina.Step.guidance`: 1 leaves the pipeline's strength as it is.

    Attributes:
        population: schedules per generation, at least 4.
        generations: generations, the first population included; at least 1.
        largest: largest factor, above the threshold.
        threshold: below it a step is not guided and runs without the branch that has no caption; above 0.
        grain: factors are rounded to multiples of it, above 0 and at most the threshold.
        seed: of all random choices, at least 0.

    Raises:
        FestinaError: on construction, if a value is out of its range.
    """

    population: int = 24
    generations: int = 40
    largest: float = 3.0
    threshold: float = 0.5
    grain: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in {"population": 4, "generations": 1, "seed": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < lowest:
                raise FestinaError(f"setting {name} = {value!r:.40}; wanted a whole number of at least {lowest}.")
        numbers = (self.grain, self.threshold, self.largest)
        if not all(map(is_number, numbers)) or not 0 < self.grain <= self.threshold < self.largest:
            raise FestinaError(
                f"factors with the grain {self.grain}, the threshold {self.threshold} and the largest {self.largest}; "
                f"wanted 0 < grain <= threshold < largest."
            )


@dataclass(frozen=True)
class GuidedPlan:
    """A plan of the front.

    Attributes:
        plan: the plan.
        loss: what the judge said of it.
        guided_steps: steps in which both branches run.
    """

    plan: Plan
    loss: float
    guided_steps: int


def search_guidance(plan: Plan, judge: Judge, settings: GuidanceSettings | None = None) -> tuple[GuidedPlan, ...]:
    """Find the strengths of guidance by step that lose least for every number of guided steps.

    The same plan, judge and settings give the same result. No schedule is judged twice, and schedules that are one run
    (`Plan.key`) are one. Guidance in all steps as the pipeline has it, and in none, are among the first. All else that
    the plan says stays: its caches are judged with the guidance that they meet.

    Args:
        plan: what to put the guidance into; what it says of guidance is replaced. Its number of steps stays: search
            `plan.resample(steps)` for another one.
        judge: the loss of a plan, lower is better, e.g. a distance to pictures of the untouched pipeline or a reward
            with its sign turned. Not finite: the plan is left out.
        settings: how the search goes.

    Returns:
        The plans that no other one beats, by rising number of guided steps and so by falling loss.

    Raises:
        FestinaError: no loss is finite.
    """
    search = _Search(plan, judge, settings or GuidanceSettings())
    search.run()
    kept: list[GuidedPlan] = []
    for found in sorted(search.found.values(), key=lambda each: (each.guided_steps, each.loss)):
        if math.isfinite(found.loss) and (not kept or found.loss < kept[-1].loss):
            kept.append(found)
    if not kept:
        raise FestinaError(f"none of the {len(search.found)} plans judged has a finite loss. See what the judge gives.")
    return tuple(kept)


def guided_steps(plan: Plan) -> int:
    """Steps in which a plan runs all branches of guidance; a replayed one runs none."""
    return sum(step.branches == ALL and not step.replays for step in plan.canonical().steps)


class _Search:
    """A search under way.

    Attributes:
        found: every plan judged, by its key, in this order.
    """

    def __init__(self, plan: Plan, judge: Judge, settings: GuidanceSettings) -> None:
        self.plan, self.judge, self.settings = plan, judge, settings
        self.found: dict[str, GuidedPlan] = {}

    def run(self) -> None:
        """Go through the generations."""
        settings, steps = self.settings, len(self.plan.steps)
        algorithm = NSGA2(
            pop_size=settings.population,
            sampling=self.first(),
            crossover=SBX(prob=0.9, eta=_SPREAD),
            mutation=PM(prob=1.0, prob_var=min(0.5, _CHANGES / steps), eta=_SPREAD),
            repair=_Rounded(settings),
            seed=settings.seed,
        )
        problem = Problem(n_var=steps, n_obj=2, n_ieq_constr=1, xl=0.0, xu=settings.largest)
        algorithm.setup(problem, termination=NoTermination())
        for _ in range(settings.generations):
            population = algorithm.ask()
            if population is None:
                # Mating yields nothing but copies.
                return
            judged = [self.judged(factors) for factors in population.get("X")]
            finite = [math.isfinite(each.loss) for each in judged]
            losses = [each.loss if sound else 0.0 for each, sound in zip(judged, finite, strict=True)]
            objectives = np.column_stack([losses, [each.guided_steps for each in judged]])
            violations = np.array([[0.0 if sound else 1.0] for sound in finite])
            algorithm.evaluator.eval(StaticProblem(problem, F=objectives, G=violations), population)
            algorithm.tell(infills=population)

    def judged(self, factors: Factors) -> GuidedPlan:
        """What the judge says, or said, of a schedule."""
        table = [float(factor) for factor in factors]
        made = guided(self.plan, table, [ALL if factor else CONDITIONAL for factor in table])
        key = made.key()
        if key not in self.found:
            made = replace(made, settings={**self.plan.settings, "guidance_search": asdict(self.settings)})
            self.found[key] = GuidedPlan(made, float(self.judge(made)), guided_steps(made))
        return self.found[key]

    def first(self) -> Factors:
        """The first population: guidance everywhere and nowhere, in the middle, then in a random share of the steps."""
        steps, settings = len(self.plan.steps), self.settings
        random = np.random.default_rng(settings.seed)
        places = np.arange(steps)
        one = _rounded(np.ones(steps), settings)
        rows = [one, 0 * one, one * (places < steps / 2), one * ((places >= steps / 4) & (places < 3 * steps / 4))]
        while len(rows) < settings.population:
            drawn = random.uniform(settings.threshold, settings.largest, steps)
            rows.append(drawn * (random.random(steps) < random.random()))
        return _rounded(np.array(rows), settings)


class _Rounded(Repair):
    """Makes of each child the schedule that is judged, so that two that are judged as one are seen to be copies."""

    def __init__(self, settings: GuidanceSettings) -> None:
        super().__init__()
        self.settings = settings

    def _do(self, problem: Any, X: Factors, **kwargs: Any) -> Factors:  # noqa: N803 - pymoo names its arguments
        return _rounded(X, self.settings)


def _rounded(factors: Factors, settings: GuidanceSettings) -> Factors:
    """Multiples of the grain from the threshold on; 0 below it."""
    near = np.round(np.round(factors / settings.grain) * settings.grain, 9)
    return np.where(near < settings.threshold, 0.0, np.minimum(near, settings.largest))
