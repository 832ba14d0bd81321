"""The page in headless Chromium: points, choosing by mouse and keyboard, the axis, the plan file, no network."""

import base64
import json
import os
import shutil
import time
from dataclasses import replace

import pytest
from test_report_example import BLOCKS, NASTY, PROMPTS, STEPS, example_page

from festina.report import write_page

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
PAGE = example_page()
POINTS = {point.name: point for point in PAGE.points}
NAMES = [point.name for kind in ("uncached", "front", "fewer-steps", "fora", "seed") for point in PAGE.of_kind(kind)]


def missing(reason):
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI has to run these tests")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        missing("selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing("no chromium with its chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("page")
    write_page(PAGE, made / "front.html")
    untimed = tuple(replace(point, seconds=None, seconds_ratio=None) for point in PAGE.points)
    write_page(replace(PAGE, points=untimed), made / "untimed.html")
    return made


@pytest.fixture
def view(browser, folder):
    def opened(name="front.html", fragment=""):
        browser.get("about:blank")
        browser.get((folder / name).as_uri() + fragment)
        wait(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "true")
        return browser

    yield opened
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def wait(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "the page did not get there within 20 seconds"
        time.sleep(0.05)


def traces(browser):
    script = """
        const found = {};
        for (const trace of document.getElementById('plot').data)
            found[trace.meta] = {x: [...trace.x], y: [...trace.y], names: [...(trace.customdata ?? [])]};
        return found"""
    return browser.execute_script(script)


def detail(browser):
    """What the detail pane shows, as plain values."""
    script = """
        const all = (query, of) => [...document.querySelectorAll(query)].map(of);
        return {
            name: document.getElementById('chosen-name').textContent,
            figures: Object.fromEntries(all('#figures > div', one =>
                [one.dataset.figure, one.querySelector('.value').textContent])),
            mine: all('#pictures .this img', one => one.src),
            theirs: all('#pictures .that img', one => one.src),
            captions: all('#pictures figcaption', one => one.textContent),
            panels: all('.panel', one => [one.dataset.panel, Number(one.dataset.rows), Number(one.dataset.steps)]),
            cells: all('.panel path', one => [one.dataset.action, Number(one.dataset.count)]),
            pressed: all('.choose[aria-pressed=true]', one => one.dataset.point),
            hash: decodeURIComponent(location.hash),
        }"""
    return browser.execute_script(script)


def shows(browser, name):
    """Assert that every part of the detail pane is the point's own."""
    found, point = detail(browser), POINTS[name]
    sources = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in point.pictures]
    uncached = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in PAGE.uncached.pictures]
    assert found["name"] == name
    assert found["pressed"] == [name]
    assert found["hash"] == f"#point={name}"
    assert found["mine"] == sources
    assert found["theirs"] == (uncached if sources and point is not PAGE.uncached else [])
    assert found["captions"] == (list(PROMPTS) if sources else [])
    assert found["figures"]["reward"] == f"{point.reward:.3f}"
    assert found["figures"]["share"] == f"{100 * point.macs / PAGE.uncached.macs:.1f} %"
    counted = {}
    for action, count in found["cells"]:
        counted[action] = counted.get(action, 0) + count
    if point.plan is None:
        assert found["panels"] == []
        assert counted == {}
    else:
        titles = ("self-attention (attn1)", "cross-attention (attn2)", "feed-forward (ff)")
        assert found["panels"] == [[title, BLOCKS, STEPS] for title in titles]
        runs = "".join(step.actions for step in point.plan.canonical().steps)
        assert counted == {action: runs.count(action) for action in set(runs)}


def keys(browser, *pressed):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*pressed).perform()


def button(browser, name):
    return next(
        one for one in browser.find_elements("css selector", ".choose") if one.get_attribute("data-point") == name
    )


def test_points_are_there_by_kind_and_the_headline_point_is_chosen(view):
    browser = view()
    found = traces(browser)
    counts = {kind: len(trace["x"]) for kind, trace in found.items()}
    assert counts == {"uncached": 1, "front": 5, "fewer-steps": 4, "fora": 3, "seed": 4, "chosen": 1}
    drawn = browser.execute_script("return document.querySelectorAll('#plot .scatterlayer path.point').length")
    assert drawn == sum(counts.values())
    assert len(browser.find_elements("css selector", "#table tbody tr")) == len(NAMES)
    assert browser.title == PAGE.title
    assert browser.execute_script("return document.getElementById('headline').textContent").startswith(
        "The plan front-2"
    )
    shows(browser, "front-2")


def test_toggle_changes_the_horizontal_axis_by_mouse_and_by_keyboard(view):
    browser = view()

    def xs():
        return {
            name: x for trace in traces(browser).values() for name, x in zip(trace["names"], trace["x"], strict=False)
        }

    assert xs() == {name: POINTS[name].seconds for name in NAMES}
    browser.find_element("css selector", "#axis label:nth-of-type(2)").click()
    wait(lambda: xs() == {name: POINTS[name].macs for name in NAMES})
    assert (
        browser.execute_script("return document.getElementById('plot').layout.xaxis.title.text") == "MACs per picture"
    )
    from selenium.webdriver.common.keys import Keys

    browser.find_element("css selector", "#axis input[value=macs]").send_keys(Keys.ARROW_LEFT)
    wait(lambda: xs() == {name: POINTS[name].seconds for name in NAMES})


@pytest.mark.parametrize("name", ["front-5", "FORA 2", "uncached", "4 steps", "seed-2"])
def test_choosing_a_marker_with_the_mouse(view, name):
    from selenium.webdriver.common.action_chains import ActionChains

    browser = view()
    script = """
        const plot = document.getElementById('plot');
        plot.scrollIntoView({block: 'center'});
        const trace = plot._fullData.find(one => (one.customdata ?? []).includes(arguments[0]));
        const place = trace.customdata.indexOf(arguments[0]);
        const box = plot.getBoundingClientRect();
        const {xaxis, yaxis} = plot._fullLayout;
        return [Math.round(box.left + xaxis._offset + xaxis.d2p(trace.x[place])),
                Math.round(box.top + yaxis._offset + yaxis.d2p(trace.y[place]))]"""
    x, y = browser.execute_script(script, name)
    chain = ActionChains(browser)
    chain.w3c_actions.pointer_action.move_to_location(x - 2, y)
    chain.w3c_actions.pointer_action.move_to_location(x, y)
    chain.w3c_actions.pointer_action.click()
    chain.perform()
    wait(lambda: detail(browser)["name"] == name)
    shows(browser, name)
    ring = traces(browser)["chosen"]
    assert (ring["x"], ring["y"]) == ([POINTS[name].seconds], [POINTS[name].reward])


def test_choosing_with_the_keyboard_alone(view):
    from selenium.webdriver.common.keys import Keys

    browser = view()
    for _ in range(60):
        keys(browser, Keys.TAB)
        if browser.switch_to.active_element.get_attribute("data-point") == NASTY:
            break
    keys(browser, Keys.ENTER)
    shows(browser, NASTY)
    keys(browser, Keys.ARROW_DOWN)
    following = NAMES[NAMES.index(NASTY) + 1]
    shows(browser, following)
    assert browser.switch_to.active_element.get_attribute("data-point") == following
    keys(browser, Keys.ARROW_UP, Keys.ARROW_UP)
    shows(browser, NAMES[NAMES.index(NASTY) - 1])


def test_previous_and_next_go_round_the_table(view):
    browser = view(fragment="#point=uncached")
    shows(browser, "uncached")
    browser.find_element("id", "previous").click()
    shows(browser, NAMES[-1])
    browser.find_element("id", "next").click()
    browser.find_element("id", "next").click()
    shows(browser, NAMES[1])


def test_the_address_remembers_the_point_and_survives_nonsense(view):
    browser = view()
    button(browser, NASTY).click()
    address = browser.current_url
    browser.get("about:blank")
    browser.get(address)
    shows(browser, NASTY)
    browser.execute_script("location.hash = '#point=FORA%203'")
    wait(lambda: detail(browser)["name"] == "FORA 3")
    shows(browser, "FORA 3")
    shows(view(fragment="#point=%E0%A4%A"), "front-2")
    shows(view(fragment="#point=nobody"), "front-2")


def test_cells_of_the_heat_map_are_read_with_arrow_keys(view):
    from selenium.webdriver.common.keys import Keys

    browser = view()
    browser.execute_script("document.querySelectorAll('.panel svg')[2].focus()")
    keys(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    plan = POINTS["front-2"].plan.canonical()
    action = plan.steps[2].actions[plan.sites.index("transformer_blocks.1.ff")]
    words = {"C": "compute", "R": "reuse", "S": "skip"}.get(action, f"forecast of order {action}")
    told = browser.find_element("id", "cell").text
    assert told == f"Step 2 (noise 0.90), feed-forward (ff), block 1: {words}"


def test_the_plan_can_be_copied_and_downloaded(view, tmp_path):
    browser = view(fragment="#point=front-4")
    text = POINTS["front-4"].plan.to_json()
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    browser.find_element("id", "copy").click()
    wait(lambda: browser.find_element("id", "told").text == "Copied.")
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, error => done(String(error)))"
    assert browser.execute_async_script(read) == text
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.find_element("id", "download").click()
    wait(lambda: (tmp_path / "front-4.json").exists() and (tmp_path / "front-4.json").stat().st_size > 0)
    assert (tmp_path / "front-4.json").read_text(encoding="utf-8") == text


def test_without_timings_the_page_starts_at_macs_and_bars_seconds(view):
    browser = view("untimed.html")
    assert not browser.find_element("css selector", "#axis input[value=seconds]").is_enabled()
    assert browser.find_element("css selector", "#axis input[value=macs]").is_selected()
    assert traces(browser)["uncached"]["x"] == [PAGE.uncached.macs]


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_sticks_out_sideways(view, width):
    browser = view()
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wait(lambda: browser.execute_script("return innerWidth") == width)
    across = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
    wait(lambda: browser.execute_script(across) == 0)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_colours_follow_the_reader_s_scheme(view):
    browser = view()

    def painted():
        return browser.execute_script(
            "return document.getElementById('plot').data.find(one => one.meta === 'front').marker.color"
        )

    for scheme, colour in (("dark", "#5cb8f5"), ("light", "#0067a8")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        wait(lambda colour=colour: painted() == colour)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_asks_the_network_for_nothing(view):
    browser = view()
    browser.get_log("performance")
    browser = view()
    browser.find_element("id", "next").click()
    browser.find_element("css selector", "#axis label:nth-of-type(2)").click()
    wait(lambda: traces(browser)["uncached"]["x"] == [PAGE.uncached.macs])
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if url.startswith("file:")] == [browser.current_url.partition("#")[0]]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob", "about"}
