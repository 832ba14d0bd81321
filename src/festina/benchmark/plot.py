"""The benchmark as a static picture: reward against seconds, one mark per run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from festina.benchmark.looks import looks_of
from festina.benchmark.results import Benchmark, Result
from festina.errors import FestinaError
from festina.report.look import Look
from festina.report.whole import write_whole_bytes

INCHES = (11.0, 6.4)
DOTS_PER_INCH = 150

_INK, _MUTED, _RULE = "#16181d", "#5d626c", "#e4e5e8"


def write_plot(found: Benchmark, path: Path) -> None:
    """Write the plot of a benchmark as a PNG file, whole or not at all.

    Raises:
        FestinaError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FestinaError("the static plot needs matplotlib; run `pip install festina[plot]`.") from None
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, facecolor="white")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.765, top=0.86, bottom=0.105)
    _frame(axes)
    front = found.front
    axes.step(
        [each.seconds for each in front],
        [each.figures.reward for each in front],
        where="post",
        color=_INK,
        linewidth=1.4,
        label="front of all runs",
        zorder=2,
    )
    for group, look in looks_of(found.groups).items():
        _group(axes, found.of_group(group), look, group)
    axes.set_xlim(left=0)
    # Dollar signs would start mathematics.
    title = f"Ways to run {found.model} faster".replace("$", r"\$")
    figure.text(0.012, 0.945, title, fontsize=14, fontweight="bold", color=_INK)
    remark = "Up and to the left is better. Bars are 95 % confidence intervals. Larger marks are on the front."
    figure.text(0.012, 0.9, remark, fontsize=9, color=_MUTED)
    figure.legend(loc="upper left", bbox_to_anchor=(0.78, 0.87), frameon=False, fontsize=9, labelspacing=0.7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole_bytes(path, buffer.getvalue())


def _frame(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("Seconds per picture", color=_INK)
    axes.set_ylabel("Reward", color=_INK)


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
