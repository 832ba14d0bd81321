"""The command line as a user meets it: what it prints, what it leaves, and how it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from festina import Plan
from festina.formats import to_ecad
from festina.report import FrontPage
from festina.search import Archive
from festina.zoo import SHIPPED

SMALL = [
    "--population",
    "6",
    "--generations",
    "2",
    "--images",
    "2",
    "--held-out-images",
    "2",
    "--steps",
    "5",
    "--batch",
    "2",
]


@pytest.fixture
def plan(tmp_path):
    """A plan for `scenes`: 4 steps, the third reuses everything."""
    sites = [f"transformer_blocks.{block}.{part}" for block in range(8) for part in ("attn1", "attn2", "ff")]
    mask = np.ones((4, len(sites)), dtype=bool)
    mask[2] = False
    path = tmp_path / "plan.json"
    Plan.from_mask("PixArtTransformer2DModel", sites, mask, method="test").save(path)
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished small search on `scenes`."""
    out = tmp_path_factory.mktemp("searched")
    command = [sys.executable, "-m", "festina", "search", "scenes", "--out", str(out), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done


def fails(result, *parts, code=1):
    """The command failed with one line that says all of this."""
    status, _, err = result
    assert status == code
    *progress, last = err.splitlines()
    assert last.startswith("error: ")
    assert not any(word in line for line in progress for word in ("Traceback", "Warning", "error"))
    for part in parts:
        assert part in last


def test_help_names_every_command(festina):
    status, out, _ = festina("--help")
    assert status == 0
    for word in ("search", "generate", "front", "sites", "plan", "zoo", *SHIPPED):
        assert word in out


def test_unknown_option_is_wrong_usage(festina):
    status, _, err = festina("search", "scenes", "--no-such-option")
    assert status == 2
    assert "no-such-option" in err


def test_search_leaves_front_page_plans_and_archive(searched):
    out, done = searched
    assert {"archive.sqlite", "index.html", "page.json", "plans", "search.json"} <= {
        path.name for path in out.iterdir()
    }
    page = FrontPage.load(out / "page.json")
    kinds = [point.kind for point in page.points]
    assert kinds.count("uncached") == 1
    assert kinds.count("fora") == 3
    assert kinds.count("front") == len(list((out / "plans").glob("*.json"))) >= 1
    assert kinds.count("seed") >= 1
    seeds, others = (
        {p.plan.key() for p in page.points if p.plan and (p.kind == "seed") is seed} for seed in (True, False)
    )
    assert not seeds & others
    assert "uncached" in done.stdout
    for path in (out / "plans").glob("*.json"):
        assert Plan.load(path).method == "search"
    for point in page.points:
        assert len(point.pictures) == 2


def test_searching_again_evaluates_nothing_and_gives_the_same_front(searched, festina):
    out, _ = searched
    before = {path.name: Plan.load(path).key() for path in (out / "plans").iterdir()}
    with Archive(out / "archive.sqlite", read_only=True) as archive:
        count = len(archive)
    status, _, _ = festina("search", "scenes", "--out", out, *SMALL)
    assert status == 0
    with Archive(out / "archive.sqlite", read_only=True) as archive:
        assert len(archive) == count
    assert {path.name: Plan.load(path).key() for path in (out / "plans").iterdir()} == before


def test_a_folder_of_another_search_is_refused(searched, festina):
    out, _ = searched
    fails(festina("search", "scenes", "--out", out, *SMALL[:-4], "--steps", "6"), "other", "steps")


def test_a_corrupt_archive_is_refused_and_left_alone(festina, tmp_path):
    (tmp_path / "archive.sqlite").write_bytes(b"not a database, but somebody's thesis" * 100)
    fails(festina("search", "scenes", "--out", tmp_path, *SMALL), "archive.sqlite")
    assert (tmp_path / "archive.sqlite").read_bytes().startswith(b"not a database")


def test_ctrl_c_in_a_search_keeps_the_archive_and_the_same_command_goes_on(tmp_path, searched):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "festina", "search", "scenes", "--out", str(out), *SMALL]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run started in the background ignores Ctrl-C and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "archive.sqlite").exists():
            with Archive(out / "archive.sqlite", read_only=True) as archive:
                if len(archive) >= 3:
                    break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert not (out / "page.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    uninterrupted, _ = searched
    for path in (uninterrupted / "plans").iterdir():
        assert Plan.load(out / "plans" / path.name).key() == Plan.load(path).key()


def test_front_picks_and_saves_the_best_plan(searched, festina, tmp_path):
    out, _ = searched
    saved = tmp_path / "best.json"
    status, shown, _ = festina("front", out, "--fewer-macs", "1.05", "--save", saved)
    assert status == 0
    page = FrontPage.load(out / "page.json")
    allowed = [p for p in page.of_kind("front") if page.uncached.macs / p.macs >= 1.05]
    best = max(allowed, key=lambda point: (point.reward, -point.macs))
    assert best.name in shown
    assert Plan.load(saved).key() == best.plan.key()
    fails(festina("front", out, "--fewer-macs", "1e6"), "none of the", "times fewer MACs")
    fails(festina("front", tmp_path), "no finished search")


def test_front_prints_markdown(searched, festina):
    status, shown, _ = festina("front", searched[0], "--markdown")
    assert status == 0
    assert shown.startswith("| Run |")


@pytest.mark.parametrize("words", [["search", "--out", "OUT"], ["search", "--prompts", "EMPTY", "--out", "OUT"]])
def test_no_prompts_is_an_error(festina, model, tmp_path, words):
    (tmp_path / "empty.txt").write_text("\n\n")
    words = [{"OUT": tmp_path / "out", "EMPTY": tmp_path / "empty.txt"}.get(word, word) for word in words]
    fails(festina(words[0], model, *words[1:]), "prompts")


def test_a_search_without_a_reward_says_which_there_are(festina, model, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {n}" for n in range(8)))
    fails(festina("search", model, "--prompts", prompts, "--out", tmp_path / "out"), "no --reward", "clip:")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that nobody can write to")
def test_an_unwritable_folder_is_one_line(festina):
    fails(festina("search", "scenes", "--out", "/proc/festina", *SMALL), "/proc/festina")
    fails(
        festina("generate", "scenes", "a large red circle on a white background", "--out", "/proc/festina"),
        "/proc/festina",
    )


def test_wrong_models_are_one_line(festina, tmp_path, plan):
    fails(festina("sites", "no-such-model"), "no such model", "scenes")
    fails(festina("sites", tmp_path), "model_index.json")
    fails(festina("generate", "./nowhere", "a prompt"), "no such model")


def test_sites_lists_the_groups(festina):
    status, out, _ = festina("sites", "scenes")
    assert status == 0
    for line in ("transformer_blocks.0..7:residual", "attn1 (self-attention)", "ff (feed-forward)", "not cacheable"):
        assert line in out
    status, out, _ = festina("sites", "scenes", "--depth", "blocks")
    assert status == 0
    assert "transformer_blocks.7:residual" in out
    assert "attn1" not in out
    status, out, _ = festina("sites", "scenes", "--depth", "components", "--prompt", "a large red circle")
    assert out.count("attn2 (cross-attention)") == 8


def test_generate_side_by_side(festina, plan, tmp_path):
    prompts = ["a large red circle on a white background", "a small blue ring on a black background"]
    status, out, _ = festina("generate", "scenes", *prompts, "--plan", plan, "--compare", "--out", tmp_path / "p")
    assert status == 0
    assert "4 steps, 4 calls" in out
    assert "times fewer" in out
    assert Image.open(tmp_path / "p" / "side-by-side.png").size == (128, 128)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "00-plan.png",
        "00-uncached.png",
        "01-plan.png",
        "01-uncached.png",
        "prompts.txt",
        "side-by-side.png",
    ]


def test_generate_refuses_what_does_not_fit(festina, plan, model, tmp_path):
    prompt = "a large red circle on a white background"
    fails(
        festina("generate", "scenes", prompt, "--plan", plan, "--steps", "6", "--out", tmp_path), "4 steps", "convert"
    )
    fails(festina("generate", "scenes", prompt, "--compare", "--out", tmp_path), "--compare needs a --plan")
    fails(
        festina("generate", model, prompt, "--plan", plan, "--out", tmp_path / "x"),
        "not in this PixArtTransformer2DModel",
    )
    fails(festina("generate", "scenes", prompt, "--plan", tmp_path / "none.json"), "cannot read the plan")
    fails(festina("generate", "scenes", prompt, "--plan", "scenes/quickest"), "no shipped plan")
    truncated = tmp_path / "truncated.json"
    truncated.write_text(plan.read_text()[:200])
    fails(festina("generate", "scenes", prompt, "--plan", truncated), "not a plan file")


def test_plan_show_and_check(festina, plan, model):
    status, out, _ = festina("plan", "show", plan)
    assert status == 0
    assert "  2 0.500 ........................ 0/24" in out
    assert "  3 0.250 ######################## 24/24" in out
    status, out, _ = festina("plan", "check", plan, "--model", "scenes", "--steps", "4")
    assert status == 0
    assert "valid, 4 steps, 24 sites, fits scenes" in out
    fails(festina("plan", "check", plan, "--model", model), "not in this PixArtTransformer2DModel")
    fails(festina("plan", "check", plan, "--steps", "20"), "4 steps, wanted 20")


def test_plan_convert_there_and_back(festina, plan, tmp_path):
    schedule, back, mask = tmp_path / "ecad.json", tmp_path / "back.json", tmp_path / "mask.txt"
    assert festina("plan", "convert", plan, "--to", "ecad", "--out", schedule)[0] == 0
    assert "cache_schedule" in json.loads(schedule.read_text())
    assert festina("plan", "convert", schedule, "--out", back)[0] == 0
    assert Plan.load(back).key() == Plan.load(plan).key()
    assert festina("plan", "convert", plan, "--to", "mask", "--out", mask)[0] == 0
    assert json.loads(mask.read_text()) == [1, 1, 0, 1]
    assert festina("plan", "convert", plan, "--steps", "8", "--out", back)[0] == 0
    assert len(Plan.load(back).steps) == 8
    fails(festina("plan", "convert", plan, "--share", "0.5", "--out", back), "--share")
    fails(festina("plan", "convert", tmp_path / "nothing", "--out", back), "cannot read")
    fails(festina("plan", "convert", plan, "--out", tmp_path / "no" / "folder.json"), "cannot write")


def test_an_ecad_schedule_runs(festina, tmp_path, plan):
    schedule = tmp_path / "schedule.json"
    schedule.write_text(to_ecad(Plan.load(plan)))
    assert festina("plan", "convert", schedule, "--out", tmp_path / "plan2.json")[0] == 0
    assert festina("plan", "check", tmp_path / "plan2.json", "--model", "scenes")[0] == 0


def test_zoo_train_refuses_what_it_cannot_do(festina, tmp_path):
    fails(festina("zoo", "train", "mountains"), "no recipe for 'mountains'", *SHIPPED)
    (tmp_path / "name").write_text("scenes-unet")
    fails(festina("zoo", "train", "scenes-flux", "--work", tmp_path, "--out", tmp_path), "holds a training with other")


@pytest.mark.parametrize("name", SHIPPED)
def test_zoo_train_takes_the_settings_of_the_recipe(festina, monkeypatch, tmp_path, name):
    from festina.zoo import train

    asked = []
    monkeypatch.setattr(train, "train", lambda *words: asked.append(words))
    status, out, _ = festina("zoo", "train", name)
    assert status == 0
    assert f"wrote {Path('runs') / name}/pipeline" in out
    options = ("--compile", "--denoiser-steps", "7", "--out", tmp_path / "o", "--work", tmp_path / "w")
    assert festina("zoo", "train", name, *options)[0] == 0
    (first, usual, work, out_folder, device), (second, own, own_work, own_out, _) = asked
    assert (first, second, device.type) == (name, name, "cpu")
    assert usual == train.recipe(name).settings
    assert (work, out_folder) == (Path("runs") / f"{name}-work", Path("runs") / name)
    assert own == replace(usual, compile=True, denoiser_steps=7)
    assert (own_work, own_out) == (tmp_path / "w", tmp_path / "o")


def test_a_full_disk_is_one_line_and_leaves_the_archive_whole(monkeypatch, festina, searched, tmp_path):
    import errno

    out, _ = searched

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    page = (out / "page.json").read_bytes()
    monkeypatch.setattr("os.fsync", full)
    fails(festina("search", "scenes", "--out", out, *SMALL), "No space left")
    monkeypatch.undo()
    assert (out / "page.json").read_bytes() == page
    with Archive(out / "archive.sqlite", read_only=True) as archive:
        assert len(archive) > 3


def test_plans_that_ship_are_shown_by_name(festina):
    status, out, _ = festina("plan", "show", "scenes/fast")
    assert status == 0
    assert out.startswith("search for PixArtTransformer2DModel: 20 steps")
    status, _, err = festina("plan", "check", "scenes/quick")
    assert status == 1
    assert "no shipped plan 'scenes/quick'" in err
