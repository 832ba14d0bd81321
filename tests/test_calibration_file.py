"""The file of a calibration: work is resumed with it, it is read strictly, and the command line writes it."""

import json

import pytest
from test_calibrate import OTHER, PIXART, STEPS, on_pixart
from tiny import PROMPT, pixart_pipeline

from festina import Calibration, FestinaError, calibrate
from festina.strict import read_whole


class StoppedError(Exception):
    """Somebody pressed Ctrl-C."""


def stopping_at(count):
    def stop(done, total, message):
        if done == count:
            raise StoppedError

    return stop


def test_an_interrupted_calibration_goes_on_to_the_same_file(tmp_path):
    prompts = [PROMPT, OTHER, "a green circle"]
    whole = on_pixart(prompts, out=tmp_path / "whole.json")
    with pytest.raises(StoppedError):
        on_pixart(prompts, out=tmp_path / "parts.json", progress=stopping_at(1))
    begun = Calibration.load(tmp_path / "parts.json")
    assert begun.pictures == whole.pictures[:1]
    told = []
    again = on_pixart(prompts, out=tmp_path / "parts.json", progress=lambda done, total, _: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]
    assert again == whole == Calibration.load(tmp_path / "parts.json")
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    # All there: nothing is drawn.
    assert on_pixart(prompts, out=tmp_path / "parts.json", progress=stopping_at(3)) == whole
    # More prompts add to it.
    more = on_pixart([*prompts, "a red square"], out=tmp_path / "parts.json")
    assert len(more.pictures) == 4
    assert not list(tmp_path.glob(".*")), "scratch files are left"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"steps": STEPS + 1}, r"differs in steps \(5, not 6\)"),
        ({"guidance": 3.0}, r"differs in guidance \(4.5, not 3.0\)"),
        ({"call": {**PIXART, "height": 32}}, "differs in call"),
        ({"measures": ["lags"]}, "differs in measures"),
        ({"prompts": [OTHER]}, "differs in pictures"),
        ({"seeds": [7]}, "differs in pictures"),
    ],
)
def test_a_file_of_another_calibration_is_refused(tmp_path, changed, told):
    usual = {"prompts": [PROMPT], "steps": STEPS, "guidance": 4.5, "call": PIXART, "out": tmp_path / "file.json"}
    calibrate(pixart_pipeline(), **usual)
    text = (tmp_path / "file.json").read_bytes()
    with pytest.raises(FestinaError, match=told):
        calibrate(pixart_pipeline(), **{**usual, **changed})
    with pytest.raises(FestinaError, match="differs in sites"):
        calibrate(pixart_pipeline(4), **usual)
    assert (tmp_path / "file.json").read_bytes() == text


def test_a_file_round_trips_and_is_read_strictly(tmp_path):
    path = tmp_path / "file.json"
    found = on_pixart([PROMPT, "ein grüner Kreis"], out=path)
    assert Calibration.load(path) == found
    record = json.loads(path.read_text(encoding="utf-8"))

    def broken(change):
        copy = json.loads(json.dumps(record))
        change(copy)
        path.write_text(json.dumps(copy), encoding="utf-8")
        return pytest.raises(FestinaError, match=r"file\.json: not a(?: valid)? calibration")

    (branch,) = record["branches"]
    site = record["sites"][0]
    for change in (
        lambda copy: copy.pop("sampler"),
        lambda copy: copy.update(more=1),
        lambda copy: copy.update(festina_calibration=2),
        lambda copy: copy.update(steps=STEPS + 1),
        lambda copy: copy.update(pictures=[]),
        lambda copy: copy.update(measures=["lags"]),
        lambda copy: copy.update(guidance="strong"),
        lambda copy: copy["branches"][branch].pop("lags"),
        lambda copy: copy["branches"][branch]["lags"].update(other=[[]]),
        lambda copy: copy["branches"][branch]["lags"][site][0].append(0.0),
        lambda copy: copy["branches"][branch]["magnitudes"][0].__setitem__(1, -1.0),
        lambda copy: copy["branches"][branch]["distances"][2].__setitem__(1, "far"),
        lambda copy: copy["branches"][branch]["changes"].pop(),
        lambda copy: copy["branches"][branch]["magnitudes"][0].__setitem__(1, float("nan")),
    ):
        with broken(change):
            Calibration.load(path)
    with pytest.raises(FestinaError, match="cannot read the calibration"):
        Calibration.load(tmp_path / "none.json")


def test_the_command_writes_the_file_and_goes_on(festina, model, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "file.json"
    prompts.write_text(f"{PROMPT}\n{OTHER}\n", encoding="utf-8")
    words = ["calibrate", model, "--prompts", prompts, "--steps", "3", "--guidance", "3", "--out", out, "--seed", "5"]
    code, shown, errors = festina(*words, "--images", "1", "--measures", "lags, changes")
    assert (code, shown) == (0, f"{out}: lags, changes of 1 pictures in 3 steps of DPMSolverMultistepScheduler\n"), (
        errors
    )
    found = Calibration.load(out)
    assert (found.pictures, found.guidance, found.steps) == (((PROMPT, 5),), 3.0, 3)
    assert festina(*words, "--measures", "lags,changes")[0] == 0
    assert Calibration.load(out).pictures == ((PROMPT, 5), (OTHER, 6))
    code, _, errors = festina(*words)
    assert code == 1
    assert "differs in measures" in errors
    code, _, errors = festina("calibrate", model, "--out", out)
    assert code == 1
    assert "no prompts" in errors


def test_texts_are_read_up_to_a_size(tmp_path):
    path = tmp_path / "text"
    path.write_text("äbc", encoding="utf-8")
    assert read_whole(path, "thing", 4, len) == 3
    with pytest.raises(FestinaError, match=r"text: larger than a thing can be \(3 bytes\)"):
        read_whole(path, "thing", 3, len)

    def refuse(text):
        raise FestinaError(f"not {text}.")

    with pytest.raises(FestinaError, match=r"/text: not äbc\.$"):
        read_whole(path, "thing", 4, refuse)
    path.write_bytes(b"\xff")
    with pytest.raises(FestinaError, match=r"^cannot read the thing .*text: 'utf-8' codec"):
        read_whole(path, "thing", 4, len)
