"""Going on with a benchmark: what is done is not run again, what was cut short leaves nothing."""

import json
import shutil
from pathlib import Path

import pytest
from test_benchmark import ENTRIES, NAMES, PROMPTS, run
from tiny import pixart_pipeline

from festina import FestinaError
from festina.benchmark import drawing, session
from festina.report import rounds


@pytest.fixture(scope="module")
def pipe():
    return pixart_pipeline()


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """A finished benchmark and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    return run(pipe, folder), folder


ROUND = [*NAMES[:9], "uncached", *NAMES[9:], "uncached"]
"""What is timed in a round: the yardstick, which is the first, again after eight others and at the end."""


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the finished benchmark's folder."""
    return Path(shutil.copytree(made[1], tmp_path / "bench"))


@pytest.fixture
def watch(monkeypatch):
    """Which variants are drawn and which are timed from now on."""
    drawn, timed = [], []
    draw, seconds_of = drawing.draw, rounds.seconds_of

    def drawing_too(pipe, variant, workload):
        drawn.append(variant.name)
        return draw(pipe, variant, workload)

    def timing_too(pipe, variant, workload):
        timed.append(variant.name)
        return seconds_of(pipe, variant, workload)

    monkeypatch.setattr(drawing, "draw", drawing_too)
    monkeypatch.setattr(rounds, "seconds_of", timing_too)
    return drawn, timed


def test_the_same_command_runs_nothing_again(pipe, made, folder, watch):
    again = run(pipe, folder)
    # What could not be run is tried again, as something may have been done about it.
    assert watch == (["foreign"], [])
    assert again == made[0]


def test_what_is_missing_is_run_and_nothing_else(pipe, folder, watch):
    (lost,) = (folder / "runs").glob("fora-interval-3-*.json")
    lost.unlink()
    again = run(pipe, folder)
    assert watch == (["fora interval=3", "foreign"], [])
    assert lost.is_file()
    assert [result.variant.name for result in again.results] == NAMES


def test_uncached_pictures_are_drawn_again_only_if_they_are_needed(pipe, made, folder):
    (folder / "uncached.safetensors").unlink()
    (lost,) = (folder / "runs").glob("own-*.json")
    lost.unlink()
    assert run(pipe, folder).results == made[0].results
    assert (folder / "uncached.safetensors").is_file()


def test_another_plan_of_the_same_name_is_measured_and_timed_anew(pipe, folder, watch):
    text = (folder / "settings.json").read_text()
    (kept,) = (folder / "runs").glob("own-*.json")
    record = json.loads(kept.read_text())
    kept.write_text(json.dumps(record | {"key": "that of another plan"}))
    for path in (folder / "rounds").iterdir():
        path.write_text(path.read_text().replace(record["key"], "that of another plan"))
    found = run(pipe, folder)
    assert watch[0] == ["foreign", "own"]
    assert watch[1] == ["uncached", *ROUND, *ROUND]
    assert found.rounds == 2
    assert len(list((folder / "rounds").iterdir())) == 4
    assert (folder / "settings.json").read_text() == text


def test_more_rounds_go_on_with_those_there_are(pipe, folder, watch):
    assert run(pipe, folder, rounds=3).rounds == 3
    assert watch[1] == ["uncached", *ROUND]
    assert run(pipe, folder, rounds=1).rounds == 3


def test_a_round_that_was_interrupted_leaves_nothing(pipe, folder, monkeypatch, watch):
    _, timed = watch
    seconds_of = rounds.seconds_of

    def interrupted(*arguments):
        if len(timed) == 15:
            raise KeyboardInterrupt
        return seconds_of(*arguments)

    monkeypatch.setattr(rounds, "seconds_of", interrupted)
    before = sorted((folder / "rounds").iterdir())
    with pytest.raises(KeyboardInterrupt):
        run(pipe, folder, rounds=5)
    # One to warm up, a round of nine with the yardstick three times, and two of the next.
    assert len(timed) == 15
    assert len(sorted((folder / "rounds").iterdir())) == len(before) + 1
    monkeypatch.setattr(rounds, "seconds_of", seconds_of)
    timed.clear()
    assert run(pipe, folder, rounds=4).rounds == 4
    assert timed == ["uncached", *ROUND]


def test_interrupted_drawing_keeps_what_was_drawn(pipe, tmp_path, monkeypatch, watch):
    draw = drawing.draw

    def interrupted(pipe, variant, workload):
        if variant.name == "fora interval=3":
            raise KeyboardInterrupt
        return draw(pipe, variant, workload)

    monkeypatch.setattr(drawing, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, tmp_path)
    assert "forward" not in vars(pipe.transformer)
    assert len(list((tmp_path / "runs").iterdir())) == 5
    monkeypatch.setattr(drawing, "draw", draw)
    watch[0].clear()
    assert [result.variant.name for result in run(pipe, tmp_path, rounds=1).results] == NAMES
    assert watch[0] == ["fora interval=3", "fora interval=4", *NAMES[7:9], "foreign", "own"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 6, "plans": ()}, "steps"),
        ({"prompts": PROMPTS[:2]}, "prompts"),
        ({"guidance_scale": 2.0}, "guidance"),
        ({"batch": 3}, "batch"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(pipe, folder, watch, change, named):
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with pytest.raises(FestinaError, match=f"holds a benchmark with other {named};"):
        run(pipe, folder, **change)
    assert watch == ([], [])
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_who_takes_part_may_change(pipe, tmp_path, watch):
    """What was drawn stays; all that are left are timed again, as a round counts only if all of them are in it."""
    drawn, timed = watch
    run(pipe, tmp_path, entries=ENTRIES[:1], plans=(), peers=False, rounds=1)
    first, rounds = list(drawn), list(timed)
    found = run(pipe, tmp_path, rounds=1)
    assert [result.variant.name for result in found.results] == NAMES
    # One of the plans is for another pipeline: it is tried, and not timed.
    assert sorted(drawn) == sorted([*NAMES, "foreign"])
    assert drawn[: len(first)] == first
    assert set(timed[len(rounds) :]) == set(NAMES)
    assert json.loads((tmp_path / "settings.json").read_text())["methods"] == [entry.method for entry in ENTRIES]
    again = run(pipe, tmp_path, entries=ENTRIES[:1], plans=(), peers=False, rounds=1)
    assert {result.variant.name for result in again.results} == set(first)
    assert len(drawn) == len(NAMES) + 1


def test_another_machine_is_refused(pipe, folder, monkeypatch):
    monkeypatch.setattr(session, "hardware", lambda device: {"processor": "another", "torch_threads": 1})
    with pytest.raises(FestinaError, match="with other hardware;"):
        run(pipe, folder)


def test_damaged_files_are_named(pipe, folder):
    (kept,) = (folder / "runs").glob("own-*.json")
    text = kept.read_text()
    kept.write_text(text.replace('"error"', '"mistake"'))
    with pytest.raises(FestinaError, match=r"own-.*json holds no figures"):
        run(pipe, folder)
    kept.write_text(json.dumps(json.loads(text) | {"error": -1.0}))
    with pytest.raises(FestinaError, match=r"own-.*json: figures of 'own' have error"):
        run(pipe, folder)
    kept.write_text(text)
    (folder / "rounds" / "0001.json").write_text("{}")
    with pytest.raises(FestinaError, match=r"0001\.json holds no timed round"):
        run(pipe, folder)
