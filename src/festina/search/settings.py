"""The settings of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass

from festina.errors import FestinaError

SEED_FAMILIES = ("heuristics", "random")
"""What a first population can be made of: ECAD's heuristic schedules, or fair coins."""


@dataclass(frozen=True)
class Mutation:
    """How children mutate: with probability `individual` a child mutates at all; each bit of it then flips on its own.

    Attributes:
        individual: share of children that mutate, in [0, 1].
        flips: expected number of flipped bits of a child that mutates, above 0. The rate per bit is `flips` / n for a
            genome of n bits, at most 1/2; `flips` = 1 is the 1/n that pymoo takes when no rate is given.

    Raises:
        FestinaError: on construction, if a rate is out of its range.
    """

    individual: float
    flips: float

    def __post_init__(self) -> None:
        if not 0 <= self.individual <= 1:
            raise FestinaError(f"a mutation probability of {self.individual}; wanted a number in [0, 1].")
        if not (math.isfinite(self.flips) and self.flips > 0):
            raise FestinaError(f"{self.flips} expected flips per mutated child; wanted a number above 0.")

    def per_bit(self, genes: int) -> float:
        """The probability with which each bit of a mutating child of `genes` bits flips."""
        return min(0.5, self.flips / genes)


ECAD_MUTATION = Mutation(individual=0.05, flips=1.0)
"""What ECAD's released code does (arXiv 2506.15682): bit-flip mutation built with a probability of 0.05 and no rate per
bit. In pymoo that is a probability per *child*, and the rate per bit is 1/n: 0.05 expected flips a child. Only
0.05 (1 - 1/e) = 3.2 % of the children differ from pure crossover, so the search recombines its seeds and little more.
"""

WORKING_MUTATION = Mutation(individual=0.9, flips=2.0)
"""Mutation that takes part in the search: 1.8 expected flips a child, and 78 % of the children carry at least one.

Crossover alone never reaches a bit that no seed has; a flip or two per child does, and is a step that selection can
follow. On a synthetic model of stale values (456 genes, noisy scores) one or two flips did as well as ECAD's rate from
heuristic seeds and better from fair coins, while three or more made the fronts from heuristic seeds worse:
unstructured flips undo what crossover has put together.
"""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the NSGA-II search; the defaults are ECAD's for PixArt (arXiv 2506.15682), but for the mutation.

    Attributes:
        population: candidates per generation, at least 2.
        generations: generations, the first population included; at least 1.
        crossover_points: points at which two parents are cut, at least 1.
        crossover_probability: share of the matings that cross over, in [0, 1].
        mutation: see `Mutation`; `ECAD_MUTATION` is the literal behaviour of the released code.
        seed: seed of every random choice of the search, at least 0.
        min_difference: fewest bits in which a feasible candidate differs from computing everything, counted on its
            canonical form; at least 0. With 1, ECAD's value, only the uncached plan is infeasible.
        seeds: what the first population is made of, one of `SEED_FAMILIES`.

    Raises:
        FestinaError: on construction, if a value is out of its range.
    """

    population: int = 72
    generations: int = 550
    crossover_points: int = 4
    crossover_probability: float = 0.9
    mutation: Mutation = WORKING_MUTATION
    seed: int = 0
    min_difference: int = 1
    seeds: str = "heuristics"

    def __post_init__(self) -> None:
        lowest = {"population": 2, "generations": 1, "crossover_points": 1, "seed": 0, "min_difference": 0}
        for name, bound in lowest.items():
            if getattr(self, name) < bound:
                raise FestinaError(f"search setting {name} = {getattr(self, name)}; wanted at least {bound}.")
        if not 0 <= self.crossover_probability <= 1:
            raise FestinaError(f"a crossover probability of {self.crossover_probability}; wanted a number in [0, 1].")
        if self.seeds not in SEED_FAMILIES:
            raise FestinaError(f"unknown family of seeds {self.seeds!r}; wanted one of {', '.join(SEED_FAMILIES)}.")
