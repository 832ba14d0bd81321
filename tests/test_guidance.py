"""Leaving a branch of guidance out: half of a batched call or the second of two, and what becomes of stored values."""

from dataclasses import replace

import pytest
import torch
from test_executor import all_compute
from tiny import dit_pipeline, flux_pipeline, generate, pixart_pipeline

import festina
from festina import FestinaError, Plan, Step
from festina.cost import held_bytes, plan_macs, trace
from festina.executor.guidance import halved
from festina.executor.layout import guides_in_one_call
from festina.plan import BRANCHES
from festina.search.pricing import mac_table
from festina.sites import component_sites, find_denoiser

STEPS = 6
TWO_CALLS = {"negative_prompt": ["a black background"], "true_cfg_scale": 3.0}


def leaving_out(pipe, rows, letters=None):
    """A plan of all components: `rows` has one word of BRANCHES per step, `letters` one action per step."""
    denoiser = find_denoiser(pipe)
    sites = tuple(site.name for site in component_sites(denoiser))
    letters = letters or "C" * len(rows)
    steps = tuple(
        Step(1 - index / len(rows), letter * len(sites), branches)
        for index, (branches, letter) in enumerate(zip(rows, letters, strict=True))
    )
    return Plan(type(denoiser).__name__, sites, steps)


def seen_rows(pipe, run):
    """Rows of every call that the denoiser's first layer sees, with its step."""
    found = []
    denoiser = find_denoiser(pipe)
    layer = next(module for module in denoiser.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d))
    handle = layer.register_forward_pre_hook(lambda module, args: found.append((run.clock.step, len(args[0]))))
    return found, handle


def test_half_of_a_batched_call_answers_for_all():
    pipe = pixart_pipeline()
    plan = leaving_out(pipe, ["all", "all", "conditional", "conditional", "all", "conditional"])
    with festina.accelerate(pipe, plan) as run:
        seen, handle = seen_rows(pipe, run)
        generate(pipe, steps=STEPS)
        handle.remove()
        report = run.report()
    assert dict(seen) == {0: 2, 1: 2, 2: 1, 3: 1, 4: 2, 5: 1}
    assert report.calls == STEPS
    assert report.macs_uncached * 9 == report.macs * 12


@pytest.mark.parametrize("make", [pixart_pipeline, dit_pipeline])
def test_without_guidance_from_the_first_step_on_the_picture_is_the_unguided_one(make):
    """At strength 1 a guided pipeline says what the captioned branch says; where it combines, any strength does."""
    pipe = make()
    strong = {"guidance_scale": 7.0}
    plan = leaving_out(pipe, ["conditional"] * STEPS)
    unguided = generate(pipe, steps=STEPS, guidance_scale=1.0)
    with festina.accelerate(pipe, plan):
        found = generate(pipe, steps=STEPS, **strong)
    assert not torch.allclose(generate(pipe, steps=STEPS, **strong), unguided, atol=1e-3)
    torch.testing.assert_close(found, unguided, rtol=1e-4, atol=1e-4)


def test_the_second_of_two_calls_is_answered_by_the_first():
    pipe = flux_pipeline()
    plan = leaving_out(pipe, ["all", "conditional", "conditional", "all", "conditional", "conditional"])
    with festina.accelerate(pipe, plan) as run:
        seen, handle = seen_rows(pipe, run)
        generate(pipe, steps=STEPS, **TWO_CALLS)
        handle.remove()
        report = run.report()
    assert [step for step, _ in seen] == [0, 0, 1, 2, 3, 3, 4, 5]
    assert report.calls == 2 * STEPS
    assert report.macs * 12 == report.macs_uncached * 8
    everywhere = leaving_out(pipe, ["conditional"] * STEPS)
    with festina.accelerate(pipe, everywhere):
        found = generate(pipe, steps=STEPS, **TWO_CALLS)
    torch.testing.assert_close(found, generate(pipe, steps=STEPS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [pixart_pipeline, flux_pipeline])
def test_a_run_without_guidance_is_left_alone(make):
    """There is nothing to leave out: the rows of a call are different pictures."""
    pipe, call = make(), {"prompts": ["a red circle", "a blue star"]}
    call |= {"guidance_scale": 1.0} if make is pixart_pipeline else {}
    plain = generate(pipe, steps=STEPS, **call)
    plan = leaving_out(pipe, ["all", *["conditional"] * (STEPS - 1)])
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe, steps=STEPS, **call), plain)


@pytest.mark.parametrize("branches", ["conditional", "merged"])
@pytest.mark.parametrize("call", [{}, TWO_CALLS])
def test_what_was_stored_goes_on_with_the_branch_that_runs(branches, call):
    """Everything is served from step 2 on: the picture is that of one denoiser answer, made of both values."""
    pipe = flux_pipeline() if call else pixart_pipeline()
    rows = ["all", "all", branches, branches, branches, branches]
    plan = leaving_out(pipe, rows, "CCRRRR")
    held = {}
    with festina.accelerate(pipe, plan) as run:
        last = find_denoiser(pipe)
        site = next(name for name in plan.sites if name.endswith(".ff"))
        stored = []

        def look(module, args, kwargs):
            for branch in run._branches.names():
                for entry in run.store.get(branch, site):
                    stored.append((run.clock.step, branch, entry.value.clone()))

        handle = last.register_forward_pre_hook(look, with_kwargs=True)
        first = generate(pipe, steps=STEPS, **call)
        handle.remove()
        assert torch.equal(generate(pipe, steps=STEPS, **call), first)
        report = run.report()
        held["peak"] = report.peak_bytes
        record = next(record for record in run.calls.values() if record.asked)
    at = {step: [value for when, _, value in stored if when == step] for step in (2, 3)}
    if call:
        one, other = at[2][0], at[2][1]
        wanted = (one + other) / 2 if branches == "merged" else one
        assert len(at[3]) == 2, "one look per call, and one branch is left"
    else:
        unconditional, conditional = at[2][0].chunk(2)
        wanted = (unconditional + conditional) / 2 if branches == "merged" else conditional
    torch.testing.assert_close(at[3][0], wanted)
    denoiser = find_denoiser(pipe)
    assert held["peak"] == held_bytes(plan, denoiser, trace(denoiser, record.call), 4, branches=2 if call else 1)
    macs = plan_macs(plan, mac_table(denoiser, trace(denoiser, record.call)))
    assert report.macs == macs.total * (2 if call else 1)


def test_going_back_to_all_branches_computes_anew():
    pipe = pixart_pipeline()
    plan = leaving_out(pipe, ["all", "conditional", "all", "all", "merged", "conditional"], "CRRRRR")
    assert [step.actions[0] for step in plan.canonical().steps] == list("CRCRRC")
    with festina.accelerate(pipe, plan) as run:
        first = generate(pipe, steps=STEPS)
        assert torch.equal(generate(pipe, steps=STEPS), first)
        assert run.report().computed[plan.sites[0]] == 3


def test_two_pictures_are_as_two_runs_of_one():
    pipe = pixart_pipeline()
    plan = leaving_out(pipe, ["all", "all", *["merged"] * 4], "CCRCRR")
    words = ["a red circle", "a blue star on a grey background"]
    with festina.accelerate(pipe, plan):
        both = generate(pipe, words, steps=STEPS)
        alone = [generate(pipe, [word], steps=STEPS, seed=seed) for seed, word in enumerate(words)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_the_file_keeps_branches_and_the_key_tells_them_apart():
    pipe = pixart_pipeline()
    plan = leaving_out(pipe, ["all", "conditional", "merged"])
    assert Plan.from_json(plan.to_json()) == plan
    keys = {replace(plan, steps=leaving_out(pipe, ["all", "all", one]).steps).key() for one in BRANCHES}
    assert len(keys) == len(BRANCHES)
    assert leaving_out(pipe, ["all"] * 4).key() == all_compute(pipe).key()
    assert [step.branches for step in plan.resample(6).steps] == ["all", "all", *["conditional"] * 2, *["merged"] * 2]
    with pytest.raises(FestinaError, match="branches 'none', none of"):
        leaving_out(pipe, ["none"])


def test_what_is_cut():
    rows = torch.arange(4.0)
    args, kwargs = halved((rows, None), {"a": {"b": rows, "c": torch.ones(3)}, "d": [rows], "t": torch.tensor(1)}, 4, 1)
    assert args[0].tolist() == [2, 3]
    assert kwargs["a"]["b"].tolist() == kwargs["d"][0].tolist() == [2, 3]
    assert kwargs["a"]["c"].tolist() == [1, 1, 1]
    assert kwargs["t"].item() == 1
    assert guides_in_one_call(torch.tensor([1.0, 2.0, 1.0, 2.0]))
    assert not guides_in_one_call(torch.tensor([1.0, 2.0, 1.0]))
    assert not guides_in_one_call(torch.tensor([1.0, 2.0, 1.0, 3.0]))
    assert not guides_in_one_call([torch.ones(2)])
