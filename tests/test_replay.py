"""The last answer given again instead of calling the denoiser: which calls run, with which result, and what is kept."""

from contextlib import nullcontext

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from lifecycle import Loop, all_compute, random_plan
from tiny import generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace
from festina.executor.replay import scaled
from festina.methods import fora

STEPS = 8
ONE = {3: 1.0, 5: 1.0}


class Merged(FlowMatchEulerDiscreteScheduler):
    """A flow sampler without some of its noise levels."""

    left_out = ()

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        kept = [place for place in range(len(self.sigmas)) if place not in self.left_out]
        self.sigmas, self.timesteps = self.sigmas[kept], self.timesteps[kept[:-1]]


def flow_loop():
    return Loop(pixart_transformer(), FlowMatchEulerDiscreteScheduler(shift=3.0))


def calls_of(denoiser, run):
    """The steps in which a denoiser really runs."""
    seen = []
    inner = next(module for module in denoiser.modules() if isinstance(module, torch.nn.Conv2d))
    inner.register_forward_pre_hook(lambda *_: None if run.clock.passing else seen.append(run.clock.step))
    return seen


def test_replays_of_a_flow_sampler_are_the_merged_noise_levels():
    loop = flow_loop()
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying(ONE)) as run:
        seen = calls_of(loop.transformer, run)
        found = loop(STEPS)
    assert seen == [0, 1, 2, 4, 6, 7]
    merged = Loop(loop.transformer, Merged(shift=3.0))
    merged.scheduler.left_out = tuple(ONE)
    torch.testing.assert_close(found, merged(STEPS), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, loop(STEPS), rtol=1e-2, atol=1e-2)


def test_replays_of_a_flow_sampler_are_replayed_changes_of_the_latents():
    loop = flow_loop()
    factors = {3: 0.9, 5: 1.07, 7: 0.8}
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying(factors)):
        found = loop(STEPS)
    sigmas, before = loop.scheduler.sigmas, None
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step, time in enumerate(loop.scheduler.timesteps):
            if step in factors:
                progress = (sigmas[step + 1] - sigmas[step]) / (sigmas[step] - sigmas[step - 1])
                after = latents + factors[step] * progress * (latents - before)
            else:
                text = loop.conditioning("cond")
                out = loop.transformer(latents, encoder_hidden_states=text, timestep=time.expand(1)).sample
                after = latents + (sigmas[step + 1] - sigmas[step]) * 1.5 * out
            before, latents = latents, after
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_each_branch_has_its_own_answer(named, fresh):
    loop = flow_loop()
    loop.calls, loop.named, loop.fresh = [["cond", "uncond"]], named, fresh
    loop.transformer.cache_context = lambda name: nullcontext()
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying({3: 0.5, 5: 1.0, 6: 2.0})) as run:
        seen = calls_of(loop.transformer, run)
        loop(STEPS)
        report, answers = run.report(), list(loop.seen)
    assert seen == [0, 0, 1, 1, 2, 2, 4, 4, 7, 7]
    assert report.calls == 2 * STEPS
    assert sum(report.shapes.values()) == 10
    for branch in (0, 1):
        # Of two in a row the second has a factor of its own, not one of the other.
        for step, source, factor in ((3, 2, 0.5), (5, 4, 1.0), (6, 4, 2.0)):
            assert torch.equal(answers[2 * step + branch], factor * answers[2 * source + branch])
    assert not torch.allclose(answers[4], answers[5])


def test_guidance_may_begin_and_end_in_a_replayed_step():
    """A branch without an answer, or with an old one only, is computed, and not scaled."""
    loop = flow_loop()
    loop.calls = [["a"], ["a"], ["a", "b"], ["a"], ["a"], ["a", "b"], ["a", "b"], ["a", "b"]]
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying({2: 0.5, 3: 0.5, 5: 0.5, 7: 0.5})) as run:
        seen = calls_of(loop.transformer, run)
        loop(STEPS)
        assert len(run.store) == run.store.bytes == 0
    # In step 5 what `b` answered in step 2 is older than what `a` did in step 4.
    assert seen == [0, 1, 2, 4, 5, 6, 6]
    a, b = loop.seen[2], loop.seen[3]
    assert torch.equal(a, 0.5 * loop.seen[1])
    assert not torch.allclose(b, 0.5 * loop.seen[1], rtol=0.1)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, DDIMScheduler])
def test_a_constant_answer_replayed_is_the_answer(kind):
    """The sampler's own history is that of a run in which nothing is replayed."""
    loop = Loop(pixart_transformer(), kind())
    torch.nn.init.zeros_(loop.transformer.proj_out.weight)
    torch.nn.init.normal_(loop.transformer.proj_out.bias)
    wanted = loop(STEPS)
    with festina.accelerate(loop, all_compute(loop, STEPS).replaying({2: 1.0, 4: 1.0, 6: 1.0})) as run:
        seen = calls_of(loop.transformer, run)
        assert torch.equal(loop(STEPS), wanted)
    assert seen == [0, 1, 3, 5, 7]


@pytest.mark.parametrize("calls", [1, 2])
def test_with_a_cache_schedule_every_bit_is_as_expected(calls):
    """Beside a loop that knows of no replay: it leaves out the calls itself, under the same rows."""
    model, factors = pixart_transformer(), {2: 0.9, 5: 1.1}
    plan = fora(model, STEPS, 3).replaying(factors)
    texts = torch.randn(calls, 1, 5, 16, generator=torch.Generator().manual_seed(5))

    def drive(run, by_hand):
        run.start(STEPS)
        answers = []
        for step in range(STEPS):
            sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step))
            for place in range(calls):
                if by_hand and step in factors:
                    answers.append(answers[-calls] * factors[step])
                else:
                    with torch.no_grad():
                        given = {"encoder_hidden_states": texts[place], "timestep": torch.tensor([900 - 100 * step])}
                        answers.append(model(sample, **given, return_dict=False)[0])
            run.next_step()
        return torch.stack(answers)

    with festina.accelerate(model, plan) as run:
        found, report = drive(run, False), run.report()
    rows = plan.canonical().table()
    by_hand = festina.Plan.from_mask(plan.denoiser, plan.sites, rows == "C")
    with festina.accelerate(model, by_hand) as run:
        assert torch.equal(found, drive(run, True))
    # Steps 0, 3 and 6 compute; 1, 4 and 7 reuse.
    assert set(report.computed.values()) == set(report.served.values()) == {3 * calls}


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_price_and_bytes_are_those_predicted(calls, seed):
    loop = flow_loop()
    loop.calls = [["a", "b"][:calls]]
    plan = all_compute(loop, STEPS) if seed is None else random_plan(loop, seed, STEPS)
    plan = plan.replaying({1: 1.0, 3: 0.9, 4: 0.8, 7: 1.1})
    held = []
    with festina.accelerate(loop, plan) as run:
        loop.on_step = lambda step: held.append(run.store.bytes)
        loop(STEPS)
        report, record = run.report(), next(iter(run.calls.values()))
    traced = trace(loop.transformer, Call(record.call.args, record.call.kwargs))
    assert report.macs == calls * plan_macs(plan, mac_table(loop.transformer, traced)).total
    assert report.macs_uncached == calls * STEPS * traced.macs.total
    assert report.peak_bytes == held_bytes(plan, loop.transformer, traced, 4, calls)
    if seed is None:
        answer = calls * 4 * 8 * 8 * 4  # branches x channels x height x width x bytes
        assert held == [answer, 0, answer, answer, 0, 0, answer, 0]
        assert report.peak_bytes == answer


def test_half_of_a_batched_call_keeps_half_an_answer():
    """A step for one branch of guidance, and a replay of it."""
    pipe = pixart_pipeline()
    plan = all_compute(pipe, 6)
    rows = (festina.Step(s.noise, s.actions, "conditional" if n > 2 else "all") for n, s in enumerate(plan.steps))
    plan = festina.Plan(plan.denoiser, plan.sites, tuple(rows)).replaying({2: 1.0, 4: 1.0, 5: 0.9})
    with festina.accelerate(pipe, plan) as run:
        seen, sizes = calls_of(pipe.transformer, run), []
        generate(pipe, steps=6, callback=lambda *_: sizes.append(run.store.bytes), callback_steps=1)
        report, record = run.report(), next(record for record in run.calls.values() if record.asked)
    assert seen == [0, 1, 3]
    whole = 2 * 4 * 8 * 8 * 4  # rows x channels x height x width x bytes
    assert sizes == [0, whole, 0, whole // 2, whole // 2, 0]
    traced = trace(pipe.transformer, record.call)
    assert report.macs == plan_macs(plan, mac_table(pipe.transformer, traced)).total
    assert report.peak_bytes == whole == held_bytes(plan, pipe.transformer, traced, 4)


def test_structures_are_kept():
    answer = {"a": (torch.ones(2), [torch.full((1,), 3.0), "word"]), "b": torch.tensor([1, 2])}
    found = scaled(answer, 0.5)
    assert torch.equal(found["a"][0], torch.full((2,), 0.5))
    assert torch.equal(found["a"][1][0], torch.full((1,), 1.5))
    assert found["a"][1][1] == "word"
    assert torch.equal(found["b"], torch.tensor([1, 2]))
    assert scaled(torch.ones(2, dtype=torch.bfloat16), 0.3).dtype == torch.bfloat16
    with pytest.raises(FestinaError, match="in its str no tensor"):
        scaled("nothing", 1.0)
