"""`festina bench` as a user meets it: what it prints, what it leaves, and how it fails."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from festina import Plan

SMALL = ["--methods", "fora,tgate", "--images", "4", "--batch", "2", "--steps", "4", "--rounds", "2", "--no-peers"]
# As many threads as in this process (conftest): a benchmark goes on only on the hardware it began with.
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}
SITES = [f"transformer_blocks.{block}.{part}" for block in range(8) for part in ("attn1", "attn2", "ff")]


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """A folder of two plans for `scenes`; one has another number of steps."""
    folder = tmp_path_factory.mktemp("mine")
    mask = np.ones((4, len(SITES)), dtype=bool)
    mask[2] = False
    plan = Plan.from_mask("PixArtTransformer2DModel", SITES, mask, method="test")
    plan.save(folder / "good.json")
    plan.resample(5).save(folder / "long.json")
    return folder


@pytest.fixture(scope="module")
def benched(tmp_path_factory, plans):
    """A finished small benchmark on `scenes`, in a process of its own."""
    out = tmp_path_factory.mktemp("benched")
    words = ["bench", "scenes", "--out", str(out), *SMALL, "--plans", str(plans)]
    done = subprocess.run(
        [sys.executable, "-m", "festina", *words], capture_output=True, text=True, check=False, env=ALONE
    )
    assert done.returncode == 0, done.stderr
    return out, words, done


def fails(result, *parts, code=1):
    """The command failed with one line that says all of this."""
    status, _, err = result
    assert status == code
    assert err.splitlines()[-1].startswith("error: ")
    for part in parts:
        assert part in err.splitlines()[-1]


def test_leaves_figures_table_page_and_plot(benched, plans):
    out, _, done = benched
    assert {"bench.html", "bench.json", "bench.md", "bench.png", "settings.json"} <= {
        path.name for path in out.iterdir()
    }
    data = json.loads((out / "bench.json").read_text())
    names = [run["name"] for run in data["runs"]]
    assert names[:4] == ["uncached", "2 steps", "3 steps", "fora interval=2"]
    assert names[-1] == f"{plans.name}/good"
    uncached = data["runs"][0]
    assert (uncached["seconds_ratio"], uncached["psnr"]) == (1, "inf")
    assert uncached["ssim"] == pytest.approx(1)
    failed = {each["name"]: each["reason"] for each in data["failed"]}
    assert set(failed) == {"scenes/fast", "scenes/faster", "scenes/fastest", f"{plans.name}/long"}
    assert all("the benchmark 4" in reason for reason in failed.values())
    with Image.open(out / "bench.png") as image:
        assert image.format == "PNG"
    for run in data["runs"]:
        assert 0 <= run["reward_low"] <= run["reward"] <= run["reward_high"] <= 1.5
        assert run["frechet"] > 0
    assert data["asked"]["methods"] == ["fora", "tgate"]
    assert data["front"]
    for name in names:
        assert name in done.stdout
        assert name in (out / "bench.html").read_text()
    assert "On the front of seconds and reward:" in done.stdout
    for name in data["front"]:
        assert f"  {name}: " in done.stdout


def test_the_same_command_runs_nothing_again(benched, festina):
    out, words, done = benched
    before = {path: path.stat().st_mtime_ns for folder in ("runs", "rounds") for path in (out / folder).iterdir()}
    figures = (out / "bench.json").read_bytes()
    status, shown, _ = festina(*words)
    assert status == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "bench.json").read_bytes() == figures
    assert shown.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_other_settings_in_the_same_folder_are_refused(benched, festina):
    out, words, _ = benched
    fails(festina(*words, "--guidance", "2"), f"{out} holds a benchmark with other guidance;")


def test_ctrl_c_leaves_a_folder_that_the_same_command_goes_on_with(tmp_path, festina):
    words = ["bench", "scenes", "--out", str(tmp_path), *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "festina", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ALONE | {"COLUMNS": "200"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    runs = tmp_path / "runs"
    deadline = time.monotonic() + 300
    while not (runs.is_dir() and len(list(runs.iterdir())) >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("error: stopped. A search, a benchmark")
    kept = {path: path.read_bytes() for path in runs.glob("*.json")}
    assert len(kept) >= 2
    assert not (tmp_path / "bench.json").exists()
    status, _, _ = festina(*words)
    assert status == 0
    assert {path: path.read_bytes() for path in kept} == kept
    assert (tmp_path / "bench.json").is_file()


class TestMistakes:
    def test_an_unknown_method(self, festina, tmp_path):
        fails(festina("bench", "scenes", "--out", tmp_path, "--methods", "foura"), "no such method: foura")

    def test_no_prompts(self, festina, model, tmp_path):
        fails(festina("bench", model, "--out", tmp_path), "no prompts; give --prompts FILE")

    def test_too_few_prompts_to_set_some_aside(self, festina, model, tmp_path):
        (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
        words = ("bench", model, "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt")
        fails(festina(*words), "has 3 prompts; give at least 4, or a second file by --calibration")

    def test_no_reward(self, festina, model, tmp_path):
        (tmp_path / "prompts.txt").write_text("a\nb\nc\nd\n")
        words = ("bench", model, "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt")
        fails(festina(*words), "no --reward")

    def test_calibration_without_prompts(self, festina, tmp_path):
        (tmp_path / "other.txt").write_text("a\n")
        words = ("bench", "scenes", "--out", tmp_path / "out", "--calibration", tmp_path / "other.txt")
        fails(festina(*words), "--calibration without --prompts")

    def test_a_folder_without_plans(self, festina, tmp_path):
        (tmp_path / "plans").mkdir()
        words = ("bench", "scenes", "--out", tmp_path / "out", "--plans", tmp_path / "plans")
        fails(festina(*words), "holds no plan files")

    def test_a_missing_plan(self, festina, tmp_path):
        words = ("bench", "scenes", "--out", tmp_path / "out", "--plans", tmp_path / "none.json")
        fails(festina(*words), "cannot read the plan")


def test_the_last_prompts_of_a_file_calibrate(tmp_path):
    from festina.cli.prompts import prompts_of_bench

    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {number}" for number in range(20)))
    drawn, other = prompts_of_bench(None, path, None, None, 8)
    assert drawn == tuple(f"prompt {number}" for number in range(15))
    assert other == tuple(f"prompt {number}" for number in range(15, 20))
    drawn, other = prompts_of_bench(None, path, None, 3, 2)
    assert (drawn, other) == (("prompt 0", "prompt 1", "prompt 2"), ("prompt 18", "prompt 19"))
    (tmp_path / "other.txt").write_text("another\n")
    drawn, other = prompts_of_bench(None, path, tmp_path / "other.txt", None, 8)
    assert (len(drawn), other) == (20, ("another",))
