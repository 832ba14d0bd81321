"""The search: NSGA-II over plans, as ECAD does it (arXiv 2506.15682), on pymoo's implementation (arXiv 2002.04504)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import PointCrossover
from pymoo.operators.mutation.bitflip import BitflipMutation
from pymoo.problems.static import StaticProblem

from festina.errors import FestinaError
from festina.plan import Measurement, Plan
from festina.search.evaluation import Evaluates, Evaluation
from festina.search.front import Front, Point, confidence_interval, non_dominated
from festina.search.genome import Genome
from festina.search.seeds import first_population
from festina.search.settings import SearchSettings


class Progress(Protocol):
    """Told after every candidate."""

    def __call__(self, done: int, total: int, message: str) -> None:
        """`done` of at most `total` candidates are through; `message` says what is being done."""


def silent(done: int, total: int, message: str) -> None:
    """Shows no progress."""


def never() -> bool:
    """Does not stop a search before its last generation."""
    return False


def search(
    evaluator: Evaluates,
    held_out: Evaluates,
    genome: Genome,
    settings: SearchSettings,
    progress: Progress = silent,
    start: Sequence[Plan] = (),
    stop: Callable[[], bool] = never,
) -> Front:
    """Find the plans that give the best reward at every cost.

    NSGA-II maximises the mean reward and minimises the MACs of a plan. The candidates follow from the settings, the
    genome, `start` and the evaluations alone, so a search is resumed by running it again on the same archive: it goes
    through the same candidates and the archive answers for those that were evaluated. At the end, every plan that no
    other plan of the whole search beats is scored again on held-out prompts, because the best of many noisy scores is
    too good on average.

    Args:
        evaluator: measures candidates on the prompts of the search.
        held_out: measures the front and the uncached plan on prompts the search never saw.
        genome: which sites and how many steps are searched.
        settings: see `SearchSettings`.
        progress: told after every candidate.
        start: plans to begin with, besides the seeds of the settings.
        stop: asked before every candidate; once it says yes, no further one is evaluated and the front is made of what
            there is. At least the first candidate is evaluated.

    Returns:
        The front, by rising MACs.

    Raises:
        FestinaError: the settings do not fit the genome, there are fewer than two held-out prompts, or a candidate
            cannot be evaluated or archived.
        KeyboardInterrupt: passed on; the archive keeps what was evaluated.
    """
    algorithm = nsga2(genome, settings, first_population(genome, settings, evaluator.price, start))
    uncached = _reference(genome.uncached(), evaluator, held_out)
    found = _evolve(algorithm, evaluator, genome, settings, progress, stop)
    chosen = non_dominated(found)
    done = settings.population * settings.generations
    total = done + len(chosen)
    points = []
    for number, evaluation in enumerate(chosen, start=1):
        assert evaluation.plan is not None
        points.append(_point(evaluation, held_out.evaluate(evaluation.plan), settings, held_out.conditions))
        progress(done + number, total, f"front on held-out prompts, {number} of {len(chosen)}")
    return Front(tuple(points), uncached)


def nsga2(genome: Genome, settings: SearchSettings, first: NDArray[np.bool_]) -> NSGA2:
    """pymoo's NSGA-II with ECAD's operators, ready for ask and tell.

    Selection (binary tournament), survival (rank and crowding) and the removal of duplicates are pymoo's defaults, as
    in ECAD. All its random choices come from one generator seeded by the settings.

    Args:
        genome: what is searched.
        settings: see `SearchSettings`.
        first: the first population, bool (population, genes).

    Raises:
        FestinaError: the genome is too short for the crossover.
    """
    if genome.length <= settings.crossover_points:
        raise FestinaError(
            f"{settings.crossover_points} crossover points need more than the {genome.length} genes of this search; "
            f"search more steps or sites, or lower crossover_points."
        )
    mutation = settings.mutation
    algorithm = NSGA2(
        pop_size=settings.population,
        sampling=first,
        crossover=PointCrossover(n_points=settings.crossover_points, prob=settings.crossover_probability),
        mutation=BitflipMutation(prob=mutation.individual, prob_var=mutation.per_bit(genome.length)),
        seed=settings.seed,
    )
    problem = Problem(n_var=genome.length, n_obj=2, n_ieq_constr=1, xl=0, xu=1, vtype=bool)
    # NSGA2 brings a rule that watches for convergence; the number of generations decides here.
    return algorithm.setup(problem, termination=NoTermination())


def _evolve(
    algorithm: NSGA2,
    evaluator: Evaluates,
    genome: Genome,
    settings: SearchSettings,
    progress: Progress,
    stop: Callable[[], bool],
) -> list[Evaluation]:
    """Run the generations; every feasible evaluation of the search, each plan once, in the order of first sight."""
    found: dict[bytes, Evaluation] = {}
    total = settings.population * settings.generations
    for generation in range(settings.generations):
        population = algorithm.ask()
        if population is None:
            # Mating yields nothing but copies of the population: it has converged.
            break
        objectives, violations = [], []
        for number, bits in enumerate(population.get("X"), start=1):
            if found and stop():
                return list(found.values())
            evaluation = evaluator.evaluate(genome.decode(bits))
            objectives.append((-evaluation.reward, float(evaluation.macs)))
            violations.append((settings.min_difference - genome.difference(bits),))
            if violations[-1][0] <= 0:
                found.setdefault(bits.tobytes(), evaluation)
            done = generation * settings.population + number
            progress(done, total, f"generation {generation + 1} of {settings.generations}")
        _tell(algorithm, population, np.array(objectives), np.array(violations, dtype=float))
    return list(found.values())


def _tell(algorithm: NSGA2, population: Any, objectives: NDArray[np.float64], violations: NDArray[np.float64]) -> None:
    known = StaticProblem(algorithm.problem, F=objectives, G=violations)
    algorithm.evaluator.eval(known, population)
    algorithm.tell(infills=population)


def _reference(plan: Plan, evaluator: Evaluates, held_out: Evaluates) -> Point:
    """The uncached plan, measured first: what is wrong with the held-out workload then shows before the search."""
    seen, unseen = evaluator.evaluate(plan), held_out.evaluate(plan)
    confidence_interval(unseen.scores, unseen.images_per_prompt)
    return Point(_measured(plan, unseen, held_out.conditions), seen, unseen)


def _point(searched: Evaluation, held_out: Evaluation, settings: SearchSettings, conditions: str) -> Point:
    assert searched.plan is not None
    plan = replace(searched.plan, method="search", settings=asdict(settings))
    return Point(_measured(plan, held_out, conditions), searched, held_out)


def _measured(plan: Plan, evaluation: Evaluation, conditions: str) -> Plan:
    figures = (
        Measurement("reward", evaluation.reward, "", conditions),
        Measurement("seconds per picture", evaluation.seconds_per_image, "s", conditions),
        Measurement("multiply-accumulates", float(evaluation.macs), "MACs", conditions),
        Measurement("bytes held between steps", float(evaluation.peak_bytes), "bytes", conditions),
    )
    return replace(plan, measured=figures)
