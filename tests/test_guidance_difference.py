"""The difference of guidance, scaled or used again: what the pipeline is given, which calls run, what is kept."""

import pytest
import torch
from guided import Bare, ran, table
from lifecycle import Loop, all_compute, random_plan, snapshot
from pipelines import images, unets
from tiny import dit_pipeline, flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace
from festina.executor.attach import denoisers_of
from festina.executor.difference import half_of, joined
from festina.methods import fora, guidance_interval, guidance_reuse, guidance_table
from festina.methods.guidance import guided

STEPS = 4
TWO_CALLS = {"negative_prompt": ["a black background"]}


def _close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def _tiny(build, name):
    """Draws by a tiny pipeline at a strength of guidance; `name` is that of the argument."""
    pipe = build()
    others = TWO_CALLS if name == "true_cfg_scale" else {}
    return pipe, lambda scale: generate(pipe, steps=STEPS, **{name: scale}, **others)


def _real(build, call):
    pipe = build()
    return pipe, lambda scale: pipe(**call(STEPS, 1) | {"guidance_scale": scale}).images


PIPELINES = {
    "pixart": lambda: _tiny(pixart_pipeline, "guidance_scale"),
    "flux": lambda: _tiny(flux_pipeline, "true_cfg_scale"),
    "sd2": lambda: _real(unets.build_sd2, unets.call_text),
    "sd3": lambda: _real(images.build_sd3, images.call_text),
    "dit": lambda: _tiny(dit_pipeline, "guidance_scale"),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_factor_is_another_strength(name):
    pipe, draw = PIPELINES[name]()
    plain, weaker, before = draw(5.0), draw(3.0), snapshot(pipe)
    for factor, wanted in ((0.5, weaker), (1.5, draw(7.0))):
        with festina.accelerate(pipe, guidance_table(pipe, [factor] * STEPS)):
            _close(draw(5.0), wanted)
    assert not torch.allclose(plain, weaker, rtol=1e-3, atol=1e-3)
    # At 0 both run and one of them is heard: as if it alone ran.
    denoiser = denoisers_of(pipe)[0][1]
    with festina.accelerate(pipe, table(denoiser, "c" * STEPS)):
        unguided = draw(5.0)
    with festina.accelerate(pipe, table(denoiser, "a" * STEPS, factors=[0.0] * STEPS)) as run:
        _close(draw(5.0), unguided)
        assert run.report().macs == run.report().macs_uncached
    # At 1 nothing is touched.
    with festina.accelerate(pipe, guidance_table(pipe, [1.0] * STEPS)):
        assert torch.equal(draw(5.0), plain)
    assert [sorted(each) for each in snapshot(pipe)] == [sorted(each) for each in before]


@pytest.mark.parametrize("calls", [1, 2])
def test_what_the_pipeline_is_given(calls):
    model = pixart_transformer()
    loop = Bare(model, calls)
    plain = loop(None, 6)
    factors = [1.0, 1.0, 2.0, 0.5, 0.25, 1.0]
    with festina.accelerate(model, table(model, "aadadd", factors=factors)) as run:
        seen = ran(model, run)
        found = loop(run, 6)
        again = loop(run, 6)
        assert len(run.store) == run.store.bytes == 0
    both, one = ([(2,)], [(1,)]) if calls == 1 else ([(1,), (1,)], [(1,)])
    rows = [(step, *each) for step, kind in enumerate("aadadd") for each in (both if kind == "a" else one)]
    assert seen == rows * 2
    for step in (0, 1):
        assert torch.equal(found[step][0], plain[step][0])
        assert torch.equal(found[step][1], plain[step][1])
    newest = {2: 1, 4: 3, 5: 3}
    for step in range(2, 6):
        c, _ = plain[step]
        kept, other = plain[newest.get(step, step)]
        _close(found[step][0], c)
        _close(found[step][1], c - factors[step] * (kept - other))
    assert all(
        torch.equal(one, other) for pair in zip(found, again, strict=True) for one, other in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("calls", [1, 2])
def test_a_difference_of_the_same_latents_is_as_if_both_ran(calls):
    model = pixart_transformer()
    loop = Bare(model, calls, same=True)
    ((c, u), *_) = loop(None, 1)
    with festina.accelerate(model, guidance_reuse(model, 3, 3)) as run:
        found = loop(run, 3)
    for mine, other in found:
        _close(mine, c)
        _close(other, u)


@pytest.mark.parametrize("calls", [1, 2])
def test_with_replays_the_factor_goes_on_the_sum(calls):
    """What is replayed is guided as its step says; its difference is as much older as its answer."""
    model = pixart_transformer()
    loop = Bare(model, calls)
    plan = table(model, "aaddda", factors=[1.0, 0.5, 1.0, 1.0, 3.0, 1.0]).replaying({1: 0.8, 3: 0.9, 4: 1.1})
    assert [step.branches for step in plan.canonical().steps][1:5] == ["all", "difference", "difference", "difference"]
    plain = loop(None, 6)
    with festina.accelerate(model, plan) as run:
        seen = ran(model, run)
        found = loop(run, 6)
        assert len(run.store) == 0
    assert [step for step, _ in seen] == [0, 2, 5] if calls == 1 else [0, 0, 2, 5, 5]
    (c0, u0), (c2, _) = plain[0], plain[2]
    wanted = {
        1: (0.8 * c0, 0.8 * (c0 - 0.5 * (c0 - u0))),
        2: (c2, c2 - (c0 - u0)),
        3: (0.9 * c2, 0.9 * (c2 - (c0 - u0))),
        4: (1.1 * c2, 1.1 * (c2 - 3 * (c0 - u0))),
        5: plain[5],
    }
    for step, (mine, other) in wanted.items():
        _close(found[step][0], mine)
        _close(found[step][1], other)


@pytest.mark.parametrize("calls", [1, 2])
def test_with_a_cache_schedule_the_branch_goes_on_with_its_values(calls):
    """Step 2 uses what was stored for both; step 3, the first for both again, computes."""
    model = pixart_transformer()
    loop = Bare(model, calls)
    plan = guided(fora(model, 5, 4), branches=["all", "all", "difference", "all", "conditional"])
    with festina.accelerate(model, fora(model, 5, 4)) as run:
        cached = loop(run, 5)
    with festina.accelerate(model, plan) as run:
        found, report = loop(run, 5), run.report()
    plain = loop(None, 5)
    assert set(report.computed.values()) == {3 * calls - (calls - 1)}
    _close(found[2][0], cached[2][0])
    _close(found[2][1], cached[2][0] - (cached[1][0] - cached[1][1]))
    _close(found[3][1], plain[3][1])


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("rows", ["aadada", "addcdda", "aamda"])
def test_price_and_bytes_are_those_predicted(calls, seed, rows):
    model = pixart_transformer()
    loop, steps = Bare(model, calls), len(rows)
    plan = all_compute(model, steps) if seed is None else random_plan(model, seed, steps)
    plan = guided(plan, branches=[step.branches for step in table(model, rows).steps]).replaying({1: 0.9, 3: 1.1})
    held = []
    with festina.accelerate(model, plan) as run:
        loop.on_step = lambda step: held.append(run.store.bytes)
        loop(run, steps)
        report, record = run.report(), next(each for each in run.calls.values() if each.asked)
    traced = trace(model, Call(record.call.args, record.call.kwargs))
    assert report.macs == calls * plan_macs(plan, mac_table(model, traced)).total
    assert report.peak_bytes == held_bytes(plan, model, traced, 4, calls)
    assert held[-1] == 0


@pytest.mark.parametrize("calls", [1, 2])
def test_bytes_of_a_difference_by_hand(calls):
    model = pixart_transformer()
    loop, held = Bare(model, calls), []
    with festina.accelerate(model, table(model, "aaddcda")) as run:
        loop.on_step = lambda step: held.append(run.store.bytes)
        loop(run, 7)
        report, record = run.report(), next(each for each in run.calls.values() if each.asked)
    answer = 4 * 8 * 8 * 4  # channels x height x width x bytes
    assert held == [0, *[answer] * 4, 0, 0]
    assert (
        report.peak_bytes == answer == held_bytes(table(model, "aaddcda"), model, trace(model, record.call), 4, calls)
    )


@pytest.mark.parametrize("calls", [1, 2])
def test_a_run_that_begins_where_there_is_no_difference_runs_both(calls):
    model = pixart_transformer()
    loop = Bare(model, calls)
    plain = loop(None, 5)
    with festina.accelerate(model, table(model, "adddd", factors=[1.0, 1.0, 2.0, 1.0, 1.0])) as run:
        seen = ran(model, run)
        found = loop(run, 5, begin=2)
        assert len(run.store) == 0
    assert [step for step, _ in seen] == [2, 3, 4] if calls == 1 else [2, 2, 3, 4]
    assert [rows for _, rows in seen] == ([2, 1, 1] if calls == 1 else [1] * 4)
    c, u = plain[2]
    _close(found[0][1], c - 2 * (c - u))
    _close(found[1][1], plain[3][0] - (c - u))


def test_a_first_step_of_unknown_place_is_guided_as_the_pipeline_does():
    loop = Loop(pixart_transformer(), images.build_sd3().scheduler)
    loop.calls, loop.hidden = [["cond", "uncond"]], True
    plan, sizes = table(loop.transformer, "adddad", factors=[0.5] * 6), []
    loop.on_step = lambda step: sizes.append(run.store.bytes)
    with festina.accelerate(loop, plan) as run:
        seen = ran(loop.transformer, run)
        first = loop(6)
        answers = list(loop.seen)
        assert [step for step, _ in seen] == [6, 6, 1, 2, 3, 4, 4, 5]
        whole = 4 * 8 * 8 * 4  # channels x height x width x bytes
        assert sizes == [whole, whole, whole, 0, whole, 0]
        assert torch.equal(loop(6), first)
    # In step 1 half of what lay between both in step 0, which is as it was.
    _close(answers[3], answers[2] - 0.5 * (answers[0] - answers[1]))
    loop(6)
    assert torch.equal(answers[1], loop.seen[1])


@pytest.mark.parametrize("make", [pixart_pipeline, flux_pipeline])
def test_a_run_without_guidance_is_left_alone(make):
    pipe, call = make(), {"prompts": ["a red circle", "a blue star"]}
    call |= {"guidance_scale": 1.0} if make is pixart_pipeline else {}
    plain = generate(pipe, steps=6, **call)
    denoiser = denoisers_of(pipe)[0][1]
    with festina.accelerate(pipe, table(denoiser, "adadda", factors=[2.0, 0.5, 1.0, 2.0, 3.0, 0.0])) as run:
        assert torch.equal(generate(pipe, steps=6, **call), plain)
        assert run.report().peak_bytes == 0


def test_two_pictures_are_as_two_runs_of_one():
    pipe = pixart_pipeline()
    plan = table(pipe.transformer, "aadda", factors=[1.0, 1.5, 1.0, 2.0, 0.5])
    words = ["a red circle", "a blue star on a grey background"]
    with festina.accelerate(pipe, plan):
        both = generate(pipe, words, steps=5)
        alone = [generate(pipe, [word], steps=5, seed=seed) for seed, word in enumerate(words)]
    _close(both, torch.cat(alone))


def test_only_the_interval_runs_twice_as_much():
    pipe = pixart_pipeline()
    with festina.accelerate(pipe, guidance_interval(pipe, 5, 1, 2)) as run:
        seen = ran(pipe.transformer, run)
        generate(pipe, steps=5)
    assert seen == [(0, 1), (1, 2), (2, 2), (3, 1), (4, 1)]


def test_an_exception_midway_leaves_nothing_behind():
    model = pixart_transformer()
    loop = Bare(model, 2)

    def stop(step):
        if step == 1:
            raise KeyboardInterrupt

    with festina.accelerate(model, guidance_reuse(model, 4, 4)) as run:
        wanted = loop(run, 4)
        loop.on_step = stop
        with pytest.raises(KeyboardInterrupt):
            loop(run, 4)
        assert run.store.bytes > 0, "nobody has told the clock of a bare loop"
        loop.on_step = lambda step: None
        found = loop(run, 4)
        assert len(run.store) == 0
    assert all(
        torch.equal(one, other) for pair in zip(found, wanted, strict=True) for one, other in zip(*pair, strict=True)
    )


def test_halves_of_structures():
    answer = {"a": (torch.arange(4.0), "word"), "b": torch.tensor([1])}
    first, second = half_of(answer, 4, 0), half_of(answer, 4, 1)
    assert (first["a"][0].tolist(), second["a"][0].tolist()) == ([0, 1], [2, 3])
    whole = joined(second, first)
    assert whole["a"][0].tolist() == [2, 3, 0, 1]
    assert whole["a"][1] == "word"
    assert torch.equal(whole["b"], answer["b"])
    with pytest.raises(FestinaError, match=r"in the denoiser's dict there is a tensor of shape \(4,\)"):
        half_of(answer, 2, 0)
    with pytest.raises(FestinaError, match="in the denoiser's str there is no tensor"):
        half_of("nothing", 2, 0)
