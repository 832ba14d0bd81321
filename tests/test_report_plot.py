"""The static plot: a valid picture of the promised size that changes with the points."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_report_example import example_page

from festina.errors import FestinaError
from festina.report import plot, write_plot
from festina.report.look import LOOKS


@pytest.fixture
def page():
    return example_page()


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def painted(image, colour) -> int:
    """Pixels of exactly this colour below the legend."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((image[150:] == wanted).all(axis=2).sum())


def test_the_plot_is_a_png_of_the_promised_size_with_every_kind(page, tmp_path):
    pytest.importorskip("matplotlib")
    write_plot(replace(page, title="odd $x^ title"), tmp_path / "plot.png")
    image = pixels(tmp_path / "plot.png")
    assert image.shape == (plot.SIZE[1], plot.SIZE[0], 3) == (810, 1800, 3)
    assert all(painted(image, look.light) > 0 for look in LOOKS.values())


def test_without_timings_the_left_panel_is_empty(page, tmp_path):
    pytest.importorskip("matplotlib")
    untimed = tuple(replace(p, seconds=None, seconds_ratio=None) for p in page.points)
    write_plot(replace(page, points=untimed), tmp_path / "plot.png")
    image = pixels(tmp_path / "plot.png")
    middle = plot.SIZE[0] // 2
    assert painted(image[:, :middle], LOOKS["front"].light) == 0
    assert painted(image[:, middle:], LOOKS["front"].light) > 0


def test_an_unwritable_plot_is_an_error_and_leaves_nothing(page, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(FestinaError, match="cannot write"):
        write_plot(page, tmp_path / "missing" / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(page, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FestinaError, match=r"pip install festina\[plot\]"):
        write_plot(page, tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []
