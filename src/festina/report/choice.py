"""Choosing a plan from a front that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from festina.errors import FestinaError
from festina.report.points import FrontPage, Point


def best_point(
    page: FrontPage,
    speedup: float | None = None,
    fewer_macs: float | None = None,
    min_reward: float | None = None,
    max_bytes: int | None = None,
) -> Point:
    """The point of the front with the best held-out reward within all limits given; of equal ones the cheapest.

    Args:
        page: a measured front.
        speedup: at least this many times faster than uncached, in measured seconds.
        fewer_macs: at least this many times fewer MACs than uncached.
        min_reward: at least this mean held-out reward.
        max_bytes: at most this many bytes held between steps.

    Raises:
        FestinaError: no plan is within the limits; the message says what there is.
    """
    uncached = next(point for point in page.points if point.kind == "uncached")
    front = [point for point in page.points if point.kind == "front"]
    if not front:
        raise FestinaError("this page has no plans of a front; run `festina search` first.")

    def within(point: Point) -> bool:
        return (
            (speedup is None or (point.seconds_ratio or 0) >= speedup)
            and (fewer_macs is None or uncached.macs / point.macs >= fewer_macs)
            and (min_reward is None or point.reward >= min_reward)
            and (max_bytes is None or point.held_bytes <= max_bytes)
        )

    found = [point for point in front if within(point)]
    if not found:
        raise FestinaError(
            f"none of the {len(front)} plans of the front is within the limits; {_available(front, uncached)}."
        )
    return max(found, key=lambda point: (point.reward, -point.macs))


def _available(front: Sequence[Point], uncached: Point) -> str:
    fastest = max(point.seconds_ratio or 0 for point in front)
    fewest = max(uncached.macs / point.macs for point in front)
    best = max(point.reward for point in front)
    return f"they reach {fastest:.2f} times faster, {fewest:.2f} times fewer MACs, reward {best:.3f}"
