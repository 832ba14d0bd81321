"""The points as tables: markdown for a README, rich for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from festina.report import figures
from festina.report.points import Point

COLUMNS = (
    "Run",
    "Seconds ratio",
    "Seconds per picture",
    "MACs per picture",
    "Reward (95 % interval)",
    "Fréchet distance",
    "PSNR to uncached",
)

TERMINAL_COLUMNS = ("Run", "Ratio", "Seconds", "MACs", "Reward (95 %)", "Fréchet", "PSNR")


def row(point: Point) -> tuple[str, ...]:
    """The cells of a point, one per entry of `COLUMNS`."""
    return (
        point.name,
        figures.point_ratio_text(point),
        figures.seconds_text(point.seconds),
        figures.macs_text(point.macs),
        f"{figures.reward_text(point.reward)} ({figures.interval_text(point)})",
        figures.frechet_text(point.frechet),
        figures.psnr_text(point),
    )


def markdown_table(points: Sequence[Point]) -> str:
    """The points as a markdown table, in the order given, names to the left and figures to the right."""
    return markdown(COLUMNS, [row(point) for point in points])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, the first column to the left and the others to the right; cells are shown literally."""
    rules = (":--", *("--:" for _ in columns[1:]))
    lines = [columns, rules, *([_markdown(cell) for cell in cells] for cells in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rich_table(points: Sequence[Point], title: str) -> Table:
    """The points as a table for the terminal, in the order given; names are shown literally."""
    table = Table(title=Text(title), header_style="bold")
    for number, column in enumerate(TERMINAL_COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for point in points:
        style = {"front": "bold", "uncached": "bold", "seed": "dim"}.get(point.kind, "")
        table.add_row(*(Text(cell) for cell in _terminal_row(point)), style=style)
    return table


def _terminal_row(point: Point) -> tuple[str, ...]:
    """The cells of a point, one per entry of `TERMINAL_COLUMNS`, short enough for 80 letters a line."""
    half = max(point.reward_high - point.reward, point.reward - point.reward_low)
    name, ratio, seconds, macs, _, frechet, fidelity = row(point)
    reward = f"{figures.reward_text(point.reward)} ± {figures.reward_text(half)}"
    return name, ratio, seconds, macs.removesuffix("MACs"), reward, frechet, fidelity


def _markdown(cell: str) -> str:
    """A cell whose text cannot end it, start a line or become markup."""
    flat = " ".join(cell.split())
    for sign in "\\|`*_[]<":
        flat = flat.replace(sign, f"\\{sign}")
    return flat
