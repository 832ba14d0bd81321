"""Forecasts: what a value will be, as a weighted sum of its last computed values.

Every basis here is linear in the stored values, so that a forecast is a few weights, computed in double precision on
the host from the steps in which the values were computed, and one pass over the stored tensors. No torch, no numpy.

Sources: TaylorSeer (arXiv 2503.06923; its released code for gaps that differ), Newton's interpolation on the same
values, HiCache (arXiv 2508.16984).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import factorial

from festina.errors import FestinaError

NEWTON, TAYLOR, HERMITE = "newton", "taylor", "hermite"
BASES = (NEWTON, TAYLOR, HERMITE)
"""`newton`: the polynomial through the values, exact for polynomials of the forecast's order. `taylor`: TaylorSeer as
published, a Taylor series whose derivatives are backward differences, from order 2 on not exact. `hermite`: HiCache,
the same differences on scaled Hermite polynomials, which damp what lies far ahead."""

HERMITE_SCALE = 0.5
"""HiCache's contraction of the argument and of each order (its sigma)."""


@lru_cache(maxsize=4096)
def weights(basis: str, computed: tuple[int, ...], step: int) -> tuple[float, ...]:
    """Weights of values for a forecast; the order is one less than there are values.

    Args:
        basis: one of `BASES`.
        computed: steps in which the values were computed, the latest first.
        step: the step to forecast, usually behind all of them.

    Returns:
        one weight per value; they add up to 1. A single value has the weight 1: it is held.

    Raises:
        FestinaError: there is no such basis.
    """
    if basis not in BASES:
        raise FestinaError(f"unknown basis of forecasts {basis!r}; wanted one of {', '.join(BASES)}.")
    if basis == NEWTON:
        return tuple(_through_all(place, computed, step) for place in range(len(computed)))
    ahead = step - computed[0]
    found = [0.0] * len(computed)
    for order, difference in enumerate(_differences(computed)):
        term = ahead**order if basis == TAYLOR else _scaled_hermite(order, ahead)
        for place, share in enumerate(difference):
            found[place] += share * term / factorial(order)
    return tuple(found)


def _through_all(place: int, computed: Sequence[int], step: int) -> float:
    """Lagrange's form of the interpolating polynomial: it is the same as Newton's, whatever the gaps."""
    weight = 1.0
    for other, node in enumerate(computed):
        if other != place:
            weight *= (step - node) / (computed[place] - node)
    return weight


def _differences(computed: Sequence[int]) -> list[list[float]]:
    """TaylorSeer's backward differences of all orders as weights of the values, the latest first.

    Each time a value was computed, all orders were divided by the gap before it, as in the released code.
    """
    count = len(computed)
    level = [[float(place == value) for value in range(count)] for place in range(count)]
    found = [level[0]]
    for _ in range(1, count):
        level = [
            [(new - old) / (computed[place] - computed[place + 1]) for new, old in zip(*pair, strict=True)]
            for place, pair in enumerate(pairwise(level))
        ]
        found.append(level[0])
    return found


def _scaled_hermite(order: int, ahead: float) -> float:
    """Physicists' Hermite polynomial, contracted twice: sigma^n H_n(sigma x) (arXiv 2508.16984, dual scaling)."""
    before, now = 0.0, 1.0
    argument = HERMITE_SCALE * ahead
    for index in range(order):
        before, now = now, 2 * argument * now - 2 * index * before
    return float(HERMITE_SCALE**order * now)
