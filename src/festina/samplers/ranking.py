"""A small predictor of which sampler is better, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from festina.samplers.coefficients import KINDS
from festina.samplers.table import SolverTable

__all__ = ["RankingPredictor", "rank_correlation"]

Vector = NDArray[np.float64]

_RIDGE = 1.0
_HELD_OUT = 4
"""Every so many-th table is held out."""

_LEAST_HELD_OUT = 10
"""With fewer tables held out, a rank correlation may be high by chance."""


def rank_correlation(first: Sequence[float] | Vector, second: Sequence[float] | Vector) -> float:
    """Spearman's correlation of two lists of one length, -1 to 1: that of their ranks. Equal values share a mean rank.

    0 where all values of a list are equal, or where there are fewer than two.
    """
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if any(len(each) < 2 or each.std() == 0 for each in ranks):
        return 0.0
    return float(np.asarray(np.corrcoef(np.stack(ranks)))[0, 1])


class RankingPredictor:
    """Ranks by ridge regression from what a table's steps are to the rank of its fitness.

    Features: of each level of the grid, whether a step begins there, its order, and whether it corrects; and over all
    steps, the sum of the orders, the number of correctors, and the number of steps of each solver.

    Args:
        levels: of the grid.
        tables: known ones.
        fitness: of each.

    Attributes:
        trust: rank correlation on every fourth table, predicted by what was fitted without these; 0 for fewer than 40.
    """

    def __init__(self, levels: Sequence[float], tables: Sequence[SolverTable], fitness: Sequence[float]) -> None:
        self._places = {level: place for place, level in enumerate(levels)}
        features = np.array([self._features(table) for table in tables])
        goals = _ranks(np.asarray(fitness, dtype=np.float64)) / max(1, len(fitness) - 1)
        held_out = np.arange(len(tables)) % _HELD_OUT == _HELD_OUT - 1
        self._fit(features[~held_out], goals[~held_out])
        known = held_out.sum() >= _LEAST_HELD_OUT
        self.trust = rank_correlation(features[held_out] @ self._weights, goals[held_out]) if known else 0.0
        self._fit(features, goals)

    def scores(self, tables: Sequence[SolverTable]) -> Vector:
        """A number for each table, higher for one that ranks better."""
        return np.array([self._features(table) @ self._weights for table in tables])

    def _fit(self, features: Vector, goals: Vector) -> None:
        square = features.T @ features + _RIDGE * np.eye(features.shape[1])
        self._weights = np.linalg.solve(square, features.T @ (goals - 0.5))

    def _features(self, table: SolverTable) -> Vector:
        solvers = list(KINDS)
        each, used = np.zeros((len(self._places), 3)), np.zeros(len(solvers))
        for step in table.steps:
            each[self._places[step.noise]] = 1.0, step.order - 2, step.corrector
            used[solvers.index(step.solver)] += 1
        return np.concatenate([each.ravel(), each.sum(0), used])


def _ranks(values: Vector) -> Vector:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    return np.asarray((starts + (counts - 1) / 2)[inverse])
