"""A plan whose solver begins below the largest noise level, its first sample carried there by Gaussian statistics."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from lifecycle import Loop, all_compute, snapshot
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError
from festina.methods import fora, teleportation
from festina.samplers import PlanScheduler
from festina.samplers.own import own_table
from festina.samplers.table import LinearWeights
from festina.samplers.teleportation import statistics_of, teleported
from festina.samplers.times import table_on, uniform_log_snr


def lower(scheduler, calls=4, skipped=2, start="gaussian"):
    """The later levels of a grid, as a table."""
    frame = PlanScheduler.from_scheduler(scheduler).frame
    return replace(table_on(frame, uniform_log_snr(frame, calls + skipped)[skipped:]), start=start)


def measured(*shape):
    return statistics_of(torch.randn(12, *shape, generator=torch.Generator().manual_seed(3)), rank=5)


@pytest.mark.parametrize("scheduler", [DDIMScheduler(clip_sample=False), FlowMatchEulerDiscreteScheduler(shift=2.0)])
def test_a_run_is_that_of_carried_latents(scheduler):
    loop, statistics = Loop(pixart_transformer(), scheduler), measured(4, 8, 8)
    plan = replace(all_compute(loop, 4), solver=lower(scheduler))
    before = snapshot(loop)[:-1]
    with festina.accelerate(loop, plan, statistics=statistics) as run:
        found = loop(4, rows=2)
        again = loop(4, rows=2)
        assert run.report().calls == 4
    assert snapshot(loop)[:-1] == before
    own = loop.scheduler
    assert own is scheduler
    frame = PlanScheduler.from_scheduler(own).frame
    ours = PlanScheduler.from_scheduler(own, lower(own, start="given"))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = teleported(latents, frame, statistics, ours.table.steps[0].noise)
    ours.set_timesteps(4)
    text = loop.conditioning("cond", 2)
    with torch.no_grad():
        for entry in ours.timesteps:
            said = loop.transformer(latents, encoder_hidden_states=text, timestep=entry.expand(2)).sample
            latents = ours.step(1.5 * said, entry, latents).prev_sample
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, again)


def test_as_a_method_it_leaves_first_steps_out_of_a_sampler():
    pipe = pixart_pipeline()
    table = own_table(pipe, 6, partial(generate, pipe, steps=6))
    side = pipe.transformer.config.sample_size
    plan = teleportation(pipe, table, 2, fora(pipe, 6, 2))
    assert (plan.method, plan.calls, plan.settings["left_out"]) == ("teleportation", 4, 2)
    assert plan.solver.start == "gaussian"
    assert [step.noise for step in plan.solver.steps] == [step.noise for step in table.steps[2:]]
    with festina.accelerate(pipe, plan, statistics=measured(4, side, side)) as run:
        generate(pipe, steps=4)
        assert run.report().calls == 4
    for left_out in (0, 6, 2.0):
        with pytest.raises(FestinaError, match="steps left out"):
            teleportation(pipe, table, left_out)
    with pytest.raises(FestinaError, match="samples of yours"):
        teleportation(pipe, replace(table, start="given"), 2)
    anchored = replace(table.steps[4], linear=LinearWeights((0.2,), "data", sample=0.5, anchor=0.3))
    with pytest.raises(FestinaError, match="without an anchor"):
        teleportation(pipe, replace(table, steps=(*table.steps[:4], anchored, table.steps[5])), 2)


def test_both_branches_of_a_guided_call_are_carried():
    pipe = pixart_pipeline()
    side = pipe.transformer.config.sample_size
    statistics, table = measured(4, side, side), lower(pipe.scheduler)
    given = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with festina.accelerate(pipe, replace(all_compute(pipe, 4), solver=table), statistics=statistics):
        found = generate(pipe, steps=4)
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    # What the pipeline drew, for both branches; carried by hand, and given, it makes the same picture.
    drawn, other = given[0].chunk(2)
    assert torch.equal(drawn, other)
    latents = teleported(drawn, frame, statistics, table.steps[0].noise)
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, replace(table, start="given"))
    torch.testing.assert_close(generate(pipe, steps=4, latents=latents), found, rtol=1e-5, atol=1e-5)


def test_packed_latents_of_a_flow_pipeline():
    pipe = flux_pipeline()
    given = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True
    )
    generate(pipe, steps=4)
    hook.remove()
    statistics = measured(*given[0].shape[1:])
    plan = replace(all_compute(pipe, 4), solver=lower(pipe.scheduler))
    with festina.accelerate(pipe, plan, statistics=statistics):
        found = generate(pipe, steps=4)
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    latents = teleported(given[0], frame, statistics, plan.solver.steps[0].noise)
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, replace(plan.solver, start="given"))
    torch.testing.assert_close(generate(pipe, steps=4, latents=latents), found, rtol=1e-5, atol=1e-5)


def test_statistics_that_are_missing_or_not_wanted_or_do_not_fit(tmp_path):
    loop = Loop(pixart_transformer(), DDIMScheduler(clip_sample=False))
    before = snapshot(loop)
    plan = replace(all_compute(loop, 4), solver=lower(loop.scheduler))
    with pytest.raises(FestinaError, match="none were given"):
        festina.apply(loop, plan)
    with pytest.raises(FestinaError, match="the plan carries nothing"):
        festina.apply(loop, all_compute(loop, 4), statistics=measured(4, 8, 8))
    with pytest.raises(FestinaError, match="the plan carries nothing"):
        festina.apply(loop, replace(plan, solver=replace(plan.solver, start="given")), statistics=measured(4, 8, 8))
    with pytest.raises(FestinaError, match="cannot read the statistics"):
        festina.apply(loop, plan, statistics=tmp_path / "missing")
    assert snapshot(loop) == before
    with (
        pytest.raises(FestinaError, match=r"Measure statistics at this size"),
        festina.accelerate(loop, plan, statistics=measured(4, 4, 4)),
    ):
        loop(4)
    measured(4, 8, 8).save(tmp_path / "statistics")
    with festina.accelerate(loop, plan, statistics=tmp_path / "statistics"):
        assert torch.isfinite(loop(4)).all()
    scaled = Loop(pixart_transformer(), EDMEulerScheduler())
    with pytest.raises(FestinaError, match="EDM"):
        festina.apply(scaled, replace(plan, solver=lower(scaled.scheduler)), statistics=measured(4, 8, 8))


def test_a_copy_of_the_scheduler_is_noticed():
    loop = Loop(pixart_transformer(), DDIMScheduler(clip_sample=False))
    plan = replace(all_compute(loop, 4), solver=lower(loop.scheduler))
    with festina.accelerate(loop, plan, statistics=measured(4, 8, 8)):
        twin = copy.deepcopy(loop.scheduler)
        loop.drive = lambda: twin
        with pytest.raises(FestinaError, match="a copy of its scheduler"):
            loop(4)


def test_a_run_that_begins_with_a_picture_is_left_alone():
    loop = Loop(pixart_transformer(), DDIMScheduler(clip_sample=False))
    table, statistics = lower(loop.scheduler), measured(4, 8, 8)
    plan = replace(all_compute(loop, 4), solver=table)
    given = replace(plan, solver=replace(table, start="given"))
    for tell in (True, False):
        with festina.accelerate(loop, plan, statistics=statistics):
            found = loop(4, begin=2, tell=tell)
        with festina.accelerate(loop, given):
            assert torch.equal(found, loop(4, begin=2, tell=tell))
    loop.hidden = True
    with festina.accelerate(loop, plan, statistics=statistics), pytest.raises(FestinaError, match="copies of the time"):
        loop(4, begin=2)


def test_a_picture_that_the_scheduler_put_noise_on_is_left_alone():
    loop = Loop(pixart_transformer(), FlowMatchEulerDiscreteScheduler())
    plan = replace(all_compute(loop, 4), solver=lower(loop.scheduler))
    with festina.accelerate(loop, plan, statistics=measured(4, 8, 8)) as run:
        scheduler = loop.scheduler
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(0)
        latents = scheduler.scale_noise(torch.ones(1, 4, 8, 8), scheduler.timesteps[:1], torch.zeros(1, 4, 8, 8))
        assert not run.teleport.due(run.clock)
        torch.testing.assert_close(latents, latents[0, 0, 0, 0].expand_as(latents))
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(0)
        assert run.teleport.due(run.clock)
