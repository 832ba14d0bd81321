"""The report's data model: what a point and a page may hold, and that what is saved is read back."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_report_example import STEPS, example_page, picture, schedule

from festina.errors import FestinaError
from festina.report.points import FrontPage, Point
from festina.report.whole import write_whole_bytes


@pytest.fixture
def page():
    return example_page()


def point(**changes) -> Point:
    made = Point("p", "front", STEPS, 10, 0.5, 2.0, 0.5, 0.4, 0.6, 1.0, 30.0, 0, schedule(0.5, 1, "search"), ())
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "name of a point"),
        ({"name": "\ud800"}, "name of a point"),
        ({"kind": "best"}, "of kind 'best'; wanted one of front, seed"),
        ({"steps": 0}, "steps 0; wanted a whole number of 1 or more"),
        ({"macs": 1.5}, "macs 1.5"),
        ({"macs": True}, "macs True"),
        ({"macs": np.int64(7)}, "macs"),
        ({"held_bytes": -1}, "held_bytes -1"),
        ({"seconds": 0.0}, "seconds 0.0"),
        ({"seconds": math.nan}, "seconds nan"),
        ({"seconds_ratio": math.inf}, "seconds_ratio inf"),
        ({"reward_low": 0.51}, "low <= reward <= high"),
        ({"reward_high": 0.49}, "low <= reward <= high"),
        ({"reward_high": math.inf}, "low <= reward <= high"),
        ({"reward": math.nan}, "low <= reward <= high"),
        ({"frechet": -0.1}, "Frechet distance -0.1"),
        ({"psnr": -math.inf}, "PSNR -inf"),
        ({"psnr": math.nan}, "PSNR nan"),
        ({"plan": None}, "has no plan"),
        ({"kind": "uncached"}, "the untouched sampler, and has a plan"),
        ({"steps": STEPS - 1}, f"{STEPS - 1} steps and a plan of {STEPS}"),
        ({"pictures": (b"\xff\xd8\xff",)}, "picture 0 of point 'p' is not a PNG"),
    ],
)
def test_a_point_refuses(changes, message):
    with pytest.raises(FestinaError, match=message):
        point(**changes)


def test_a_page_refuses(page):
    def refuses(message, **changes):
        with pytest.raises(FestinaError, match=message):
            replace(page, **changes)

    others = tuple(p for p in page.points if p.kind != "uncached")
    uncached = page.uncached
    refuses("has 0 uncached points; wanted exactly one", points=others)
    refuses("has 2 uncached points", points=(*page.points, replace(uncached, name="again")))
    refuses("found twice: uncached", points=(uncached, replace(others[0], name="uncached")))
    refuses("4 pictures for 3 prompts", prompts=page.prompts[:3])
    refuses("seconds ratio of 1.1", points=(*others, replace(uncached, seconds_ratio=1.1)))
    refuses("Unicode", title="\udfff")
    twenty = next(p for p in others if p.kind == "fewer-steps")
    refuses("20 steps and uncached 20; wanted fewer", points=(uncached, replace(twenty, steps=20)))


def test_points_of_a_kind_come_by_falling_macs(page):
    mixed = replace(page, points=tuple(reversed(page.points)))
    assert [p.steps for p in mixed.of_kind("fewer-steps")] == [10, 8, 6, 4]
    assert mixed.uncached.name == "uncached"


def test_json_round_trip_is_exact(page, tmp_path):
    points = (*page.points, point(name="same pictures", psnr=math.inf, seconds=None, seconds_ratio=None, frechet=None))
    page = replace(page, points=points)
    assert FrontPage.from_json(page.to_json()) == page
    page.save(tmp_path / "page.json")
    assert FrontPage.load(tmp_path / "page.json") == page
    assert FrontPage.load(tmp_path / "page.json").points[0].pictures[1] == picture(1, 0)


def _changed(text, change):
    record = json.loads(text)
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("festina_front_page"), "no such header"),
        (lambda r: r.update(festina_front_page=2), "schema 2"),
        (lambda r: r.update(festina_front_page=True), "schema True"),
        (lambda r: r.update(extra=1), r"unknown keys \['extra'\]"),
        (lambda r: r.pop("notes"), r"lacks the keys \['notes'\]"),
        (lambda r: r.update(title=3), "found 3"),
        (lambda r: r.update(prompts="abcd"), "'prompts' is a list"),
        (lambda r: r.update(notes=[None]), "'notes' is a list of texts"),
        (lambda r: r["points"].append([]), "a point is an object"),
        (lambda r: r["points"][0].update(macs="10"), "macs '10'"),
        (lambda r: r["points"][0].update(seconds="1"), "seconds '1'"),
        (lambda r: r["points"][0].update(kind=[]), r"of kind \[\]"),
        (lambda r: r["points"][0]["pictures"].__setitem__(0, "%"), "not base64"),
        (lambda r: r["points"][1]["plan"].update(sites=[]), "plan"),
    ],
)
def test_a_saved_page_is_read_strictly(page, change, message):
    with pytest.raises(FestinaError, match=message):
        FrontPage.from_json(_changed(page.to_json(), change))


def test_damaged_and_missing_files_are_named(page, tmp_path):
    with pytest.raises(FestinaError, match="not a saved front page"):
        FrontPage.from_json(page.to_json()[:-20])
    with pytest.raises(FestinaError, match=r"cannot read the front page .*none\.json"):
        FrontPage.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FestinaError, match=r"bad\.json: not a saved front page"):
        FrontPage.load(tmp_path / "bad.json")


def test_bytes_are_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "picture.png"
    write_whole_bytes(target, b"one")
    write_whole_bytes(target, b"two\r\n\x00")
    assert target.read_bytes() == b"two\r\n\x00"
    with pytest.raises(FestinaError, match="cannot write"):
        write_whole_bytes(tmp_path / "missing" / "picture.png", b"one")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FestinaError, match="cannot write"):
        write_whole_bytes(tmp_path / "folder", b"one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "picture.png"]
