"""Plans made of a solver's table, alone and with the schedule of another method."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler
from lifecycle import Loop, Ran
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan
from festina.methods import fora, ltc_accel, solver
from festina.samplers import PlanScheduler, SolverStep, SolverTable
from festina.samplers.times import table_on, uniform_log_snr, uniform_time


def table_of(pipe, calls, grid=uniform_log_snr):
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    return table_on(frame, grid(frame, calls))


def test_a_table_as_a_plan_draws_what_its_scheduler_does():
    pipe = pixart_pipeline()
    table = table_of(pipe, 5)
    plan = solver(pipe, table)
    assert (len(plan.steps), plan.method, plan.settings) == (5, "solver", {"calls": 5})
    assert set("".join(step.actions for step in plan.steps)) == {"C"}
    assert Plan.from_json(plan.to_json()) == plan
    with festina.accelerate(pipe, plan):
        found = generate(pipe, steps=5)
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, table)
    assert torch.equal(found, generate(pipe, steps=5))


def test_steps_lie_where_their_calls_do():
    pipe = pixart_pipeline()
    plan = solver(pipe, table_of(pipe, 4, uniform_time))
    assert [step.noise for step in plan.steps] == pytest.approx([0.999, 0.74925, 0.4995, 0.24975])
    flow = flux_pipeline()
    assert [step.noise for step in solver(flow, table_of(flow, 4, uniform_time)).steps] == [1, 0.75, 0.5, 0.25]
    scaled = Loop(pixart_transformer(), EDMEulerScheduler())
    assert [step.noise for step in solver(scaled, table_of(scaled, 4)).steps] == [1, 0.75, 0.5, 0.25]
    twice = SolverTable((SolverStep(9.0), SolverStep(9.0), SolverStep(3.0), SolverStep(1.0)))
    assert [step.noise for step in solver(pipe, twice).steps] == [1, 0.75, 0.5, 0.25]


def test_each_call_takes_the_record_nearest_in_noise():
    pipe = pixart_pipeline()
    schedule = fora(pipe, 8, 2)
    plan = solver(pipe, table_of(pipe, 4, uniform_time), schedule)
    # Of 1, 0.875, ... 0.125 those next to 0.999, 0.749, 0.4995 and 0.250: the even ones, all of which compute.
    assert plan.computed_steps() == (0, 1, 2, 3)
    assert plan.settings["schedule"] == "fora"
    shifted = replace(schedule, steps=tuple(replace(step, noise=step.noise - 0.125) for step in schedule.steps))
    plan = solver(pipe, table_of(pipe, 4, uniform_time), shifted)
    assert plan.computed_steps() == (0,)
    with festina.accelerate(pipe, plan) as run:
        ran = Ran(pipe, run)
        generate(pipe, steps=4)
        ran.remove()
    assert {step for steps in ran.steps.values() for step, _ in steps} == {0}
    with pytest.raises(FestinaError, match="the plan has a solver"):
        solver(pipe, table_of(pipe, 4), plan)


def test_replays_keep_their_noise_and_lower_no_order():
    pipe = pixart_pipeline()
    plan = solver(pipe, table_of(pipe, 6, uniform_time), ltc_accel(pipe, 6))
    assert [step.replays for step in plan.steps] == [step.replays for step in ltc_accel(pipe, 6).steps]
    with festina.accelerate(pipe, plan) as run:
        generate(pipe, steps=6)
        assert sum(run.report().shapes.values()) == 6 - sum(step.replays for step in plan.steps)
    assert [step.order for step in plan.canonical().solver.steps] == [1, 2, 2, 2, 2, 1]


def test_what_has_no_scheduler_or_not_these_levels():
    pipe = pixart_pipeline()
    with pytest.raises(FestinaError, match="wants a pipeline with a scheduler"):
        solver(pipe.transformer, table_of(pipe, 4))
    with pytest.raises(FestinaError, match="is no noise level of the family flow"):
        solver(flux_pipeline(), table_of(pipe, 4))
