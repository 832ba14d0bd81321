"""How many candidates a search on `scenes` evaluates per minute.

Prints a Markdown table with the seconds of one evaluation (pictures made, judged and archived), the part of them that
is the pipeline's, and candidates per minute: for the untouched pipeline, and on average for random plans that compute
half of the sites. Every round evaluates the untouched pipeline and a plan not seen before, one after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from models import random_plan
from timing import (
    Figures,
    at_least,
    command,
    describe,
    device_named,
    interleaved,
    markdown,
    ratio,
    run_program,
    save_record,
    seconds_of,
    tell,
    times,
)

from festina.cli.judging import load_reward
from festina.cli.prompts import SEARCH_SEED, scene_captions
from festina.search import Archive, Evaluation, Evaluator, Workload
from festina.search.pricing import pricing
from festina.search.workload import pipeline_fingerprint
from festina.sites import find_denoiser
from festina.zoo import call_arguments, load

DENSITY, WARM_UP_STEPS = 0.5, 2
UNCACHED, CACHED = "untouched", "random plans, half computed"


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    parser = command(__doc__, rounds=8)
    parser.add_argument("--images", type=at_least(1), default=64, help="pictures per candidate (64)")
    parser.add_argument("--steps", type=at_least(WARM_UP_STEPS + 1), default=20, help="sampling steps (20)")
    parser.add_argument("--batch", type=at_least(1), default=16, help="pictures per call (16)")
    parser.add_argument("--guidance", type=float, default=4.5, help="strength of classifier-free guidance (4.5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    asked = parser.parse_args(arguments)
    device = device_named(asked.device)
    pipe = load("scenes", device)
    prompts = scene_captions(asked.images, SEARCH_SEED)
    seeds = tuple(range(len(prompts)))
    workload = Workload(prompts, seeds, asked.steps, asked.guidance, asked.batch, call_arguments(pipe))
    figures = measure(pipe, workload, load_reward("judge", asked.device), asked.rounds)
    print(table(figures))
    print(f"{asked.rounds} rounds, {asked.images} pictures of {asked.steps} steps a candidate; {describe(device)}")
    save_record(asked, "search rate", figures, device)
    return figures


def measure(pipe: Any, workload: Workload, reward: Any, rounds: int) -> Figures:
    """Seconds of evaluations with and without a plan."""
    evaluated: dict[str, list[Evaluation]] = {UNCACHED: [], CACHED: []}
    with tempfile.TemporaryDirectory() as folder:
        rounds_of = _Rounds(pipe, workload, reward, Path(folder), evaluated)
        seconds = interleaved({UNCACHED: rounds_of.uncached, CACHED: rounds_of.cached}, rounds)
    # The first evaluation of each is the round that warms up.
    timed = {name: evaluations[1:] for name, evaluations in evaluated.items()}
    tell(f"{sum(len(evaluations) for evaluations in timed.values())} candidates evaluated")
    return {
        "images": len(workload.pictures()),
        "candidates": {name: len(evaluations) for name, evaluations in timed.items()},
        "different_plans": len({found.plan.key() for found in timed[CACHED] if found.plan is not None}),
        "macs": {name: [found.macs for found in evaluations] for name, evaluations in timed.items()},
        "seconds": seconds,
        "pipeline_seconds": {name: [found.seconds for found in evaluations] for name, evaluations in timed.items()},
        "candidates_per_minute": {name: 60 / median(spent) for name, spent in seconds.items()},
        "ratio": ratio(seconds[UNCACHED], seconds[CACHED]),
    }


class _Rounds:
    """Evaluations, each in an archive that knows nothing of it yet."""

    def __init__(
        self, pipe: Any, workload: Workload, reward: Any, folder: Path, evaluated: dict[str, list[Evaluation]]
    ) -> None:
        self.pipe, self.workload, self.reward, self.folder = pipe, workload, reward, folder
        self.evaluated = evaluated
        self.price = pricing(pipe, workload)
        self.fingerprint = pipeline_fingerprint(pipe)

    def uncached(self) -> float:
        """Evaluate the untouched pipeline."""
        with self._archive(UNCACHED) as archive:
            evaluator = self._warm(archive)
            return seconds_of(lambda: self.evaluated[UNCACHED].append(evaluator.untouched(self.workload.steps)))

    def cached(self) -> float:
        """Evaluate a plan of its own."""
        seed = len(self.evaluated[CACHED])
        plan = random_plan(find_denoiser(self.pipe), self.workload.steps, DENSITY, seed)
        with self._archive(CACHED) as archive:
            evaluator = self._warm(archive)
            return seconds_of(lambda: self.evaluated[CACHED].append(evaluator.evaluate(plan)))

    def _archive(self, name: str) -> Archive:
        return Archive(self.folder / f"{name}-{len(self.evaluated[name])}.sqlite")

    def _warm(self, archive: Archive) -> Evaluator:
        """An evaluator that has made pictures before, as its first ones take longer."""
        evaluator = Evaluator(self.pipe, self.workload, self.reward, archive, self.price, self.fingerprint)
        evaluator.untouched(WARM_UP_STEPS)
        return evaluator


def table(figures: Figures) -> str:
    """The figures in Markdown."""
    headings = ("Candidate", "Seconds", "of which the pipeline", "Candidates per minute", "Ratio")
    rows = []
    for name, spent in figures["seconds"].items():
        pipeline = median(figures["pipeline_seconds"][name])
        rate = figures["candidates_per_minute"][name]
        gain = times(1.0 if name == UNCACHED else figures["ratio"])
        rows.append((name, f"{median(spent):.2f} s", f"{pipeline:.2f} s", f"{rate:.1f}", gain))
    return markdown(headings, rows)


if __name__ == "__main__":
    run_program(main)
