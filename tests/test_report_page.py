"""The page as text: complete, escaped, whole. What it does in a browser is tested in test_report_browser."""

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from test_report_example import NASTY, PROMPTS, example_page

from festina.errors import FestinaError
from festina.plan import Plan
from festina.report.page import page_html, plan_data, write_page
from festina.report.schedule import panels, told
from festina.samplers import SolverStep, SolverTable


@pytest.fixture
def page():
    return example_page()


class Outline(HTMLParser):
    """Start tags with their attributes, and the text of every script by its place."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._in_script = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
            self._in_script = True

    def handle_endtag(self, tag):
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_hostile_texts_stay_texts(page):
    hostile = "</title></script><script>window.broken=1</script><img src=x onerror=alert(1)> & \"q\" 'q' $data"
    page = replace(page, title=hostile, model=hostile, hardware=hostile, settings=hostile, notes=(hostile,))
    text = page_html(page)
    outline = Outline(text)
    # Data, plotly, schedule and page: no text opened a script or an element of its own.
    assert len(outline.scripts) == 4
    assert outline.named("img") == outline.named("i") == []
    assert "window.broken" not in "".join(outline.scripts)
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; &quot;q&quot; &#x27;q&#x27; $data" in text


def test_the_data_script_holds_the_page(page):
    data = json.loads(Outline(page_html(page)).scripts[0])
    assert tuple(data["prompts"]) == PROMPTS
    assert (data["uncached"], data["first"]) == ("uncached", "front-2")
    assert {p["name"] for p in data["points"]} == {p.name for p in page.points}
    shown = next(p for p in data["points"] if p["name"] == NASTY)
    point = next(p for p in page.points if p.name == NASTY)
    assert base64.b64decode(shown["pictures"][3].removeprefix("data:image/png;base64,")) == point.pictures[3]
    assert shown["plan"]["json"] == point.plan.to_json()
    runs = point.plan.canonical().table()
    assert shown["plan"]["counts"] == {
        "compute": (runs == "C").sum(),
        "reuse": (runs == "R").sum(),
        "forecast": ((runs == "1") | (runs == "2")).sum(),
        "skip": (runs == "S").sum(),
        "gate": (runs == "G").sum(),
        "tokens": (runs == "T").sum(),
        "replay": 0,
        "model": 0,
    }
    assert shown["plan"]["told"] == told(point.plan)


def test_steps_without_a_call_of_the_own_denoiser_are_shown_as_such():
    """They have no actions: neither computed nor reused."""
    plan = Plan.computing_all("A", ["b.0.ff", "b.1.ff"], 6).replaying({3: 1.0, 5: 0.9})
    steps = (replace(plan.steps[0], model="small"), replace(plan.steps[1], branches="conditional"), *plan.steps[2:])
    table = SolverTable(tuple(SolverStep(float(noise)) for noise in (6, 5, 4, 3, 2, 1)))
    plan = replace(plan, steps=steps, solver=table, method="mine")
    (panel,) = panels(plan)
    assert panel.rows == ("MCCLCL", "MCCLCL")
    found = plan_data(plan)["counts"]
    assert (found["model"], found["replay"], found["compute"], found["reuse"]) == (2, 4, 6, 0)
    assert told(plan) == (
        "What runs in A, made by mine. The sampler is the plan's own, of 6 calls. Other models: small. Where the "
        "pipeline guides, it does in 5 of 6 steps."
    )
    assert told(Plan.computing_all("A", ["b.0.ff"], 2)) == "What runs in A, made by uncached."


def test_the_page_names_no_outside_resource(page):
    outline = Outline(page_html(page))
    sources = [value for _, attributes in outline.tags for key, value in attributes.items() if key in ("src", "href")]
    assert sources == ["data:,"]
    policy = next(a["content"] for a in outline.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_every_run_has_a_row_with_its_figures_in_order_of_kind(page):
    outline = Outline(page_html(page))
    rows = [attributes for attributes in outline.named("tr") if "data-point" in attributes]
    kinds = [row["data-kind"] for row in rows]
    assert kinds == ["uncached"] + ["front"] * 5 + ["fewer-steps"] * 4 + ["fora"] * 3 + ["seed"] * 4
    assert NASTY in {row["data-point"] for row in rows}
    assert "<td>0.843 (0.831 to 0.854)</td>" in page_html(page)


def test_an_unwritable_page_is_an_error_and_leaves_nothing(page, tmp_path):
    with pytest.raises(FestinaError, match="cannot write"):
        write_page(page, tmp_path / "missing" / "front.html")
    assert list(tmp_path.iterdir()) == []
    write_page(page, tmp_path / "front.html")
    assert (tmp_path / "front.html").read_text(encoding="utf-8") == page_html(page)
