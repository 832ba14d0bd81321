"""LTC-Accel: which steps are replayed, by which factors, and what a calibration measures."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from lifecycle import Loop, all_compute
from tiny import PROMPT, flux_pipeline, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan
from festina.calibration.coherence import Coherence, angle_and_factor, measure_coherence
from festina.methods import ltc_accel, released_interval, replayed_steps

CALL = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20, "height": 16, "width": 16}
FLUX = {"height": 16, "width": 16, "max_sequence_length": 20}
STEPS = 8


@pytest.mark.parametrize(
    ("steps", "calls"),
    [(4, 3), (8, 5), (10, 6), (12, 8), (20, 13), (24, 15), (30, 19), (36, 23), (40, 25), (48, 30), (50, 31), (60, 38)],
)
def test_the_released_code_calls_the_network_so_often(steps, calls):
    assert steps - len(replayed_steps(released_interval(steps, keep_last=0))) == calls


def test_the_steps_of_the_released_example_and_of_the_paper():
    assert replayed_steps(released_interval(40, keep_last=0)) == tuple(range(11, 40, 2))
    assert replayed_steps(released_interval(40)) == tuple(range(11, 39, 2))
    # Steps 12 to 38 of 40: 13 are left out, 32.5 %.
    assert replayed_steps((12, 38)) == tuple(range(13, 38, 2))
    assert replayed_steps((0, 9), 3) == (2, 5, 8)
    assert replayed_steps((0, 5)) == (3, 5)
    assert replayed_steps((3, 2)) == ()


@pytest.mark.parametrize("steps", [4, 7, 20, 51])
@pytest.mark.parametrize("start", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("period", [2, 3, 5])
def test_what_always_runs(steps, start, period):
    """The first two steps, the last one, and the step before each that is replayed."""
    replayed = replayed_steps(released_interval(steps, start), period)
    assert not {0, 1, steps - 1} & set(replayed)
    assert not set(replayed) & {step + 1 for step in replayed}
    assert all(step > start * steps for step in replayed)


def test_a_plan():
    plan = ltc_accel(pixart_pipeline(), 20)
    assert [place for place, step in enumerate(plan.steps) if step.replays] == list(range(7, 19, 2))
    assert {step.replay for step in plan.steps} == {None, 1.0}
    assert plan.settings == {"interval": [6, 18], "period": 2}
    assert (plan.method, plan.sampler) == ("ltc_accel", "DPMSolverMultistepScheduler")
    assert set(plan.canonical().table()[8]) == {"C"}
    assert Plan.from_json(plan.to_json()) == plan
    assert ltc_accel(pixart_transformer(), 20).key() == plan.key()


def test_knobs_out_of_range():
    model = pixart_transformer()
    for knobs, message in (
        ({"steps": 2}, "the number of steps is 2; wanted a whole number from 3"),
        ({"period": 1}, "the period is 1; wanted a whole number of at least 2"),
        ({"interval": (4, 20)}, "an interval up to step 20, in a run of 20; wanted 19 at most"),
        ({"interval": (-1, 9)}, "the interval's first step is -1"),
        ({"interval": (4, 4)}, "no step from 4 to 4 is replayed with a period of 2.* more than 20 steps"),
        ({"interval": (9, 8)}, "no step from 9 to 8 is replayed"),
        ({"steps": 4}, "no step from 2 to 2 is replayed with a period of 2"),
        ({"interval": (4, 9.0)}, "the interval's last step is 9.0; wanted a whole number"),
    ):
        with pytest.raises(FestinaError, match=message):
            ltc_accel(model, **({"steps": 20} | knobs))
    with pytest.raises(FestinaError, match="the share before the interval is 1"):
        released_interval(20, 1.0)
    with pytest.raises(FestinaError, match="last steps that are kept is -1"):
        released_interval(20, keep_last=-1)
    pipe = pixart_pipeline()
    pipe.scheduler = LCMScheduler()
    for make in (lambda: ltc_accel(pipe, 20), lambda: measure_coherence(pipe, [PROMPT], 20, call=CALL)):
        with pytest.raises(FestinaError, match="LCMScheduler adds fresh noise in each step here"):
            make()


def test_the_factor_is_the_best_of_a_grid():
    generator = torch.Generator().manual_seed(0)
    earlier = torch.randn(500, generator=generator, dtype=torch.float64)
    later = 0.83 * earlier + 0.2 * torch.randn(500, generator=generator, dtype=torch.float64)
    angle, factor = angle_and_factor(later, earlier)
    grid = np.linspace(0, 2, 2001)
    best = min(grid, key=lambda each: float((later - each * earlier).norm()))
    assert abs(best - factor) <= 0.0005
    # What is left of the later one is the sine of the angle.
    assert float((later - factor * earlier).norm() / later.norm()) == pytest.approx(math.sin(angle), rel=1e-12)
    assert angle_and_factor(3 * earlier, earlier) == pytest.approx((0.0, 3.0), abs=1e-7)
    assert angle_and_factor(-earlier, earlier) == pytest.approx((math.pi, -1.0), abs=1e-7)
    with pytest.raises(FestinaError, match="is 0 or not finite"):
        angle_and_factor(earlier, 0 * earlier)


def outputs_of(pipe, plan=None):
    """What the scheduler of a pipeline is given in each step of a run by a plan, or without one."""
    seen, kind = [], type(pipe.scheduler)
    original = kind.step

    def step(self, model_output, *args, **kwargs):
        seen.append(model_output.clone())
        return original(self, model_output, *args, **kwargs)

    kind.step = step
    try:
        with nullcontext() if plan is None else festina.accelerate(pipe, plan):
            draw(pipe)
    finally:
        kind.step = original
    return seen


def draw(pipe, seed=0):
    call = CALL if "PixArt" in type(pipe).__name__ else FLUX
    generator = torch.Generator().manual_seed(seed)
    return pipe(PROMPT, num_inference_steps=STEPS, generator=generator, output_type="latent", **call).images


def test_angles_and_factors_are_those_of_the_untouched_run():
    pipe = pixart_pipeline()
    plain = draw(pipe)
    seen = outputs_of(pipe)
    found = measure_coherence(pipe, [PROMPT, "a"], STEPS, call=CALL)
    assert torch.equal(draw(pipe), plain)
    assert found.pictures == ((PROMPT, 0), ("a", 1))
    assert found.angles.shape == found.factors.shape == (2, STEPS)
    assert np.isnan(found.angles[:, 0]).all()
    assert not np.isnan(found.angles[:, 1:]).any()
    for step in range(1, STEPS):
        wanted = angle_and_factor(seen[step].double().flatten(), seen[step - 1].double().flatten())
        assert (found.angles[0, step], found.factors[0, step]) == pytest.approx(wanted, rel=1e-12)


def test_factors_are_measured_where_the_accelerated_run_will_be():
    """The outputs of the calibrating run, but for those replaced, are those of the run by the plan."""
    pipe = flux_pipeline()
    replayed = (3, 5)
    measured = measure_coherence(pipe, [PROMPT], STEPS, replayed, call=FLUX)
    plan = ltc_accel(pipe, STEPS, (3, 6), coherence=measured)
    factors = measured.mean_factors()
    assert [plan.steps[step].replay for step in replayed] == [factors[step] for step in replayed]
    assert plan.settings["pictures"] == 1
    assert plan.settings["deviations"] == [0.0, 0.0]
    seen = outputs_of(pipe, plan)
    torch.testing.assert_close(seen[3], seen[2] * factors[3], rtol=1e-6, atol=1e-6)
    # Factor and angle in step 5 follow from what the plan's own run says in step 4, and the network would in step 5.
    network = outputs_of(pipe, Plan.computing_all(plan.denoiser, plan.sites, STEPS).replaying({3: factors[3]}))
    torch.testing.assert_close(network[4], seen[4], rtol=1e-5, atol=1e-5)
    wanted = angle_and_factor(network[5].double().flatten(), seen[4].double().flatten())
    assert (measured.angles[0, 5], measured.factors[0, 5]) == pytest.approx(wanted, rel=1e-4)
    # Not those of the untouched run.
    plain = measure_coherence(pipe, [PROMPT], STEPS, call=FLUX)
    assert plain.factors[0, 3] == pytest.approx(factors[3], rel=1e-12)
    assert plain.factors[0, 5] != pytest.approx(factors[5], rel=1e-6)


def test_measured_factors_come_closer_to_the_replaced_output():
    pipe = flux_pipeline()
    measured = measure_coherence(pipe, [PROMPT], STEPS, (3,), call=FLUX)
    truth = outputs_of(pipe)[3]

    def error(plan):
        return float((outputs_of(pipe, plan)[3] - truth).norm())

    assert error(ltc_accel(pipe, STEPS, (3, 4), coherence=measured)) < error(ltc_accel(pipe, STEPS, (3, 4)))


def test_factors_of_other_steps_are_refused():
    measured = Coherence((3, 5), ((PROMPT, 0),), np.ones((1, 8)), np.ones((1, 8)))
    ltc_accel(pixart_transformer(), 8, (3, 6), coherence=measured)
    for steps, interval in ((8, (3, 4)), (9, (3, 6))):
        with pytest.raises(FestinaError, match=r"in a run of 8 steps that replays \[3, 5\]; wanted"):
            ltc_accel(pixart_transformer(), steps, interval, coherence=measured)


def test_a_second_step_from_one_timestep_is_not_measured():
    """Some pipelines step to a prediction first, and then with it."""
    loop, seen = Loop(pixart_transformer(), DDIMScheduler()), []
    latents = torch.ones(1, 4, 8, 8)
    with festina.accelerate(loop, all_compute(loop, 3)) as run:
        run.revise = lambda output: seen.append((run.clock.ended, output[0, 0, 0, 0].item())) or output
        loop.scheduler.set_timesteps(3)
        for step, time in enumerate(loop.scheduler.timesteps):
            for again in range(2):
                loop.scheduler.step(torch.full_like(latents, 2 * step + again), time, latents)
    assert seen == [(0, 0.0), (1, 2.0), (2, 4.0)]


def coherence(angles):
    rows = np.array(angles, dtype=float)
    return Coherence((), ((PROMPT, 0),) * len(rows), rows, np.ones_like(rows))


def test_the_interval_is_the_longest_below_the_threshold():
    rows = [
        [math.nan, 0.4, 0.05, 0.05, 0.3, 0.1, 0.05, 0.15, 0.5],
        [math.nan, 0.4, 0.05, 0.05, 0.3, 0.1, 0.15, 0.05, 1],
    ]
    assert coherence(rows).interval(0.2) == (5, 7)
    # Means count, and a mean of just the threshold is not below it; of two as long it is the first.
    assert coherence(rows).interval(0.1) == (2, 3)
    assert coherence(rows).interval(9) == (1, 8)
    with pytest.raises(FestinaError, match=r"no angle is below 0\.01; the least is 0\.050"):
        coherence(rows).interval(0.01)
    with pytest.raises(FestinaError, match="of a run of 1 step, which has no neighbour"):
        coherence([[math.nan]]).interval()
    with pytest.raises(FestinaError, match="a run that replayed"):
        Coherence((3,), ((PROMPT, 0),), np.zeros((1, 5)), np.ones((1, 5))).interval()


def test_factors_are_means_over_pictures():
    factors = np.array([[math.nan, 1.0, 0.9], [math.nan, 1.0, 1.1]])
    found = Coherence((2,), ((PROMPT, 0), (PROMPT, 1)), factors, factors)
    assert found.mean_factors() == {2: pytest.approx(1.0)}
    assert found.deviations() == {2: pytest.approx(0.1)}


def test_calls_that_cannot_be_measured():
    pipe = pixart_pipeline()
    for arguments, message in (
        (([], STEPS), "0 prompts and 0 seeds"),
        (([PROMPT], STEPS, (0,)), "nothing can be replayed in step 0; wanted 1 to 7"),
        (([PROMPT], STEPS, (8,)), "nothing can be replayed in step 8"),
    ):
        with pytest.raises(FestinaError, match=message):
            measure_coherence(pipe, *arguments, call=CALL)
    with pytest.raises(FestinaError, match="prompts, seeds and guidance decide"):
        measure_coherence(pipe, [PROMPT], STEPS, call=CALL | {"prompt": "a"})


def test_in_a_flow_sampler_it_leaves_out_noise_levels():
    """Without measured factors: fewer and longer steps where it replays."""
    pipe = flux_pipeline()
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    plan = ltc_accel(pipe, STEPS)
    sigmas = np.linspace(1.0, 1 / STEPS, STEPS)
    kept = [place for place, step in enumerate(plan.steps) if not step.replays]
    with festina.accelerate(pipe, plan) as run:
        found = draw(pipe)
        assert sum(run.report().shapes.values()) == len(kept) == 6
    generator = torch.Generator().manual_seed(0)
    merged = pipe(PROMPT, sigmas=sigmas[kept], generator=generator, output_type="latent", **FLUX).images
    torch.testing.assert_close(found, merged, rtol=1e-4, atol=1e-4)
