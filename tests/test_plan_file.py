"""The plan file: its text, what is refused, and writing it whole or not at all."""

import errno
import json
import os
from dataclasses import replace

import pytest
from test_plan import ATTN, FF, fora, full_plan, plan_of

from festina.errors import FestinaError
from festina.plan import Plan, Step


def test_the_text_of_a_plan():
    assert full_plan().to_json() == (
        "{\n"
        '  "festina_plan": 2,\n'
        '  "denoiser": "D",\n'
        '  "sampler": "DDIMScheduler",\n'
        '  "method": "search",\n'
        '  "settings": {"budget": 3, "nested": {"knobs": [1, 2.5, null, true, "ä"]}},\n'
        '  "basis": "newton",\n'
        '  "gate": null,\n'
        '  "measured": [\n'
        '    {"name": "reward", "value": 0.5, "unit": "", "conditions": "1 prompt"},\n'
        '    {"name": "run", "value": 2.0, "unit": "s", "conditions": ""}\n'
        "  ],\n"
        '  "sites": [\n'
        '    "transformer_blocks.0.attn1",\n'
        '    "transformer_blocks.0.ff"\n'
        "  ],\n"
        '  "steps": [\n'
        '    {"noise": 1.0, "actions": "CC"},\n'
        '    {"noise": 0.6666666666666666, "actions": "R1"},\n'
        '    {"noise": 0.3333333333333333, "actions": "SC"}\n'
        "  ]\n"
        "}\n"
    )


def test_a_file_of_schema_1_is_read():
    record = json.loads(full_plan().to_json())
    old = {name: value for name, value in record.items() if name not in ("basis", "gate")} | {"festina_plan": 1}
    assert Plan.from_json(json.dumps(old)) == full_plan()
    with pytest.raises(FestinaError, match="unknown keys"):
        Plan.from_json(json.dumps(record | {"festina_plan": 1}))


@pytest.mark.parametrize("plan", [full_plan(), fora(3), plan_of("C", sites=("a",))])
def test_the_text_round_trips(plan):
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert Plan.from_json(text).to_json() == text


def test_whole_numbers_as_noise_give_the_same_text():
    assert Plan("D", ("a",), (Step(1, "C"),)).to_json() == Plan("D", ("a",), (Step(1.0, "C"),)).to_json()


def flaws():
    record = json.loads(full_plan().to_json())
    parts = {(): record, ("steps", 1): record["steps"][1], ("measured", 0): record["measured"][0]}
    for path, part in parts.items():
        for key in part:
            yield (*path, key), ..., "no 'festina_plan' key" if key == "festina_plan" else f"lacks ['{key}']"
        yield (*path, "extra"), 1, "unknown keys ['extra']"
    wrong = {
        "festina_plan": [0, 5, 1.0, True, "1", None, 10**400],
        "denoiser": [1, "", None, "x" * 513, "\ud800"],
        "sampler": [1, None, "x" * 513],
        "method": [1, "", []],
        "settings": [[], None, "x"],
        "basis": [1, None, "x", []],
        "gate": [[], 1, "x", {}, {"probe": "a"}],
        "measured": [{}, None, [1], [[]]],
        "sites": ["ab", {}, [], None, [ATTN, 1], [ATTN, None], [ATTN, ATTN], [ATTN], [ATTN, FF, "x"], [ATTN, [FF]]],
        "steps": [{}, [], None, [1], ["CC"], [[]]],
    }
    for key, values in wrong.items():
        yield from (((key,), value, "") for value in values)
    for value in ("1", None, True, 1.5, -1, 10**400, [], 1.0):
        yield ("steps", 1, "noise"), value, ""
    for value in (1, None, ["C", "C"], "C", "CCC", "CX", "cc", ""):
        yield ("steps", 1, "actions"), value, ""
    for value in ("1", None, True, 10**400, []):
        yield ("measured", 0, "value"), value, ""
    for key in ("name", "unit", "conditions"):
        yield ("measured", 0, key), 1, ""


@pytest.mark.parametrize(("path", "value", "message"), list(flaws()))
def test_every_flaw_of_a_file_is_refused(path, value, message):
    record = json.loads(full_plan().to_json())
    place = record
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(FestinaError) as refusal:
        Plan.from_json(json.dumps(record))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "null",
        "{}",
        "\ufeff" + full_plan().to_json(),
        full_plan().to_json() + "x",
        full_plan().to_json().replace('"sampler"', '"denoiser"'),
        full_plan().to_json().replace('"budget": 3', '"budget": NaN'),
        full_plan().to_json().replace('"budget": 3', '"budget": -Infinity'),
        full_plan().to_json().replace('"budget": 3', '"budget": 1e999'),
        full_plan().to_json().replace('"budget": 3', '"budget": ' + "9" * 5000),
        full_plan().to_json().replace('"budget": 3', '"budget": "\\ud800"'),
        full_plan().to_json().replace('"budget": 3', '"budget": ' + "[" * 40 + "]" * 40),
        "[" * 100_000,
        '{"festina_plan": ' + "[" * 900 + "]" * 900 + "}",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(FestinaError, match=r"not a (valid plan|plan file)"):
        Plan.from_json(text)


def test_save_and_load(tmp_path):
    path = tmp_path / "plän.json"
    full_plan().save(path)
    assert Plan.load(str(path)) == full_plan()
    assert path.read_text(encoding="utf-8") == full_plan().to_json()
    fora(2).save(path)
    assert Plan.load(path) == fora(2)
    assert os.listdir(tmp_path) == ["plän.json"]


def test_a_saved_plan_has_the_rights_of_a_new_file(tmp_path):
    (tmp_path / "other").write_text("")
    full_plan().save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_unwritable_places(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    places = ["missing/plan.json", "folder", "file/plan.json", "bad\0name"]
    for place in places:
        with pytest.raises(FestinaError, match="cannot write"):
            full_plan().save(tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == []
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "plan.json"
    fora(2).save(path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(FestinaError, match="No space left on device"):
        full_plan().save(path)
    assert os.listdir(tmp_path) == ["plan.json"]
    assert Plan.load(path) == fora(2)


def test_a_plan_too_large_to_be_read_back_is_not_written(tmp_path):
    large = replace(full_plan(), settings={"notes": "x" * 2**24})
    with pytest.raises(FestinaError, match="larger than"):
        large.save(tmp_path / "plan.json")
    assert os.listdir(tmp_path) == []


def test_unreadable_places(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{}")
    (tmp_path / "large").write_bytes(b" " * (2**24 + 1))
    for place, message in [
        ("missing", "No such file"),
        (".", "directory"),
        ("bytes", "utf-8"),
        ("large", "larger than"),
        ("bad\0name", "null"),
    ]:
        with pytest.raises(FestinaError, match=message):
            Plan.load(tmp_path / place)


def test_what_is_wrong_with_a_file_comes_with_its_path(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(FestinaError, match=r"plan\.json: not a valid plan"):
        Plan.load(tmp_path / "plan.json")
