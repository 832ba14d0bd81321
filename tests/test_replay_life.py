"""Replays in the life of a run: where it begins, what happens midway, who else looks on, and which samplers can."""

import copy
import inspect

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from lifecycle import Loop, all_compute, snapshot
from pipelines import images
from test_replay import ONE, STEPS, calls_of, flow_loop
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError


def attributes(pipe):
    """Names of the attributes of everything Festina may touch; their values change with every run."""
    return [sorted(each) for each in snapshot(pipe)]


def test_a_run_that_begins_in_a_replayed_step_computes_it():
    loop = Loop(pixart_transformer(), EulerDiscreteScheduler())
    plan = all_compute(loop, STEPS).replaying({3: 1.0, 4: 1.0, 6: 1.0})
    pictures = {}
    with festina.accelerate(loop, plan) as run:
        seen = calls_of(loop.transformer, run)
        for hidden, tell, begin, steps in (
            (False, True, 3, [3, 5, 7]),
            (False, False, 3, [3, 5, 7]),
            (False, False, 5, [5, 7]),
            # Where it begins is known when the first step has ended: until then it is the one behind the last.
            (True, False, 3, [8, 5, 7]),
            (True, False, 4, [8, 5, 7]),
            (True, False, 5, [8, 7]),
        ):
            loop.hidden = hidden
            seen.clear()
            found = loop(STEPS, begin, tell=tell)
            assert seen == steps, (hidden, begin)
            assert len(run.store) == run.store.bytes == 0
            assert torch.equal(pictures.setdefault(begin, found), found)


def test_a_second_expert_has_nothing_to_replay():
    loop = Loop(pixart_transformer(), FlowMatchEulerDiscreteScheduler(), pixart_transformer())
    loop.boundary = 4
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying({3: 1.0, 4: 1.0, 6: 1.0})) as run:
        first, second = calls_of(loop.transformer, run), calls_of(loop.transformer_2, run)
        loop(STEPS)
        assert len(run.store) == 0
    assert (first, second) == ([0, 1, 2], [4, 5, 7])


def test_other_rows_midway_have_nothing_to_replay():
    loop = flow_loop()
    with festina.accelerate(loop, all_compute(loop, 4).replaying({1: 1.0, 2: 1.0})) as run:
        seen = calls_of(loop.transformer, run)
        loop.scheduler.set_timesteps(4)
        with torch.no_grad():
            for step, time in enumerate(loop.scheduler.timesteps):
                rows = 1 if step < 2 else 2
                text = loop.conditioning("cond", rows)
                out = loop.transformer(
                    torch.ones(rows, 4, 8, 8), encoder_hidden_states=text, timestep=time.expand(rows)
                )
                loop.scheduler.step(out.sample, time, torch.ones(rows, 4, 8, 8))
    assert seen == [0, 2, 3]


@pytest.mark.parametrize("build", [pixart_pipeline, flux_pipeline])
def test_pipelines_of_either_guidance(build):
    """PixArt guides in one call of two rows, FLUX in two; callbacks see every step."""
    pipe = build()
    call = {"negative_prompt": ["black"], "true_cfg_scale": 2.0} if build is flux_pipeline else {}
    plain = generate(pipe, steps=6, **call)
    before, signature = attributes(pipe), inspect.signature(pipe.scheduler.step)
    told = []
    if build is flux_pipeline:
        call["callback_on_step_end"] = lambda pipe, step, time, tensors: told.append(step) or tensors
    with festina.accelerate(pipe, all_compute(pipe, 6).replaying({3: 1.0, 5: 0.9})) as run:
        assert inspect.signature(pipe.scheduler.step) == signature
        found = generate(pipe, steps=6, **call)
        report = run.report()
        assert torch.equal(generate(pipe, steps=6, **call), found)
    each = 2 if build is flux_pipeline else 1
    assert (report.steps, report.calls, sum(report.shapes.values())) == (6, 6 * each, 4 * each)
    assert told == ([*range(6)] * 2 if told else [])
    assert not torch.allclose(found, plain, atol=1e-4)
    assert attributes(pipe) == before
    call.pop("callback_on_step_end", None)
    assert torch.equal(generate(pipe, steps=6, **call), plain)


def test_runs_of_other_numbers_of_steps_follow_each_other():
    loop = flow_loop()
    plans = {steps: all_compute(loop, steps).replaying({3: 0.95}) for steps in (5, 9)}
    alone = {}
    for steps, plan in plans.items():
        with festina.accelerate(loop, plan):
            alone[steps] = loop(steps)
    with festina.accelerate(loop, plans[9]):
        assert torch.equal(loop(9), alone[9])
        with pytest.raises(FestinaError, match="the plan has 9 steps, this run 5"):
            loop(5)
        assert torch.equal(loop(9), alone[9])


def test_a_copy_of_the_scheduler_does_as_the_scheduler():
    loop = flow_loop()
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying(ONE)):
        wanted = loop(STEPS)
        loop.on_step = lambda step: copy.deepcopy(loop.scheduler)
        assert torch.equal(loop(STEPS), wanted)
        loop.drive = lambda: copy.deepcopy(loop.scheduler)
        assert torch.equal(loop(STEPS), wanted)


def test_what_a_pipeline_does_with_an_answer_stays_its_own():
    """An answer that is changed in place is not what is replayed, and neither is a replayed one."""
    loop = flow_loop()
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying({3: 1.0, 4: 1.0})):
        loop(STEPS)
        first = [out.clone() for out in loop.seen]
        loop.on_step = lambda step: loop.seen[-1].zero_()
        loop(STEPS)
    assert torch.equal(first[2], first[3])
    assert torch.equal(first[2], first[4])
    assert not any(out.any() for out in loop.seen)


@pytest.mark.parametrize("at", [3, 4])
def test_an_error_leaves_nothing_behind(at):
    loop = flow_loop()
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying(ONE)) as run:
        wanted = loop(STEPS)

        def fail(step, call):
            if step == at:
                raise KeyboardInterrupt

        loop.on_call = fail
        with pytest.raises(KeyboardInterrupt):
            loop(STEPS)
        loop.on_call = lambda step, call: None
        assert torch.equal(loop(STEPS), wanted)
        assert len(run.store) == run.store.bytes == 0


def test_a_plan_that_only_replays_wraps_no_module():
    pipe = pixart_pipeline()
    before = [dict(vars(module)) for module in pipe.transformer.transformer_blocks.modules()]
    with festina.accelerate(pipe, all_compute(pipe).replaying({2: 1.0})):
        assert [dict(vars(module)) for module in pipe.transformer.transformer_blocks.modules()] == before


def test_a_denoiser_that_returns_an_object():
    """DiT's pipeline takes the answer out of an output class, where others ask for a tuple."""
    tiny = images.PIPELINES["dit"]
    pipe = tiny.build()
    steps = len(all_entries(pipe, tiny))
    with festina.accelerate(pipe, all_compute(pipe, steps).replaying({2: 1.0})) as run:
        first = tiny.output(pipe(**tiny.call(4, 1))).clone()
        assert sum(run.report().shapes.values()) < run.report().calls
        assert torch.equal(tiny.output(pipe(**tiny.call(4, 1))), first)


def all_entries(pipe, tiny):
    pipe(**tiny.call(4, 1))
    return pipe.scheduler.timesteps


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("HeunDiscreteScheduler", {}, "calls the denoiser 2 times a step"),
        ("KDPM2DiscreteScheduler", {}, "calls the denoiser 2 times a step"),
        ("EulerAncestralDiscreteScheduler", {}, "adds fresh noise in each step"),
        ("DDPMScheduler", {}, "adds fresh noise"),
        ("LCMScheduler", {}, "adds fresh noise"),
        ("TCDScheduler", {}, "adds fresh noise"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "adds fresh noise"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "adds fresh noise"),
        ("PNDMScheduler", {}, "skip_prk_steps=True"),
        ("VQDiffusionScheduler", {"num_vec_classes": 8}, "draws tokens"),
    ],
)
def test_samplers_that_cannot_replay_are_refused(name, config, reason):
    loop = Loop(pixart_transformer(), getattr(diffusers, name)(**config))
    before = snapshot(loop)
    with pytest.raises(FestinaError, match=reason):
        festina.apply(loop, all_compute(loop, STEPS).replaying({3: 1.0}))
    assert snapshot(loop) == before
    with festina.accelerate(loop, all_compute(loop, STEPS)):
        pass


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "PNDMScheduler"]
)
def test_samplers_that_can(name):
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    loop = Loop(pixart_transformer(), getattr(diffusers, name)(**config))
    loop.scheduler.set_timesteps(STEPS)
    entries = len(loop.scheduler.timesteps)
    with festina.accelerate(loop, all_compute(loop, entries).replaying({4: 1.0})) as run:
        first = loop(STEPS)
        assert sum(run.report().shapes.values()) == entries - 1
        assert torch.equal(loop(STEPS), first)
