"""How figures are written, and the markdown and terminal tables."""

# ruff: noqa: RUF001 (the signs that figures are written with)

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console
from test_report_example import NASTY, example_page

from festina.report import figures, markdown_table, rich_table
from festina.report.tables import COLUMNS


@pytest.fixture
def page():
    return example_page()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (0.5, "0.500"),
        (1.236, "1.24"),
        (45.67, "45.7"),
        (999.6, "1000"),
        (12345, "12345"),
    ],
)
def test_three_digits(value, text):
    assert figures.three_digits(value) == text


def test_units():
    assert figures.macs_text(999) == "999 MACs"
    assert figures.macs_text(1_250_000_000) == "1.25 GMACs"
    assert figures.macs_text(5 * 10**12) == "5.00 TMACs"
    assert figures.seconds_text(0.0314) == "31.4 ms"
    assert figures.seconds_text(0.314) == "0.314 s"
    assert figures.seconds_text(None) == "–"
    assert figures.bytes_text(512) == "512 B"
    assert figures.bytes_text(3_670_016) == "3.50 MiB"
    assert figures.share_text(413, 1000) == "41.3 %"


def test_markdown_table_exactly(page):
    uncached = page.uncached
    front = replace(page.of_kind("front")[0], name="a|b *c*\n<i>", seconds_ratio=None, seconds=None, psnr=math.inf)
    assert markdown_table((uncached, front)) == (
        "| Run | Seconds ratio | Seconds per picture | MACs per picture | Reward (95 % interval) "
        "| Fréchet distance | PSNR to uncached |\n"
        "| :-- | --: | --: | --: | --: | --: | --: |\n"
        "| uncached | 1.00× | 0.520 s | 20.0 GMACs | 0.861 (0.849 to 0.872) | 3.88 | – |\n"
        "| a\\|b \\*c\\* \\<i> | – | – | 14.4 GMACs | 0.866 (0.854 to 0.877) | 3.78 | ∞ |\n"
    )


def test_rich_table_shows_names_literally(page):
    odd = replace(page.uncached, name="[bold]x[/bold]")
    table = rich_table((odd, *page.of_kind("front")), "Runs [red]")
    assert (table.row_count, len(table.columns)) == (6, len(COLUMNS))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    for shown in ("[bold]x[/bold]", "Runs [red]", NASTY, "2.17×", "7.20 G", "0.843 ± 0.012"):
        assert shown in text
