"""What the static plots share: colours of lines and letters, a figure to draw on, its headings, its file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from festina.errors import FestinaError
from festina.report.whole import write_whole_bytes

DOTS_PER_INCH = 150

INK, MUTED, RULE = "#16181d", "#5d626c", "#e4e5e8"
"""Colours of letters, of what stands back, and of the grid."""

_LEFT, _TITLE = 0.012, 0.945


def figure_of(inches: tuple[float, float]) -> Any:
    """An empty white figure of matplotlib, of this width and height.

    Raises:
        FestinaError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FestinaError("the static plot needs matplotlib; run `pip install festina[plot]`.") from None
    return Figure(figsize=inches, dpi=DOTS_PER_INCH, facecolor="white")


def headings(figure: Any, title: str, remark: str, remark_at: float) -> None:
    """Write a title and, at this share of the height, a remark into the upper left corner."""
    # Dollar signs would start mathematics.
    plain = title.replace("$", r"\$")
    figure.text(_LEFT, _TITLE, plain, fontsize=14, fontweight="bold", color=INK)
    figure.text(_LEFT, remark_at, remark, fontsize=9, color=MUTED)


def frame(axes: Any, label: str) -> None:
    """Draw a grid, a line below, and the label of what goes to the right."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, color=INK)


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all.

    Raises:
        FestinaError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole_bytes(path, buffer.getvalue())
