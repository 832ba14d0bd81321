"""A search without a diffusion model: a toy whose front is known, also run as a program to be killed and resumed.

Every gene costs 1 and no two are worth the same, so the best plan of cost k computes the k most valuable genes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from festina.plan import Plan
from festina.search.archive import Archive, Made, WorkloadKey
from festina.search.engine import search
from festina.search.evaluation import Evaluation
from festina.search.front import Front, Point
from festina.search.genome import Genome
from festina.search.settings import SearchSettings
from festina.sites import Site

SETTINGS = SearchSettings(population=16, generations=12, seed=3)


def toy_genome(steps: int = 4, blocks: int = 2) -> Genome:
    parts = {"attn1": "self-attention", "ff": "feed-forward"}
    sites = tuple(
        Site(f"blocks.{block}.{part}", "output", (f"blocks.{block}.{part}",), "blocks", f"blocks.{block}", part, role)
        for block in range(blocks)
        for part, role in parts.items()
    )
    return Genome("Toy", sites, steps)


def worth(genome: Genome) -> np.ndarray:
    """The worth of each gene, in a shuffled order."""
    return 1.0 + np.random.default_rng(5).permutation(genome.length)


def known_front(genome: Genome) -> list[str]:
    """Keys of the best plan of every cost but the uncached one, by rising cost."""
    order = np.argsort(-worth(genome))
    plans = []
    for cost in range(genome.length):
        bits = np.zeros(genome.length, dtype=bool)
        bits[order[:cost]] = True
        plans.append(genome.decode(bits).key())
    return plans


class ToyEvaluator:
    """Scores a plan on three pictures by the worth of what it computes; notes every evaluation it makes in a log."""

    def __init__(
        self, genome: Genome, archive: Archive, name: str, log: Path | None = None, pause: float = 0.0
    ) -> None:
        self.genome, self.archive, self.log, self.pause = genome, archive, log, pause
        self.workload = WorkloadKey(name, "{}")
        self.made: list[str] = []
        self.conditions = f"toy, {name}"

    @property
    def price(self) -> Callable[[Plan], int]:
        return lambda plan: int(plan.mask()[1:].sum())

    def evaluate(self, plan: Plan) -> Evaluation:
        return self.archive.get_or_make(plan.canonical(), self.workload, lambda: self._make(plan.canonical()))

    def _make(self, plan: Plan) -> Made:
        self.made.append(plan.key())
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(f"{plan.key()} {self.workload.key}\n")
        time.sleep(self.pause)
        value = float(worth(self.genome) @ self.genome.encode(plan)) / 128
        scores = (value, value + 0.1, value - 0.1)
        cost = self.price(plan)
        return Made(Evaluation(plan, self.genome.steps, scores, 1, cost, 3.0 + cost, 10 * cost), "{}")


def told(front: Front) -> list[list[object]]:
    """All that a front says, as plain values."""

    def point(found: Point) -> list[object]:
        return [found.plan.to_json(), list(found.searched.scores), list(found.held_out.scores), found.macs]

    return [point(found) for found in (*front.points, front.uncached)]


def main(archive: Path, log: Path) -> None:
    genome = toy_genome(steps=5, blocks=3)
    with Archive(archive) as opened:
        seen = ToyEvaluator(genome, opened, "search", log, pause=0.002)
        unseen = ToyEvaluator(genome, opened, "held out", log, pause=0.002)
        front = search(seen, unseen, genome, SETTINGS)
    print(json.dumps(told(front)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
