"""The page's one sentence: what the best plan buys, beside what a user would do instead (fewer steps)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from festina.report import figures
from festina.report.points import FrontPage, Point

FEWER_MACS = 2
"""The headline speaks of plans with at least this many times fewer MACs than uncached."""


@dataclass(frozen=True)
class Headline:
    """The sentence in parts.

    Attributes:
        parts: (text, whether it is a figure to stress), in order.
        point: the front point it speaks of; None if there is none.
    """

    parts: tuple[tuple[str, bool], ...]
    point: Point | None

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True)
class Untouched:
    """What the untouched sampler reaches at some cost: its reward and the measured numbers of steps around it."""

    reward: float
    steps: tuple[int, ...]


def untouched_at(page: FrontPage, cost: Callable[[Point], float | None], wanted: float) -> Untouched | None:
    """The untouched sampler at a cost, linear between the two measured numbers of steps around it.

    Args:
        page: its fewer-steps points and its uncached point are the measured ones.
        cost: the cost of a point, e.g. its seconds.
        wanted: the cost asked for. Above the most costly point, that point's reward is the answer.

    Returns:
        None if the page has no fewer-steps point of known cost or every such point costs more than `wanted`.
    """
    measured = [(cost(point), point) for point in (*page.of_kind("fewer-steps"), page.uncached)]
    known = sorted(((value, point) for value, point in measured if value is not None), key=lambda pair: pair[0])
    if not any(point.kind == "fewer-steps" for _, point in known) or wanted < known[0][0]:
        return None
    reward = float(np.interp(wanted, [value for value, _ in known], [point.reward for _, point in known]))
    below = [point.steps for value, point in known if value <= wanted][-1]
    above = [point.steps for value, point in known if value >= wanted][:1]
    return Untouched(reward, tuple(sorted({below, *above})))


def headline(page: FrontPage) -> Headline:
    """The sentence for a page: the front point of highest reward with at least `FEWER_MACS` times fewer MACs."""
    enough = [point for point in page.of_kind("front") if FEWER_MACS * point.macs <= page.uncached.macs]
    if not enough:
        least = f"{FEWER_MACS}{figures.TIMES}"
        text = f"No plan on the front needs at least {least} fewer MACs than the uncached {page.model}."
        return Headline(((text, False),), None)
    best = max(enough, key=lambda point: (point.reward, -point.macs))
    fewer = figures.ratio_text(page.uncached.macs / best.macs)
    parts = [
        (f"The plan {best.name} needs ", False),
        (f"{fewer} fewer MACs", True),
        (" than uncached and ", False),
        *_speed(page, best),
        (" at a reward of ", False),
        (figures.reward_text(best.reward), True),
        (f" (95 % interval {figures.interval_text(best)}) against ", False),
        (figures.reward_text(page.uncached.reward), True),
        (f" ({figures.interval_text(page.uncached)}) uncached; ", False),
        *_instead(page, best),
    ]
    return Headline(tuple(parts), best)


def _speed(page: FrontPage, best: Point) -> list[tuple[str, bool]]:
    if best.seconds_ratio is None:
        return [("was not timed,", False)]
    parts = [("runs ", False), (f"{figures.ratio_text(best.seconds_ratio)} as fast", True)]
    if best.seconds is not None and page.uncached.seconds is not None:
        spent = figures.seconds_text(best.seconds)
        parts.append((f" ({spent} a picture instead of {figures.seconds_text(page.uncached.seconds)})", False))
    return parts


def _instead(page: FrontPage, best: Point) -> list[tuple[str, bool]]:
    if not page.of_kind("fewer-steps"):
        return [("the untouched sampler with fewer steps was not measured.", False)]
    if best.seconds is not None and page.uncached.seconds is not None:
        same, rival = "seconds", untouched_at(page, lambda point: point.seconds, best.seconds)
    else:
        same, rival = "MACs", untouched_at(page, lambda point: point.macs, best.macs)
    if rival is None:
        return [(f"no measured run of the untouched sampler with fewer steps needs so few {same}.", False)]
    where = "below" if rival.reward < best.reward_low else "above" if rival.reward > best.reward_high else "within"
    steps = " to ".join(str(number) for number in rival.steps)
    return [
        (f"the untouched sampler with fewer steps ({steps}) reaches ", False),
        (figures.reward_text(rival.reward), True),
        (f" in the same {same}, {where} the plan's interval.", False),
    ]
