"""The front: the plans of a search that no other plan beats at both cost and quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from festina.errors import FestinaError
from festina.plan import Plan
from festina.search.evaluation import Evaluation


def non_dominated(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Those evaluations that no other beats: none costs no more MACs and rewards no less, one of the two strictly.

    Sorted by MACs; evaluations that tie in both are all kept, in the order given.
    """
    kept: list[Evaluation] = []
    best = -math.inf
    for evaluation in sorted(evaluations, key=lambda found: (found.macs, -found.reward)):
        tie = bool(kept) and (kept[-1].macs, kept[-1].reward) == (evaluation.macs, evaluation.reward)
        if evaluation.reward > best or tie:
            kept.append(evaluation)
            best = evaluation.reward
    return kept


def confidence_interval(scores: Sequence[float], images_per_prompt: int, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean score over prompts.

    Pictures of one prompt are not independent, so they are averaged first and the spread is taken over prompts:
    mean +- t(level, prompts - 1) s / sqrt(prompts).

    Args:
        scores: one per picture, the pictures of one prompt side by side.
        images_per_prompt: pictures per prompt.
        level: probability that the interval holds the mean, in (0, 1).

    Returns:
        Lower and upper end.

    Raises:
        FestinaError: there are fewer than two prompts, so the spread is unknown.
    """
    means = np.asarray(scores, dtype=float).reshape(-1, images_per_prompt).mean(axis=1)
    if len(means) < 2:
        raise FestinaError("one prompt says nothing about the spread over prompts; give at least two held-out prompts.")
    half = t.ppf((1 + level) / 2, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    return float(means.mean() - half), float(means.mean() + half)


@dataclass(frozen=True)
class Point:
    """A plan of the front.

    Attributes:
        plan: the plan, with its history and measured figures, ready to save.
        searched: what it scored in the search, where it was chosen among many: too good on average.
        held_out: what it scored on prompts the search never saw; the figures below are of these.
    """

    plan: Plan
    searched: Evaluation
    held_out: Evaluation

    @property
    def reward(self) -> float:
        """Mean held-out reward."""
        return self.held_out.reward

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean held-out reward."""
        return confidence_interval(self.held_out.scores, self.held_out.images_per_prompt)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.held_out.macs

    @property
    def seconds(self) -> float:
        """Wall seconds of the pipeline per picture."""
        return self.held_out.seconds_per_image

    @property
    def bytes_held(self) -> int:
        """Most bytes held between steps, for a batch of the held-out workload's size."""
        return self.held_out.peak_bytes


@dataclass(frozen=True)
class Front:
    """The result of a search.

    Attributes:
        points: plans that no other beat in the search, by rising MACs.
        uncached: the plan that computes everything, measured in the same way.
    """

    points: tuple[Point, ...]
    uncached: Point

    def speedup(self, point: Point) -> float:
        """How many times faster than the uncached plan, in wall seconds on the held-out workload."""
        return self.uncached.seconds / point.seconds

    def best(
        self,
        speedup: float | None = None,
        max_macs: int | None = None,
        max_seconds: float | None = None,
        max_bytes: int | None = None,
        min_quality: float | None = None,
    ) -> Point:
        """The point with the best held-out reward within all limits given; of equal ones the cheapest.

        Args:
            speedup: at least this many times faster than the uncached plan, in wall seconds.
            max_macs: at most this many multiply-accumulates.
            max_seconds: at most this many wall seconds per picture.
            max_bytes: at most this many bytes held between steps.
            min_quality: at least this mean held-out reward.

        Raises:
            FestinaError: no point is within the limits; the message says what each limit could be at best.
        """
        limits = [
            _Limit("speedup", speedup, self.speedup, most=True),
            _Limit("max_macs", max_macs, lambda point: point.macs, most=False),
            _Limit("max_seconds", max_seconds, lambda point: point.seconds, most=False),
            _Limit("max_bytes", max_bytes, lambda point: point.bytes_held, most=False),
            _Limit("min_quality", min_quality, lambda point: point.reward, most=True),
        ]
        given = [limit for limit in limits if limit.bound is not None]
        within = [point for point in self.points if all(limit.holds(point) for limit in given)]
        if within:
            return max(within, key=lambda point: (point.reward, -point.macs))
        if not self.points:
            raise FestinaError("the front is empty; search for more generations.")
        reachable = "; ".join(limit.reachable(self.points) for limit in given)
        alone = all(any(limit.holds(point) for point in self.points) for limit in given)
        hint = " Each holds for some plan, but all together for none." if alone else ""
        raise FestinaError(
            f"none of the {len(self.points)} plans of the front is within all limits: {reachable}.{hint}"
        )


@dataclass(frozen=True)
class _Limit:
    name: str
    bound: float | None
    figure: Callable[[Point], float]
    most: bool

    def holds(self, point: Point) -> bool:
        assert self.bound is not None
        return self.figure(point) >= self.bound if self.most else self.figure(point) <= self.bound

    def reachable(self, points: Sequence[Point]) -> str:
        figures = [self.figure(point) for point in points]
        closest = max(figures) if self.most else min(figures)
        return f"{self.name} = {self.bound:g} was asked, the closest available is {closest:g}"
