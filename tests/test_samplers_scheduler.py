"""`PlanScheduler` step by step: state, dtypes, noise, counting."""

import copy

import diffusers
import pytest
import torch
from pipelines import videos, videos_unets
from samplers_toy import BETAS, flow, levels_of, noise, output, run, table, vp

from festina import FestinaError
from festina.samplers import PlanScheduler, SolverStep, SolverTable


@pytest.mark.parametrize(
    ("name", "fixture", "tolerance"),
    [
        # The first level of CogVideoX is pure noise, and ours 2**-12 short of it.
        ("cogvideox", videos.PIPELINES["cogvideox"], 1e-3),
        ("cogvideox-2b", videos.PIPELINES["cogvideox-2b"], 1e-3),
        ("svd", videos_unets.PIPELINES["svd"], 1e-4),
    ],
)
def test_the_first_order_takes_the_place_of_video_pipelines_schedulers(name, fixture, tolerance):
    pipe = fixture.build()
    source = pipe.scheduler
    if name == "cogvideox":
        # Its own scheduler adds noise in every step; without it the first order is DDIM's.
        pipe.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(source.config)
    expected = fixture.output(pipe(**fixture.call(4, 1)))
    pipe.scheduler = PlanScheduler.from_scheduler(source, solver_order=1)
    found = fixture.output(pipe(**fixture.call(4, 1)))
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_unipc_bh1_ends_finite_at_no_noise():
    for order in (1, 2, 3):
        scheduler = vp(solver="unipc_bh1", solver_order=order, corrector=True)
        scheduler.set_timesteps(10)
        assert scheduler.sigmas[-1] == 0
        assert run(scheduler, levels_of(scheduler), noise(), "epsilon").isfinite().all()


def test_pure_noise_and_no_noise_at_once():
    def far(calls, **settings):
        scheduler = flow(**settings)
        scheduler.set_timesteps(timesteps=[1000 * (1 - call / calls) for call in range(calls)])
        return run(scheduler, levels_of(scheduler), noise(samples=64, dtype=torch.float64), "flow_prediction")

    exact = far(400, solver="data", solver_order=3)
    for solver in ("data", "noise", "adams_bashforth", "deis_time", "unipc_bh2", "data_released"):
        for corrector in (False, True):
            if corrector and solver in ("adams_bashforth", "deis_time", "data_released"):
                continue
            settings = {"solver": solver, "solver_order": 3, "corrector": corrector}
            errors = [(far(calls, **settings) - exact).square().mean().sqrt().item() for calls in (5, 20)]
            assert errors[1] < 0.015
            assert errors[1] < errors[0] / 8


def test_order_two_after_pure_noise_is_nearly_order_one():
    ends = []
    for order in (1, 2):
        scheduler = flow(solver_order=order, lower_order_final=False)
        scheduler.set_timesteps(timesteps=[1000, 900])
        levels, x = levels_of(scheduler), noise()
        ends.append(run(scheduler, levels, x, "flow_prediction"))
    torch.testing.assert_close(ends[0], ends[1])


def test_the_step_ratio_guard_is_used():
    steps = [999, 990, 300, 100]
    guarded, low = vp(largest_step_ratio=2.0, lower_order_final=False), vp(solver_order=1)
    for scheduler in (guarded, low):
        scheduler.set_timesteps(timesteps=steps[:3])
    levels, x = levels_of(low), noise()
    # The long step after the short one is of the first order, as is that to no noise.
    torch.testing.assert_close(run(guarded, levels, x, "epsilon"), run(low, levels, x, "epsilon"))


def test_repeated_timesteps_are_counted():
    scheduler = vp(table=table(5.0, 5.0, 1.0))
    scheduler.set_timesteps(3)
    x, seen = noise(), []
    for timestep in scheduler.timesteps:
        seen.append(scheduler.step_index)
        x = scheduler.step(torch.zeros_like(x), timestep, x).prev_sample
    assert seen == [None, 1, 2]
    assert scheduler.step_index == 3
    assert x.isfinite().all()


def test_every_entry_is_one_call_and_one_step():
    scheduler = vp(table=SolverTable((*table(8.0, 4.0).steps, SolverStep(2.0, call="delete"), SolverStep(1.0))))
    assert scheduler.order == 1
    for asked in (4, 3):
        scheduler.set_timesteps(asked)
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == 3
    with pytest.raises(FestinaError, match="num_inference_steps=3 or 4"):
        scheduler.set_timesteps(5)
    with pytest.raises(FestinaError, match="timesteps of one's own"):
        scheduler.set_timesteps(timesteps=[3, 2, 1])


def test_the_table_of_a_run_makes_that_run():
    scheduler = flow(solver="unipc_bh2", solver_order=3, corrector=True)
    assert scheduler.run_table is None
    scheduler.set_timesteps(7)
    same = PlanScheduler.from_scheduler(scheduler, scheduler.run_table)
    same.set_timesteps(7)
    assert torch.equal(same.timesteps, scheduler.timesteps)
    ends = [run(each, levels_of(each), noise(), "flow_prediction") for each in (scheduler, same)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("solver", ["data", "unipc_bh2"])
def test_the_second_run_equals_the_first_and_an_interrupted_one_leaves_nothing(solver):
    scheduler = vp(solver=solver, solver_order=3, corrector=True)
    ends = []
    for asked in (9, 9):
        scheduler.set_timesteps(asked)
        ends.append(run(scheduler, levels_of(scheduler), noise(), "epsilon"))
    scheduler.set_timesteps(9)
    scheduler.set_begin_index(2)
    scheduler.step(noise(3), scheduler.timesteps[2], noise(4))
    scheduler.set_timesteps(9)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    ends.append(run(scheduler, levels_of(scheduler), noise(), "epsilon"))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def edm(**settings):
    return PlanScheduler.from_scheduler(diffusers.EDMEulerScheduler(), **settings)


@pytest.mark.parametrize(
    ("make", "first", "wrong"),
    [(flow, 1.0, (0.99, 0.5)), (flow, 0.999, (0.997,)), (edm, 80.0, (70.0, 79.5)), (edm, 80.1, (0.5,))],
)
def test_a_run_from_noise_begins_at_the_models_largest_level(make, first, wrong):
    def begun(level, index=None):
        scheduler = make(table=table(level, 0.4, 0.2))
        scheduler.set_timesteps(3)
        if index is not None:
            scheduler.set_begin_index(index)
        timestep = scheduler.timesteps[index or 0]
        return scheduler.step(noise(1), timestep, scheduler.scale_model_input(noise(), timestep)).prev_sample

    assert begun(first).isfinite().all()
    for level in wrong:
        for index in (None, 0):
            with pytest.raises(FestinaError, match=f"begins at the noise level {level:g}, .* image-to-image"):
                begun(level, index)
        # Begun midway, the table never meets its first level.
        assert torch.equal(begun(level, 1), begun(first, 1))


def test_levels_above_the_models_largest_are_refused():
    largest = vp().frame.largest_noise
    assert largest == pytest.approx(14.6146, abs=1e-4)
    assert edm().frame.largest_noise == pytest.approx(80.0)
    # Published levels are rounded; lower ones are begun at, as diffusers' "leading" timesteps do.
    for level in (14.615, 12.0):
        scheduler = vp(table=table(level, 1.0))
        scheduler.set_timesteps(2)
        assert scheduler.step(noise(1), scheduler.timesteps[0], noise()).prev_sample.isfinite().all()
    for refused in (lambda: vp(table=table(14.7, 1.0)), lambda: edm(table=table(81.0, 1.0))):
        with pytest.raises(FestinaError, match="Use levels up to the largest"):
            refused()
    with pytest.raises(FestinaError, match="a step begins at 20"):
        vp().set_timesteps(sigmas=[20.0, 3.0])


def test_deep_copies_go_their_own_way():
    scheduler = vp(solver_order=3)
    scheduler.set_timesteps(6)
    levels, x = levels_of(scheduler), noise()
    for place in range(3):
        x = scheduler.step(output(x, levels[place], "epsilon"), scheduler.timesteps[place], x).prev_sample
    twin, ends = copy.deepcopy(scheduler), []
    for each in (scheduler, twin):
        y = x
        for place in range(3, 6):
            y = each.step(output(y, levels[place], "epsilon"), each.timesteps[place], y).prev_sample
        ends.append(y)
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_keep_their_dtype(dtype):
    reference, scheduler = vp(solver="unipc_bh2", corrector=True), vp(solver="unipc_bh2", corrector=True)
    ends = []
    for each, kind in ((reference, torch.float32), (scheduler, dtype)):
        each.set_timesteps(8)
        ends.append(run(each, levels_of(each), noise().to(kind), "epsilon"))
    assert ends[1].dtype == dtype
    torch.testing.assert_close(ends[1].float(), ends[0], atol=1e-5 if dtype == torch.float64 else 0.05, rtol=0)


def test_predictions_are_stored_in_float32():
    # With outputs in bfloat16 and a sample in float32, the step is that of the rounded outputs, exactly.
    ends = []
    for rounded in (torch.bfloat16, torch.float32):
        scheduler = vp(solver_order=3)
        scheduler.set_timesteps(5)
        x = noise()
        for timestep in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x).bfloat16().to(rounded), timestep, x).prev_sample
        ends.append(x)
    assert torch.equal(*ends)


@pytest.mark.parametrize("by_timestep", [True, False])
def test_beginning_midway_is_a_run_of_the_rest(by_timestep):
    scheduler, rest = vp(solver_order=3), vp(solver_order=3)
    scheduler.set_timesteps(8)
    whole = scheduler.timesteps
    if not by_timestep:
        scheduler.set_begin_index(3)
    rest.set_timesteps(timesteps=whole[3:].tolist())
    x = y = noise()
    for timestep, level in zip(whole[3:], levels_of(rest), strict=True):
        x = scheduler.step(output(x, level, "epsilon"), timestep, x).prev_sample
        y = rest.step(output(y, level, "epsilon"), timestep, y).prev_sample
    torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    assert scheduler.step_index == 8


def test_noise_is_added_by_the_training_schedule():
    source = diffusers.DDIMScheduler(clip_sample=False, **BETAS)
    scheduler = PlanScheduler.from_scheduler(source)
    clean, dirt, times = noise(1), noise(2), torch.tensor([0, 10, 200, 499, 500, 700, 900, 999])
    torch.testing.assert_close(scheduler.add_noise(clean, dirt, times), source.add_noise(clean, dirt, times))
    scheduler.set_timesteps(5)
    at = scheduler.timesteps[2:3]
    torch.testing.assert_close(scheduler.add_noise(clean, dirt, at), source.add_noise(clean, dirt, at.repeat(8)))
    straight, other = flow(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    straight.set_timesteps(4)
    other.set_timesteps(4)
    at = other.timesteps[1:2]
    torch.testing.assert_close(straight.scale_noise(clean, at, dirt), other.scale_noise(clean, at, dirt))


def test_a_level_with_a_time_of_its_own_gets_its_own_noise():
    scheduler = flow(table=SolverTable((SolverStep(1.0), SolverStep(0.6, network_time=555.0))))
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [1000.0, 555.0]
    added = scheduler.scale_noise(torch.ones(1, 3), torch.tensor([555.0]), torch.zeros(1, 3))
    torch.testing.assert_close(added, torch.full((1, 3), 0.4))
