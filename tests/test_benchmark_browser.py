"""The page of a benchmark in headless Chromium: the front through all groups, runs without MACs, narrow screens."""

import pytest
from test_benchmark_results import NASTY, SECONDS, example
from test_report_browser import browser, detail, traces, wait  # noqa: F401 (browser is a fixture)

from festina.benchmark.page import write_page


@pytest.fixture
def view(browser, tmp_path):  # noqa: F811
    write_page(example(), tmp_path / "bench.html")
    browser.get("about:blank")
    browser.get((tmp_path / "bench.html").as_uri())
    wait(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "true")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def points(found):
    return {name: x for trace in found.values() for name, x in zip(trace["names"], trace["x"], strict=False)}


def test_every_run_is_a_point_and_the_front_a_staircase_through_its_own(view):
    found = traces(view)
    assert points(found) == pytest.approx({name: seconds / 2 for name, seconds in SECONDS.items()})
    assert found["stairs"]["x"] == [0.5, 1.0, 1.5]
    assert len(view.find_elements("css selector", "#table tbody tr")) == len(SECONDS)
    assert detail(view)["name"] == NASTY


def test_runs_without_macs_leave_that_axis(view):
    view.find_element("css selector", "#axis label:nth-of-type(2)").click()
    wait(lambda: set(points(traces(view))) == set(SECONDS) - {NASTY})
    assert "stairs" not in traces(view)


def test_choosing_a_run_shows_what_fewer_steps_give(view):
    for button in view.find_elements("css selector", ".choose"):
        if button.get_attribute("data-point") == "fora interval=2":
            button.click()
    shown = detail(view)
    assert shown["figures"]["rival"] == "0.450"
    assert shown["figures"]["beaten"] == "yes"
    assert len(shown["mine"]) == len(shown["theirs"]) == 2
    assert sum(count for _, count in shown["cells"]) == 12


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_sticks_out_sideways(view, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    view.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wait(lambda: view.execute_script("return innerWidth") == width)
    across = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
    wait(lambda: view.execute_script(across) == 0)
    view.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
