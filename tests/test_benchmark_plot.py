"""The plot of a benchmark: its size, its legend, and how the groups look."""

from dataclasses import replace

import pytest
from PIL import Image
from test_benchmark_results import FIGURES, SECONDS, VARIANTS, example, figures_of, plan, variant

from festina.benchmark.looks import SHAPES, looks_of
from festina.benchmark.plot import INCHES, plotted, write_plot
from festina.benchmark.results import results
from festina.report.canvas import DOTS_PER_INCH


def test_no_two_groups_look_the_same():
    groups = ["uncached", "fewer steps", *(f"method {number}" for number in range(56))]
    looks = looks_of(groups)
    assert list(looks) == groups
    assert len({(look.light, look.symbol) for look in looks.values()}) == len(groups)
    assert {look.symbol for look in looks.values()} <= {*SHAPES, "star", "square", "circle"}


def test_the_plot_is_a_picture_of_its_size(tmp_path):
    pytest.importorskip("matplotlib")
    write_plot(example(), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.size == tuple(round(side * DOTS_PER_INCH) for side in INCHES)
        assert image.format == "PNG"


@pytest.mark.parametrize("methods", [1, 60])
def test_the_legend_of_the_plot_is_whole_and_beside_the_axes(methods):
    pytest.importorskip("matplotlib")
    more = tuple(variant(f"m{number}", group=f"one_of_{methods}_methods", of=plan(2)) for number in range(methods))
    more = tuple(replace(each, group=f"{each.group}_{number}") for number, each in enumerate(more))
    figures = FIGURES | {each.name: figures_of(each, 0.01 * place, 0.01) for place, each in enumerate(more)}
    seconds = SECONDS | {each.name: 1.0 + 0.1 * place for place, each in enumerate(more)}
    figure = plotted(replace(example(), results=results((*VARIANTS, *more), figures, [seconds], 2, 1)))
    figure.canvas.draw()
    (legend,), (axes,) = figure.legends, figure.axes
    box, page = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == 1 + len({each.group for each in (*VARIANTS, *more)})
    assert page.x0 <= box.x0 <= box.x1 <= page.x1
    assert page.y0 <= box.y0 <= box.y1 <= page.y1
    assert box.x0 >= axes.get_window_extent().x1
