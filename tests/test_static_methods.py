"""Step masks and skipped blocks; and what the pages of the methods show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pipelines.unets import PIPELINES as UNETS
from pipelines.videos import PIPELINES as VIDEOS
from tiny import flux_pipeline, flux_transformer, generate, pixart_pipeline, pixart_transformer
from watched import steps_run

import festina
from festina import FestinaError, Plan
from festina.formats import from_step_mask
from festina.methods import block_skipping, step_mask
from festina.sites import stack_runs

PAGES = Path(__file__).parents[1] / "docs" / "methods"
PIPES = {
    "fora": pixart_pipeline,
    "taylorseer": pixart_pipeline,
    "pab": VIDEOS["latte"].build,
    "deepcache": UNETS["sd2"].build,
    "faster_diffusion": UNETS["sd2"].build,
    "step_mask": flux_pipeline,
    "block_skipping": flux_pipeline,
}


@pytest.mark.parametrize("method", sorted(PIPES))
def test_the_code_of_a_page_makes_plans_of_the_method(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = PAGES / f"{method.replace('_', '-')}.md"
    code = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert code
    names = {"pipe": PIPES[method]()}
    for block in code:
        exec(block, names)
    plans = {name: value for name, value in names.items() if isinstance(value, Plan)}
    assert {plan.method for plan in plans.values()} == {method}
    assert len({plan.key() for plan in plans.values()}) == len(plans)
    assert Plan.load(tmp_path / "plan.json") == plans["plan"]


def test_a_mask_serves_all_but_the_ends_of_the_stack():
    pipe = flux_pipeline()
    plan = step_mask(pipe, [1, 1, 0, 1, 0, 0], first=1, last=1)
    assert plan.sites == stack_runs(pipe.transformer, 1, 1)
    assert plan.sites == ("transformer_blocks.1:residual", "single_transformer_blocks.0:residual")
    ends = ("transformer_blocks.0", "single_transformer_blocks.1")
    between = ("transformer_blocks.1", "single_transformer_blocks.0")
    ran = steps_run(pipe, plan, (*ends, *between), lambda: generate(pipe, steps=6))
    assert ran == dict.fromkeys(ends, tuple(range(6))) | dict.fromkeys(between, (0, 1, 3))


def test_a_mask_is_the_one_of_the_format():
    denoiser, mask = flux_transformer(), [1, 0, 0, 1, 0]
    plan = step_mask(denoiser, mask)
    assert plan.key() == from_step_mask(mask, plan.denoiser, plan.sites).key()
    assert step_mask(denoiser, [True, False, False, True, False]) == plan
    assert plan.settings == {"mask": mask, "first": 0, "last": 0}
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("mask", "ends", "message"),
    [
        ([], (0, 0), "the mask is"),
        ([0, 1], (0, 0), "the first step computes"),
        ([1, 2], (0, 0), "a 0 or 1 per step"),
        ([1, 0], (2, 2), "at least one to remain"),
        ([1, 0], (-1, 0), "at least one to remain"),
    ],
)
def test_masks_that_are_refused(mask, ends, message):
    with pytest.raises(FestinaError, match=message):
        step_mask(flux_transformer(), mask, *ends)
    with pytest.raises(FestinaError, match="has no stack of blocks"):
        step_mask(UNETS["sd2"].build(), [1, 0])


def test_skipped_blocks_do_not_run():
    pipe = flux_pipeline()
    plan = block_skipping(pipe, 4, {1: [0, 3], 3: [3]})
    paths = [f"{stack}.{n}" for stack in ("transformer_blocks", "single_transformer_blocks") for n in range(2)]
    assert plan.sites == tuple(f"{path}:residual" for path in paths)
    ran = steps_run(pipe, plan, paths, lambda: generate(pipe, steps=4))
    assert list(ran.values()) == [(0, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 2)]


def test_skipping_is_the_model_without_the_block():
    """In a step that skips a block the denoiser is one that was built without it, and nothing is stored."""
    short, long = pixart_transformer(2), pixart_transformer(3)
    keep = {name: value for name, value in long.state_dict().items() if not name.startswith("transformer_blocks.1.")}
    short.load_state_dict({name.replace("blocks.2.", "blocks.1."): value for name, value in keep.items()})
    given = {"encoder_hidden_states": torch.randn(1, 5, 16), "timestep": torch.tensor([500]), "return_dict": False}
    given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    sample = torch.randn(1, 4, 8, 8)
    with torch.no_grad(), festina.accelerate(long, block_skipping(long, 2, [[], [1]])) as run:
        run.start(2)
        whole = long(sample, **given)[0]
        run.next_step()
        assert len(run.store) == 0
        assert torch.equal(long(sample, **given)[0], short(sample, **given)[0])
        run.next_step()
    assert not torch.equal(whole, short(sample, **given)[0])


def test_lists_and_a_mapping_say_the_same():
    denoiser = pixart_transformer()
    lists = block_skipping(denoiser, 4, [[], [2], [], [0, 1]])
    assert lists == block_skipping(denoiser, 4, {3: (0, 1), 1: (2,)})
    assert lists.settings == {"skipped": {"1": [2], "3": [0, 1]}}
    assert [step.actions for step in lists.steps] == ["CCC", "CCS", "CCC", "SSC"]
    assert Plan.from_json(lists.to_json()) == lists


@pytest.mark.parametrize(
    ("skipped", "message"),
    [
        ([[], []], "2 lists of skipped blocks for 4 steps"),
        ({4: [0]}, "a step that skips blocks is 4"),
        ({1: [3]}, "a skipped block is 3"),
        ({1: [-1]}, "a skipped block is -1"),
        ({0: [1]}, "the first step skips"),
    ],
)
def test_lists_that_are_refused(skipped, message):
    with pytest.raises(FestinaError, match=message):
        block_skipping(pixart_transformer(), 4, skipped)


@pytest.mark.parametrize("make", [lambda pipe: step_mask(pipe, [1] * 4), lambda pipe: block_skipping(pipe, 4, {})])
def test_nothing_served_is_the_untouched_run(make):
    pipe = pixart_pipeline()
    plan = make(pipe)
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 4).key()
    assert plan.sampler == "DPMSolverMultistepScheduler"
    untouched = generate(pipe)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe), untouched)
