"""PNDM as tables: diffusers' samples, numbers of calls, orders, and steps that share a level in schedulers and runs."""

import math

import diffusers
import pytest
import torch
from pipelines import unets
from pipelines.parts_images import images_of
from samplers_toy import BETAS, CENTRES, flow, gaussian_end, levels_of, noise, output, run, vp
from test_samplers_pipelines import counted
from watched import steps_run

import festina
from festina import FestinaError, Plan
from festina.methods import fora
from festina.samplers import PlanScheduler, SamplerRun, compile_table
from festina.samplers.pndm import f_pndm, plms, s_pndm

MAKERS = {"f_pndm": f_pndm, "s_pndm": s_pndm, "plms": plms}
CLOSE = 3e-6
"""Largest difference of samples of size 2 in float32, where diffusers computes its weights in float32."""


def made(maker, steps, **settings):
    """A scheduler that runs the table, after set_timesteps."""
    scheduler = vp()
    table = maker(scheduler.frame, steps, **settings)
    scheduler = PlanScheduler.from_scheduler(scheduler, table)
    scheduler.set_timesteps(table.calls)
    return scheduler


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize(("maker", "skip", "more"), [(f_pndm, False, 9), (plms, True, 1)])
@pytest.mark.parametrize(("offset", "to_one"), [(0, True), (1, True), (1, False)])
def test_the_samples_and_the_calls_are_those_of_diffusers(maker, skip, more, steps, offset, to_one):
    source = diffusers.PNDMScheduler(skip_prk_steps=skip, set_alpha_to_one=to_one, steps_offset=offset, **BETAS)
    source.set_timesteps(steps)
    ours = made(maker, steps, offset=offset, final_noise=0.0 if to_one else vp().frame.training_noise[0])
    assert torch.equal(ours.timesteps, source.timesteps)
    assert len(ours.timesteps) == steps + more
    levels, start = levels_of(ours), noise()
    assert (run(ours, levels, start, "epsilon") - run(source, levels, start, "epsilon")).abs().max() < CLOSE


def test_no_more_steps_than_the_warm_up_has():
    for maker, fewest in ((f_pndm, 4), (s_pndm, 2), (plms, 2)):
        more = 9 if maker is f_pndm else 1
        assert made(maker, fewest).num_inference_steps == fewest + more
        with pytest.raises(FestinaError, match=f"wanted {fewest} to 1000"):
            maker(vp().frame, fewest - 1)


def test_s_pndm_is_its_algorithm():
    """Written out: DDIM's step with the mean of two outputs, then with (3 newest - older) / 2."""
    steps, stride = 10, 100
    ours = made(s_pndm, steps)
    assert ours.timesteps.tolist() == [900, 800, *range(800, -1, -stride)]
    level = [ours.frame.level(ours.frame.noise_at(time)) for time in range(900, -1, -stride)] + [ours.frame.level(0)]

    def moved(sample, dirt, place):
        a, b = (each.alpha**2 for each in level[place : place + 2])
        below = a**0.5 * (((1 - b) * a) ** 0.5 + ((1 - a) * b) ** 0.5)
        return (b / a) ** 0.5 * sample - (b - a) / below * dirt

    def said(sample, place):
        return output(sample, level[place], "epsilon")

    start = noise(dtype=torch.float64)
    first = said(start, 0)
    older, sample = first, moved(start, (first + said(moved(start, first, 0), 1)) / 2, 0)
    for place in range(1, steps):
        newest = said(sample, place)
        older, sample = newest, moved(sample, (3 * newest - older) / 2, place)
    torch.testing.assert_close(run(ours, levels_of(ours), start, "epsilon"), sample, atol=1e-7, rtol=0)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_predictions_of_one_exact_network_give_the_same_samples(prediction):
    frame, start, ends = vp().frame, noise(dtype=torch.float64), []
    for said in ("epsilon", prediction):
        source = diffusers.DDIMScheduler(clip_sample=False, prediction_type=said, **BETAS)
        ours = PlanScheduler.from_scheduler(source, f_pndm(frame, 10))
        ours.set_timesteps(19)
        ends.append(run(ours, levels_of(ours), start, said))
    torch.testing.assert_close(*ends, atol=1e-6, rtol=0)


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_the_order_is_two(maker):
    """The order that the paper proves, down to time 200, from where on the schedule is steep."""

    def missed(steps):
        frame = vp().frame
        slots = compile_table(maker(frame, steps), frame).slots
        until = max(place for place, slot in enumerate(slots) if slot.network_time == 200)
        assert slots[until - 1].network_time > 200
        sampler, sample = SamplerRun(compile_table(maker(frame, steps), frame), frame), noise(1, 64, torch.float64)
        wanted = gaussian_end(sample, slots[0].level, slots[until].level)
        for slot in slots[:until]:
            sample = sampler.step(output(sample, slot.level, "epsilon", CENTRES[:1]), sample)
        return (sample - wanted).square().mean().sqrt().item()

    coarse, fine = missed(50), missed(250)
    assert 1.8 < math.log(coarse / fine) / math.log(5) < 2.1


def test_fewer_errors_than_the_first_order_at_as_many_calls():
    """One Gaussian, 20 calls, down to clean."""
    frame, start = vp().frame, noise(3, 64, torch.float64)
    ends = {}
    for name, table in (("f", f_pndm(frame, 11)), ("s", s_pndm(frame, 19)), ("plms", plms(frame, 19)), ("ddim", None)):
        source = diffusers.DDIMScheduler(clip_sample=False, **BETAS)
        ours = PlanScheduler.from_scheduler(source, table, solver_order=1)
        ours.set_timesteps(20)
        levels = levels_of(ours)
        found = run(ours, levels, start, "epsilon", CENTRES[:1])
        ends[name] = (found - gaussian_end(start, levels[0], frame.level(0))).square().mean().sqrt().item()
    assert max(ends["s"], ends["plms"], ends["f"]) < ends["ddim"]


def test_what_is_refused():
    frame = vp().frame
    with pytest.raises(FestinaError, match="of the family flow"):
        s_pndm(flow().frame, 10)
    with pytest.raises(FestinaError, match="offset of 100 puts 10 steps"):
        plms(frame, 10, offset=100)
    # A run may begin where a step of the solver does, and not between the calls of one step.
    assert compile_table(s_pndm(frame, 10), frame, 2).slots[0].network_time == 800
    assert len(compile_table(f_pndm(frame, 10), frame, 15).slots) == 4
    for maker, call in ((s_pndm, 1), (f_pndm, 4), (f_pndm, 5), (f_pndm, 14)):
        with pytest.raises(FestinaError, match="Begin at the table's first step"):
            compile_table(maker(frame, 10), frame, call)


def test_what_a_pipeline_changes_within_a_warm_up_step_stays():
    """Each call adds to the current sample: what was added to it before moves on with it."""
    frame = vp().frame
    slots = compile_table(f_pndm(frame, 5), frame).slots
    assert all(slot.update.previous == slot.update.anchor == 0 for slot in slots)
    start = frame.level(frame.noise_at(800))
    end = frame.level(frame.noise_at(600))
    moved = math.prod(slot.update.sample for slot in slots[:4])
    assert moved == pytest.approx(end.alpha / start.alpha)


@pytest.mark.parametrize(("maker", "skip"), [(f_pndm, False), (plms, True)])
def test_a_real_pipeline_draws_as_with_diffusers_scheduler(maker, skip):
    pipe = unets.build_sd15()
    settings = {"skip_prk_steps": skip, "set_alpha_to_one": True, "steps_offset": 1}
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, **settings)
    expected, calls = counted(pipe, unets.call_text(5, 1))
    ours = PlanScheduler.from_scheduler(pipe.scheduler)
    pipe.scheduler = PlanScheduler.from_scheduler(ours, maker(ours.frame, 5, offset=1))
    found, mine = counted(pipe, unets.call_text(calls, 1))
    assert mine == calls == (14 if maker is f_pndm else 6)
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()
    assert torch.equal(counted(pipe, unets.call_text(calls, 1))[0], found)


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_plans_count_every_call_also_where_timesteps_repeat(maker):
    pipe = unets.build_sd15()
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, maker(frame, 4, offset=1))
    calls = pipe.scheduler.table.calls
    times = [slot.network_time for slot in compile_table(pipe.scheduler.table, frame).slots]
    assert len(set(times)) < calls

    def draw():
        return images_of(pipe(**unets.call_text(calls, 1)))

    expected, plan = draw(), fora(pipe, calls, 2)
    everything = Plan.computing_all(plan.denoiser, plan.sites, calls)
    with festina.accelerate(pipe, everything) as applied:
        assert torch.equal(draw(), expected)
        assert torch.equal(draw(), expected)
        assert applied.report().steps == applied.report().calls == calls
    block = next(site for site in plan.sites if site.endswith(".ff"))
    seen = steps_run(pipe, plan, [block], draw)
    assert seen[block] == tuple(range(0, calls, 2))
    assert torch.equal(draw(), expected)
