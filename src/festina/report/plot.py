"""The front as a static picture: quality against seconds and against MACs, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from festina.report.canvas import DOTS_PER_INCH, INK, MUTED, figure_of, frame, headings, save
from festina.report.look import LOOKS
from festina.report.points import FrontPage, Kind, Point

INCHES = (12.0, 5.4)
SIZE = (round(INCHES[0] * DOTS_PER_INCH), round(INCHES[1] * DOTS_PER_INCH))
"""Width and height of the picture in pixels."""


def write_plot(page: FrontPage, path: str | os.PathLike[str]) -> None:
    """Write the plot of a page as a PNG of `SIZE` pixels, whole or not at all.

    Raises:
        FestinaError: matplotlib is not installed, or the file cannot be written.
    """
    figure = figure_of(INCHES)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.83, bottom=0.12, wspace=0.06)
    scale, unit = _prefix(page.uncached.macs)
    _panel(left, page, lambda point: point.seconds, "Seconds per picture")
    _panel(right, page, lambda point: point.macs / scale, f"{unit} per picture")
    left.set_ylabel("Reward on held-out prompts", color=INK)
    right.tick_params(labelleft=False)
    headings(figure, page.title, "Bars are 95 % confidence intervals.", 0.888)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="center right",
        bbox_to_anchor=(0.99, 0.895),
        ncols=len(labels),
        frameon=False,
        fontsize=9,
    )
    save(figure, Path(path))


def _panel(axes: Any, page: FrontPage, cost: Callable[[Point], float | None], label: str) -> None:
    frame(axes, label)
    drawn = [_kind(axes, page, kind, cost) for kind in reversed(list(LOOKS))]
    if any(drawn):
        axes.set_xlim(left=0)
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)


def _kind(axes: Any, page: FrontPage, kind: Kind, cost: Callable[[Point], float | None]) -> bool:
    """Draw the points of one kind; whether there were any of known cost."""
    known = [(value, point) for point in page.of_kind(kind) if (value := cost(point)) is not None]
    if not known:
        return False
    known.sort(key=lambda pair: pair[0])
    look = LOOKS[kind]
    rewards = [point.reward for _, point in known]
    errors = (
        [point.reward - point.reward_low for _, point in known],
        [point.reward_high - point.reward for _, point in known],
    )
    axes.errorbar(
        [value for value, _ in known],
        rewards,
        yerr=errors,
        label=look.label,
        color=look.light,
        linestyle={"": "none", "solid": "-", "dot": ":"}[look.line],
        linewidth=1.8,
        elinewidth=0.9,
        ecolor=(look.light, 0.45),
        marker=look.marker,
        markersize=14 if kind == "uncached" else 0.62 * look.size,
        markerfacecolor="white" if look.symbol.endswith("open") else look.light,
        # Above the points of kinds that matter less.
        zorder=2 + (len(LOOKS) - list(LOOKS).index(kind)) / 10,
    )
    return True


def _prefix(macs: int) -> tuple[int, str]:
    for prefix, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if macs >= size:
            return size, f"{prefix}MACs"
    return 1, "MACs"
