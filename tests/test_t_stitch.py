"""T-Stitch: which steps are whose, on a plan alone and in a run; and what its page shows."""

import re
from pathlib import Path

import pytest
import torch
from tiny import generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan
from festina.methods import fora, t_stitch
from festina.methods.t_stitch import models_of_steps, stitched
from festina.sites import component_sites
from festina.zoo import load

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "t-stitch.md"


@pytest.fixture(scope="module")
def pipe():
    return pixart_pipeline()


def of(plan):
    """Each step's model by its first letter, the pipeline's own as a dot."""
    return "".join(step.model[:1] or "." for step in plan.steps)


@pytest.mark.parametrize(
    ("steps", "share", "wanted"),
    [
        (10, 0, ".........."),
        (10, 0.05, "s........."),
        (10, 0.1, "s........."),
        (10, 0.3, "sss......."),
        (10, 0.31, "ssss......"),
        (10, 1, "ssssssssss"),
        (7, 0.5, "ssss..."),
        (1, 0.0, "."),
        (1, 1e-3, "s"),
    ],
)
def test_the_first_share_is_the_small_ones(pipe, steps, share, wanted):
    plan = t_stitch(pipe, steps, share)
    assert of(plan) == wanted
    assert plan.models == ({"small"} if "s" in wanted else set())
    assert (plan.method, plan.settings) == ("t_stitch", {"share": share, "model": "small"})
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("steps", [10, 20, 50, 1000])
def test_a_share_of_whole_steps_is_so_many_steps(steps):
    for count in range(steps + 1):
        names = models_of_steps(steps, [("small", count / steps)])
        assert names == ("small",) * count + ("",) * (steps - count)


def test_no_share_is_the_untouched_run(pipe):
    names = [site.name for site in component_sites(pipe.transformer)]
    assert t_stitch(pipe, 6, 0).key() == Plan.computing_all("PixArtTransformer2DModel", names, 6).key()
    assert t_stitch(pipe, 6, 0.5).key() != t_stitch(pipe, 6, 0.5, "other").key()


@pytest.mark.parametrize(
    ("chain", "wanted"),
    [
        ([("tiny", 0.1), ("small", 0.2)], "tss......."),
        ([("small", 0.2), ("tiny", 0.1)], "sst......."),
        ([("tiny", 0.1), ("small", 0.2), ("base", 0.7)], "tssbbbbbbb"),
        ([("tiny", 0), ("small", 0.4)], "ssss......"),
        ((["tiny", 0.25], ["small", 0.25]), "tttss....."),
        ([], ".........."),
    ],
)
def test_several_models_run_one_after_another(pipe, chain, wanted):
    plan = t_stitch(pipe, 10, chain)
    assert of(plan) == wanted
    assert plan.settings == {"share": [list(part) for part in chain]}


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (-0.1, "'small' takes is -0.1; wanted 0 to 1"),
        (1.1, "'small' takes is 1.1; wanted 0 to 1"),
        (float("nan"), "is nan; wanted 0 to 1"),
        (True, "is True; wanted 0 to 1"),
        (None, "is None; wanted 0 to 1"),
        ("0.4", "one of the models is '0'"),
        ([("tiny", 0.5), ("small", 0.6)], r"take 1\.1 of the steps together"),
        ([("small", 0.1), ("small", 0.1)], "'small' comes twice"),
        ([("", 0.1)], "called ''; wanted a text"),
        ([("small",)], "wanted its name and its share"),
    ],
)
def test_a_share_that_is_none_is_refused(pipe, share, message):
    with pytest.raises(FestinaError, match=message):
        t_stitch(pipe, 10, share)


def test_other_knobs_are_checked(pipe):
    with pytest.raises(FestinaError, match="number of steps is 0"):
        t_stitch(pipe, 0, 0.5)
    with pytest.raises(FestinaError, match="called 3; wanted a text"):
        t_stitch(pipe, 4, 0.5, 3)


def test_another_plan_goes_on_after_the_first_steps(pipe):
    plan = stitched(fora(pipe, 8, 2), [("small", 0.4)])
    assert (plan.method, of(plan)) == ("fora", "ssss....")
    computed = stitched(fora(pipe, 8, 2), [("small", 0.3)]).computed_steps()
    assert computed == (4, 6)
    # Its own first step computes, whatever the table says: nothing was stored before.
    assert stitched(fora(pipe, 8, 2), [("small", 0.3)]).canonical().computed_steps() == (3, 4, 6)


def test_each_denoiser_is_called_in_its_steps(pipe):
    models = {"tiny": pixart_transformer(1), "small": pixart_transformer(2)}
    everyone, seen = {"": pipe.transformer, **models}, []
    plan = t_stitch(pipe, 8, [("tiny", 0.25), ("small", 0.5)])
    untouched = generate(pipe, steps=8)
    with festina.accelerate(pipe, plan, models=models) as run:
        handles = [
            model.transformer_blocks[0].register_forward_hook(lambda *_, name=name: seen.append((run.clock.step, name)))
            for name, model in everyone.items()
        ]
        drawn = generate(pipe, steps=8)
        for handle in handles:
            handle.remove()
        assert run.report().models == {"tiny": 2, "small": 4}
    assert seen == list(enumerate(["tiny", "tiny", "small", "small", "small", "small", "", ""]))
    assert not torch.equal(drawn, untouched)
    with festina.accelerate(pipe, t_stitch(pipe, 8, 0.0)):
        assert torch.equal(generate(pipe, steps=8), untouched)


def test_the_page_draws_with_what_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"pipe": load("scenes")}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(block, names)
        if "image" in names and "drawn" not in names:
            names["drawn"] = names["plan"]
    assert Plan.load(tmp_path / "plan.json") == names["drawn"]
    assert of(names["drawn"]) == "s" * 8 + "." * 12
    assert names["image"].size == (64, 64)
    assert of(names["plan"]) == "s" * 8 + "." * 12
    assert names["plan"].method == "fora"
