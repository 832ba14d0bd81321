"""Pyramid Attention Broadcast: reuse attentions of different kinds for different times (arXiv 2408.12588)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from festina.errors import FestinaError
from festina.methods.columns import letters, plan_of_columns, want_whole
from festina.methods.fora import every
from festina.methods.training_times import TRAINING_STEPS, training_times
from festina.plan import COMPUTE, REUSE, Plan
from festina.sites import Site, component_sites, find_denoiser
from festina.sites.discovery import CROSS, FEED_FORWARD, SELF
from festina.strict import is_number

SPATIAL, TEMPORAL, CROSSWISE = "spatial", "temporal", "cross"
KINDS = (SPATIAL, TEMPORAL, CROSSWISE)

_ALONG_TIME = ("temporal_transformer_blocks", "temp_attentions", "motion_modules")
"""Names that diffusers gives to lists whose blocks look along time."""


@dataclass(frozen=True)
class Published:
    """The settings published for a model: steps per computation of each kind, and the window of training times."""

    ranges: Mapping[str, int]
    window: tuple[float, float]


PUBLISHED = {
    "LatteTransformer3DModel": Published({SPATIAL: 2, TEMPORAL: 3, CROSSWISE: 6}, (100, 800)),
    "CogVideoXTransformer3DModel": Published({SPATIAL: 2}, (100, 850)),
}
OTHERWISE = Published({SPATIAL: 2, CROSSWISE: 6}, (100, 800))


@dataclass(frozen=True)
class FeedForwards:
    """Which feed-forwards are held, and when.

    Attributes:
        blocks: indices of their blocks within each list.
        times: training times, 0 to 1000, at which they compute; of each the nearest step counts.
        held: steps that they are held for after each, at least 1.
    """

    blocks: tuple[int, ...]
    times: tuple[float, ...]
    held: int


LATTE_FEED_FORWARDS = FeedForwards((0, 1, 2, 3, 4), (720, 640, 560, 480, 400), 2)
"""What is published for Latte at 50 steps."""


def pab(
    pipe: Any,
    steps: int,
    ranges: Mapping[str, int] | None = None,
    window: tuple[float, float] | None = None,
    feed_forwards: FeedForwards | None = None,
    times: Sequence[float] | None = None,
) -> Plan:
    """The static schedule of Pyramid Attention Broadcast (arXiv 2408.12588; rule and settings as in its released code).

    Within a window of training time an attention computes in step s if s is a multiple of the range of its kind;
    outside of it, always. The published code counts calls and looks at the timestep; with one call a step and branch
    that is a table.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, at least 1.
        ranges: steps from one computation to the next, at least 1, by kind: "spatial" (self-attention, joint attention
            with the text included), "temporal" (self-attention along time) and "cross" (cross-attention). Kinds not
            named always compute. What is published for the model if not given, else spatial 2 and cross 6.
        window: the training times between which attentions are reused, 0 to 1000, the ends not included. What is
            published for the model if not given, else 100 to 800.
        feed_forwards: feed-forwards to hold as well, as `LATTE_FEED_FORWARDS`.
        times: training time of each step, 1000 = pure noise, 0 = clean. The scheduler's if not given; of a bare
            denoiser, evenly spaced. Needed where a pipeline hands its scheduler timesteps or sigmas of its own.

    Raises:
        FestinaError: a range names a kind that there is not, a value is out of its range, the model has no attention
            of its own kind to reuse, or the scheduler does not tell its times (`festina.methods.training_times`).
    """
    denoiser = find_denoiser(pipe)
    sites = component_sites(denoiser)
    published = PUBLISHED.get(type(denoiser).__name__, OTHERWISE)
    present = {kind for site in sites if (kind := kind_of(site))}
    if ranges is None:
        ranges = {kind: count for kind, count in published.ranges.items() if kind in present}
    if not ranges or not set(ranges) <= present:
        raise FestinaError(
            f"ranges for {', '.join(map(str, ranges)) or 'no kind of attention'}; {type(denoiser).__name__} has "
            f"{', '.join(kind for kind in KINDS if kind in present) or 'none'}."
        )
    low, high = published.window if window is None else window
    if not (is_number(low) and is_number(high) and 0 <= low < high <= TRAINING_STEPS):
        raise FestinaError(f"the window is {low!r:.20} to {high!r:.20}; wanted 0 <= low < high <= {TRAINING_STEPS}.")
    when = np.array(training_times(pipe, steps) if times is None else _checked(times, steps))
    outside = ~((low < when) & (when < high))
    by_kind = {kind: letters(outside | every(steps, count)) for kind, count in ranges.items()}
    columns = {site.name: by_kind[kind] for site in sites if (kind := kind_of(site)) in by_kind}
    if feed_forwards is not None:
        columns |= _held(sites, feed_forwards, when)
    settings = {
        "ranges": dict(ranges),
        "window": [low, high],
        "feed_forwards": None if feed_forwards is None else asdict(feed_forwards),
        "times": None if times is None else list(times),
    }
    return plan_of_columns(pipe, columns, "pab", settings)


def kind_of(site: Site) -> str:
    """The kind of an attention, one of `KINDS`; "" for anything else."""
    if site.role == CROSS:
        return CROSSWISE
    if site.role != SELF:
        return ""
    return TEMPORAL if any(name in site.stack.split(".") for name in _ALONG_TIME) else SPATIAL


def _held(sites: Sequence[Site], told: FeedForwards, when: np.ndarray[Any, Any]) -> dict[str, str]:
    """Actions of the feed-forwards in question: they compute at the times told, and are held for some steps after."""
    want_whole("the number of steps that feed-forwards are held for", told.held, 1)
    inside = {site.name: int(site.block.rpartition(".")[2]) for site in sites if site.role == FEED_FORWARD}
    if not told.blocks or not told.times or not set(told.blocks) <= set(inside.values()):
        raise FestinaError(
            f"feed-forwards of the blocks {list(told.blocks)!s:.60} at {len(told.times)} times; wanted at least one of "
            f"each, and blocks from 0 to {max(inside.values(), default=-1)}."
        )
    actions = [COMPUTE] * len(when)
    starts = sorted(int(np.abs(when - time).argmin()) for time in told.times)
    for start in starts:
        for step in range(start + 1, min(start + 1 + told.held, len(when))):
            actions[step] = REUSE
    for start in starts:
        actions[start] = COMPUTE
    return {name: "".join(actions) for name, block in inside.items() if block in told.blocks}


def _checked(times: Sequence[float], steps: int) -> list[float]:
    given = list(times)
    if len(given) != steps or not all(is_number(time) and 0 <= time <= TRAINING_STEPS for time in given):
        raise FestinaError(f"{len(given)} times for {steps} steps; wanted one each, from {TRAINING_STEPS} to 0.")
    return given
