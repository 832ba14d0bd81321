"""A solver's table as part of a plan: what it replaces, how it composes with what the steps do, and its file."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from lifecycle import Loop, all_compute, snapshot
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.formats import to_ecad, to_step_mask
from festina.methods import fora, solver
from festina.samplers import LinearWeights, PlanScheduler, SolverStep, SolverTable
from festina.samplers.composing import composed, resampled
from festina.samplers.times import karras, table_on, uniform_log_snr
from festina.search.genome import Genome


def table_of(scheduler, calls, order=2, corrector=False, grid=karras):
    frame = PlanScheduler.from_scheduler(scheduler).frame
    return table_on(frame, grid(frame, calls), order=order, corrector=corrector)


def orders(table):
    return [step.order for step in table.steps]


def rows(text, **changes):
    """Steps of one site, with changes by field: a mapping of places to values."""
    steps = [Step(1 - place / len(text), action) for place, action in enumerate(text)]
    for field, values in changes.items():
        for place, value in values.items():
            steps[place] = replace(steps[place], **{field: value})
    return steps


def plain(calls, order=3, **more):
    return SolverTable(tuple(SolverStep(10.0 / (place + 1), order=order, **more) for place in range(calls)))


def canonical(steps, table):
    return Plan("D", ("a.ff",), tuple(steps), solver=table).canonical().solver


def test_a_plan_with_a_solver_runs_as_the_scheduler_and_the_plan_do():
    pipe, calls = pixart_pipeline(), 5
    own, table = pipe.scheduler, table_of(pipe.scheduler, 5)
    before = snapshot(pipe)
    plan = fora(pipe, calls, 2)
    with festina.accelerate(pipe, replace(plan, solver=table)) as run:
        assert isinstance(pipe.scheduler, PlanScheduler)
        found = generate(pipe, steps=calls)
        assert run.report().steps == calls
    assert pipe.scheduler is own
    assert snapshot(pipe) == before
    # Served steps keep the solver at the second order, which the table has.
    pipe.scheduler = PlanScheduler.from_scheduler(own, table)
    with festina.accelerate(pipe, plan):
        assert torch.equal(found, generate(pipe, steps=calls))
    assert not torch.equal(found, generate(pipe, steps=calls))


def test_a_flow_pipeline_too():
    pipe = flux_pipeline()
    table = table_of(pipe.scheduler, 4, grid=uniform_log_snr)
    with festina.accelerate(pipe, replace(all_compute(pipe, 4), solver=table)):
        found = generate(pipe, steps=4)
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, table)
    assert torch.equal(found, generate(pipe, steps=4))


def test_the_scheduler_comes_back_after_an_error_and_is_looked_for():
    loop = Loop(pixart_transformer(), DDIMScheduler(clip_sample=False))
    own = loop.scheduler
    plan = replace(all_compute(loop, 4), solver=table_of(own, 4))
    with pytest.raises(ZeroDivisionError), festina.accelerate(loop, plan):
        raise ZeroDivisionError
    assert loop.scheduler is own
    with pytest.raises(FestinaError, match="the pipeline asks for 5 steps"), festina.accelerate(loop, plan):
        loop(5)
    assert loop.scheduler is own
    festina.apply(loop, plan)
    ours, loop.scheduler = loop.scheduler, EulerDiscreteScheduler()
    with pytest.raises(FestinaError, match="was replaced by a EulerDiscreteScheduler"):
        festina.remove(loop)
    loop.scheduler = ours
    festina.remove(loop)
    assert loop.scheduler is own
    # The user may have put their own back.
    festina.apply(loop, plan)
    loop.scheduler = own
    festina.remove(loop)
    assert loop.scheduler is own
    with pytest.raises(FestinaError, match="not to a bare denoiser"):
        festina.apply(loop.transformer, plan)


def test_a_copied_pipeline_has_its_own_scheduler_and_a_copied_scheduler_is_the_solver():
    pipe, calls = pixart_pipeline(), 5
    plain, own = generate(pipe, steps=calls), pipe.scheduler
    plan = replace(all_compute(pipe, calls), solver=table_of(own, calls))
    with festina.accelerate(pipe, plan):
        fast, twin, alone = generate(pipe, steps=calls), copy.deepcopy(pipe), copy.deepcopy(pipe.scheduler)
        assert type(twin.scheduler) is type(own)
        assert twin.scheduler is not own
        assert torch.equal(generate(twin, steps=calls), plain)
        assert torch.equal(generate(pipe, steps=calls), fast)
        assert isinstance(alone, PlanScheduler)
        assert alone is not pipe.scheduler
        assert alone.config.table == pipe.scheduler.config.table
    assert not torch.equal(fast, plain)
    assert pipe.scheduler is own
    assert torch.equal(generate(twin, steps=calls), plain)


def test_a_scheduler_whose_place_cannot_be_taken():
    loop = Loop(pixart_transformer(), DDIMScheduler(clip_sample=True))
    with pytest.raises(FestinaError, match="clip_sample"):
        festina.apply(loop, replace(all_compute(loop, 4), solver=plain(4)))
    loop.scheduler.register_to_config(clip_sample=False)
    before = snapshot(loop)
    with pytest.raises(FestinaError, match="largest noise level"):
        festina.apply(loop, replace(all_compute(loop, 4), solver=plain(4).at_noises([1e6, 3, 2, 1])))
    assert snapshot(loop) == before


def test_orders_follow_the_outputs_of_one_model():
    steps = rows("CCCCCCC", model={0: "small", 1: "small", 2: "small"})
    assert orders(canonical(steps, plain(7))) == [1, 2, 3, 1, 2, 3, 3]
    # What is replayed is an answer of the model that was called last.
    assert orders(canonical(rows("CCCCC", model={0: "small"}, replay={1: 1.0}), plain(5))) == [1, 2, 1, 2, 3]


def test_a_change_of_guidance_lowers_the_order():
    once = rows("CCCCCCCC", branches=dict.fromkeys(range(4, 8), "conditional"))
    assert orders(canonical(once, plain(8))) == [1, 2, 3, 3, 2, 3, 3, 3]
    often = rows("CCCCCCCC", branches={3: "conditional", 5: "conditional", 7: "conditional"})
    assert orders(canonical(often, plain(8))) == [1, 2, 3, 2, 1, 1, 1, 1]
    # A difference that is used again is guidance, and a factor of 0 is none.
    assert orders(canonical(rows("CCCC", branches={2: "difference", 3: "difference"}), plain(4))) == [1, 2, 3, 3]
    assert orders(canonical(rows("CCCC", guidance={3: 0.0}), plain(4))) == [1, 2, 3, 2]


def test_factors_on_guidance_that_swing_lower_the_order_of_a_whole_run():
    def found(*factors, **more):
        table = plain(len(factors), corrector=True, **more)
        made = canonical(rows("C" * len(factors), guidance=dict(enumerate(factors))), table)
        return orders(made), [step.corrector for step in made.steps]

    kept = [1, 2, 3, 3, 3, 3], [False, *[True] * 5]
    lowered = [1, 2, 2, 2, 2, 2], [False, True, *[False] * 4]
    assert found(1.5, 0.5, 1.5, 0.5, 1.5, 0.5) == found(0.5, 0.9, 0.5, 0.9, 0.5, 0.9) == lowered
    # Four of six steps.
    assert found(1.0, 1.0, 1.4, 1.0, 1.4, 1.4) == lowered
    # One or two changes, or one turn, evenly falling, and too little.
    assert found(1.0, 1.0, 1.0, 0.5, 0.5, 0.5) == found(1.0, 1.0, 2.0, 1.0, 1.0, 1.0) == kept
    assert found(2.0, 1.6, 1.2, 0.8, 0.4, 0.1) == found(0.9, 1.1, 0.9, 1.1, 0.9, 1.1) == kept
    # Nothing of what is not of one kind swings.
    steps = rows("CCCC", guidance={0: 1.5, 1: 0.5, 2: 1.5, 3: 0.5}, model={0: "small"})
    assert orders(canonical(steps, plain(4))) == [1, 1, 2, 3]


def test_served_outputs_keep_the_order_at_two():
    assert orders(canonical(rows("CCCRCCCRRC"), plain(10))) == [1, 2, 3, 3, 3, 3, 3, 3, 2, 2]


def test_what_may_not_be_corrected_is_not():
    steps = rows("CCCCCC", model={0: "small"}, replay={3: 0.9}, branches={5: "conditional"})
    table = canonical(steps, plain(6, corrector=True, solver="unipc_bh2"))
    assert [step.corrector for step in table.steps] == [False, False, True, False, True, False]


def test_a_contrast_wants_a_reference_of_its_own_kind():
    steps = rows("CCCCC", model={0: "small", 1: "small"})
    near = canonical(steps, plain(5, contrast=0.1))
    assert [step.contrast for step in near.steps] == [0, 0.1, 0, 0.1, 0.1]
    far = canonical(steps, plain(5, contrast=0.1, contrast_reference="first"))
    assert [step.contrast for step in far.steps] == [0, 0.1, 0, 0, 0]
    assert far.steps[3] == SolverStep(2.5, order=2)


def test_weights_stay_and_deleted_steps_go():
    linear = SolverStep(2.0, linear=LinearWeights((1.0, 0.5)))
    table = SolverTable((SolverStep(9.0), SolverStep(5.0, call="delete"), linear, SolverStep(1.0, call="extrapolate")))
    found = canonical(rows("CC", model={0: "small"}), table)
    assert [step.noise for step in found.steps] == [9.0, 2.0, 1.0]
    assert found.steps[1] == linear
    assert found.calls == 2
    assert composed(found, rows("CC", model={0: "small"})) == found


def test_two_ways_to_write_a_run_are_one_plan():
    one = Plan("D", ("a.ff",), tuple(rows("CCC")), solver=plain(3))
    other = replace(
        one,
        solver=SolverTable(tuple(replace(step, order=min(place + 1, 3)) for place, step in enumerate(plain(3).steps))),
    )
    assert one.key() == other.key() != replace(one, solver=plain(3, order=1)).key() != replace(one, solver=None).key()


def test_file_and_number_of_calls(tmp_path):
    plan = Plan("D", ("a.ff",), tuple(rows("CCC")), solver=plain(3, corrector=True))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert '"festina_plan": 4' in plan.to_json()
    with pytest.raises(FestinaError, match="makes 4 network calls in 3 steps"):
        replace(plan, solver=plain(4))
    with pytest.raises(FestinaError, match="of a table"):
        Plan.from_json(plan.to_json().replace('"corrector"', '"corrected"'))
    with pytest.raises(FestinaError, match="unknown keys"):
        Plan.from_json(plan.to_json().replace('"festina_plan": 4', '"festina_plan": 3'))


def test_resampled_levels_lie_between_those_of_the_table():
    table = plain(4)
    assert resampled(table, 4) is table
    twice = [step.noise for step in resampled(table, 8).steps]
    assert twice[::2] == [step.noise for step in table.steps]
    assert twice[1] == pytest.approx((10 * 5) ** 0.5)
    assert twice[7] == pytest.approx(1.25)
    assert [step.noise for step in resampled(table, 2).steps] == pytest.approx([10.0, 10 / 3])
    ending = replace(table, final_noise=0.1)
    assert resampled(ending, 8).steps[7].noise == pytest.approx((2.5 * 0.1) ** 0.5)
    for odd in (SolverStep(2.0, linear=LinearWeights((1.0,))), SolverStep(2.0, network_time=3.0)):
        with pytest.raises(FestinaError, match="hold for their own places only"):
            resampled(SolverTable((SolverStep(9.0), odd)), 3)
    plan = Plan("D", ("a.ff",), tuple(rows("CCRR")), solver=table).resample(8)
    assert (plan.solver, len(plan.steps)) == (resampled(table, 8), 8)


def test_flow_and_variance_preserving_runs_of_a_resampled_plan():
    for scheduler in (FlowMatchEulerDiscreteScheduler(), DPMSolverMultistepScheduler()):
        loop = Loop(pixart_transformer(), scheduler)
        plan = replace(all_compute(loop, 4), solver=table_of(scheduler, 4, grid=uniform_log_snr)).resample(6)
        with festina.accelerate(loop, plan) as run:
            assert torch.isfinite(loop(6)).all()
            assert run.report().calls == 6


def test_a_pipeline_saved_meanwhile_is_saved_with_its_own_scheduler(tmp_path):
    pipe = pixart_pipeline()
    own, noted = pipe.scheduler, pipe.config["scheduler"]
    own.register_to_config(solver_order=3)
    plan = solver(pipe, table_of(own, 4))
    festina.apply(pipe, plan)
    pipe.save_pretrained(tmp_path / "pipe")
    ours, pipe.scheduler = pipe.scheduler, own
    pipe.scheduler = ours
    festina.remove(pipe)
    assert pipe.config["scheduler"] == noted
    again = type(pipe).from_pretrained(tmp_path / "pipe")
    assert type(again.scheduler) is type(own)
    assert again.scheduler.config.solver_order == 3


def test_a_table_that_cannot_be_run_is_refused_before_a_run():
    loop = Loop(pixart_transformer(), DDIMScheduler(clip_sample=False))
    before = snapshot(loop)
    wants_two = SolverTable((SolverStep(9.0, linear=LinearWeights((1.0, 0.5))), SolverStep(3.0)))
    with pytest.raises(FestinaError, match="want 2 outputs"):
        festina.apply(loop, replace(all_compute(loop, 2), solver=wants_two))
    assert snapshot(loop) == before


def test_resampled_levels_that_repeat_do_not_rise():
    table = SolverTable(tuple(SolverStep(level) for level in (80.0, 80.0, 40.0)), final_noise=0.1)
    for calls in (2, 5, 6, 9, 12, 15):
        levels = [step.noise for step in resampled(table, calls).steps]
        assert levels == sorted(levels, reverse=True)
        assert levels[0] == 80.0


def test_what_knows_no_solver_refuses_it():
    loop = Loop(pixart_transformer(), DDIMScheduler(clip_sample=False))
    plan = replace(all_compute(loop, 4), solver=plain(4))
    for refuse in (to_ecad, to_step_mask, Genome.of(loop.transformer, 4).encode):
        with pytest.raises(FestinaError, match="this plan has a solver besides"):
            refuse(plan)


def test_numbers_of_a_table_are_kept_alike():
    assert SolverTable((SolverStep(3),)).to_json() == SolverTable((SolverStep(np.float32(3.0)),)).to_json()
    for odd in (float("nan"), float("inf"), "3", True):
        with pytest.raises(FestinaError, match="finite number"):
            SolverStep(odd)
    with pytest.raises(FestinaError, match="true or false"):
        SolverStep(3.0, corrector=1)
