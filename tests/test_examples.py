"""Every example runs, and makes what it says."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from calls import Shape, prices
from PIL import Image
from safetensors.torch import load_file

from festina import Plan
from festina.methods import fora
from festina.sites import rows
from festina.zoo import load

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    tested = {"quickstart", "fora_by_hand", "small_search", "bare_denoiser", "own_model"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_quickstart(tmp_path, capsys):
    quickstart = example("quickstart")
    quickstart.main(tmp_path)
    sheet = Image.open(tmp_path / "side-by-side.png")
    assert sheet.size == (64 * len(quickstart.PROMPTS), 128)
    above, below = sheet.crop((0, 0, sheet.width, 64)), sheet.crop((0, 64, sheet.width, 128))
    assert above.tobytes() != below.tobytes()
    assert "served" in capsys.readouterr().out


def test_fora_by_hand(tmp_path, capsys):
    example("fora_by_hand").main(tmp_path, steps=3, interval=2)
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.computed_steps() == (0, 2)
    assert plan.key() == fora(load("scenes"), 3, 2).key()
    assert Image.open(tmp_path / "by-the-plan.png").size == (64, 64)
    shown = capsys.readouterr().out
    assert "computes in steps (0, 2); the same run as festina.methods.fora: True" in shown
    assert "48 site calls computed, 24 served" in shown


def test_small_search(tmp_path, capsys):
    example("small_search").main(tmp_path, population=4, generations=2, prompts=2, steps=4)
    best = Plan.load(tmp_path / "best.json")
    plans = [Plan.load(path) for path in sorted((tmp_path / "plans").glob("*.json"))]
    assert best in plans
    macs = {figure.name: figure.value for figure in best.measured}["multiply-accumulates"]
    # Two rows a picture under guidance, 8 x 8 tokens, captions padded to 20.
    assert 2 * macs <= 4 * prices(load("scenes").transformer, Shape(2, 64, 20)).full.total
    shown = capsys.readouterr().out
    assert shown.count("times fewer MACs") == len(plans) + 1
    assert "  1.00 times fewer MACs" in shown


def test_bare_denoiser(tmp_path, capsys):
    example("bare_denoiser").main(tmp_path)
    made = load_file(tmp_path / "latents.safetensors")
    assert torch.equal(made["all computed"], made["untouched"])
    assert not torch.equal(made["every second step"], made["untouched"])
    assert made["untouched"].isfinite().all()
    shown = capsys.readouterr().out
    assert "8 steps, 16 calls of the denoiser" in shown
    assert "96 site calls computed, 96 served" in shown


def test_own_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rows, "_ROWS", dict(rows._ROWS))
    example("own_model").main(tmp_path)
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.denoiser == "MyDenoiser"
    assert plan.computed_steps() == (0, 2, 4)
    shown = capsys.readouterr().out
    assert "no block with an attention was found in MyDenoiser" in shown
    assert "computing everything gives the same bits: True" in shown
    assert "18 site calls computed, 18 served" in shown


@pytest.mark.parametrize("name", ["quickstart", "fora_by_hand", "small_search", "bare_denoiser", "own_model"])
def test_examples_run_without_arguments(name):
    """`main` needs no argument, and its first one is the folder."""
    signature = inspect.signature(example(name).main)
    signature.bind()
    assert next(iter(signature.parameters)) == "out"
