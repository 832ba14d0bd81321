"""The benchmark as a static picture: reward against seconds, one mark per run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from festina.benchmark.looks import looks_of
from festina.benchmark.results import Benchmark, Result
from festina.report.canvas import INK, figure_of, frame, headings, save
from festina.report.look import Look

INCHES = (11.0, 6.4)
"""Width, and the height for as many groups as fit beside it; more of them make the plot higher."""

_TOP, _LINE = 0.87, 0.215
"""Where axes and legend begin, as a share of the height, and inches of a line of the legend."""


def write_plot(found: Benchmark, path: Path) -> None:
    """Write the plot of a benchmark as a PNG file, whole or not at all.

    Raises:
        FestinaError: matplotlib is not installed, or the file cannot be written.
    """
    save(plotted(found), path)


def plotted(found: Benchmark) -> Any:
    """The plot of a benchmark as a figure of matplotlib. Every group has a line of the legend.

    Raises:
        FestinaError: matplotlib is not installed.
    """
    lines = 2 + len(found.groups)
    figure = figure_of((INCHES[0], max(INCHES[1], lines * _LINE / _TOP)))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.765, top=_TOP - 0.01, bottom=0.105)
    frame(axes, "Seconds per picture")
    axes.set_ylabel("Reward", color=INK)
    front = found.front
    axes.step(
        [each.seconds for each in front],
        [each.figures.reward for each in front],
        where="post",
        color=INK,
        linewidth=1.4,
        label="front of all runs",
        zorder=2,
    )
    for group, look in looks_of(found.groups).items():
        _group(axes, found.of_group(group), look, group)
    axes.set_xlim(left=0)
    remark = "Up and to the left is better. Bars are 95 % confidence intervals. Larger marks are on the front."
    headings(figure, f"Ways to run {found.model} faster", remark, 0.9)
    figure.legend(loc="upper left", bbox_to_anchor=(0.78, _TOP), frameon=False, fontsize=9, labelspacing=0.7)
    return figure


def _group(axes: Any, runs: tuple[Result, ...], look: Look, label: str) -> None:
    """Draw the runs of a group, those of the front larger and with their bars."""
    alone = runs[0].variant.kind == "uncached"
    axes.plot(
        [each.seconds for each in runs],
        [each.figures.reward for each in runs],
        label=label,
        color=look.light,
        linestyle=":" if look.line else "none",
        linewidth=1.8,
        marker=look.marker,
        markersize=14 if alone else 5.5,
        alpha=1 if alone or look.line else 0.75,
        zorder=3,
    )
    best = [each for each in runs if each.on_front]
    axes.errorbar(
        [each.seconds for each in best],
        [each.figures.reward for each in best],
        yerr=(
            [each.figures.reward - each.reward_low for each in best],
            [each.reward_high - each.figures.reward for each in best],
        ),
        color=look.light,
        linestyle="none",
        elinewidth=0.8,
        ecolor=(look.light, 0.4),
        marker=look.marker,
        markersize=14 if alone else 8.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=4,
    )
