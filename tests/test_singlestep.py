"""Singlestep DPM-Solver and DPM-Solver++: equality with diffusers, orders, and what is refused."""

from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from samplers_toy import BETAS, flow, levels_of, noise, run, vp

from festina import FestinaError
from festina.samplers import PlanScheduler
from festina.samplers.singlestep import call_orders, singlestep
from festina.samplers.times import uniform_log_snr

CLOSE = 1e-9
"""Largest difference of samples of size 2, all in float64."""

FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
FORMS = {"dpmsolver++": "data", "dpmsolver": "noise"}


def difference(source, steps, prediction, **settings):
    source.set_timesteps(steps)
    # Its weights in float32 lose digits where a step is long.
    source.sigmas, start = source.sigmas.double(), noise(dtype=torch.float64)
    *noises, final = source.sigmas.double().tolist()
    frame = PlanScheduler.from_scheduler(source).frame
    made = singlestep(frame, noises, final_noise=final, **settings)
    ours = PlanScheduler.from_scheduler(source, made)
    ours.set_timesteps(steps)
    np.testing.assert_allclose(ours.timesteps, source.timesteps, atol=1.0)
    levels = levels_of(ours)
    return (run(ours, levels, start, prediction) - run(source, levels, start, prediction)).abs().max().item()


@pytest.mark.parametrize("steps", [2, 3, 5, 6, 7, 8, 20])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
class TestAsInDiffusers:
    @pytest.mark.parametrize("algorithm", FORMS)
    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
    def test_variance_preserving_to_the_least_level(self, steps, kind, order, algorithm, prediction):
        source = diffusers.DPMSolverSinglestepScheduler(
            algorithm_type=algorithm,
            final_sigmas_type="sigma_min",
            lower_order_final=True,
            solver_order=order,
            solver_type=kind,
            prediction_type=prediction,
            **BETAS,
        )
        solver = FORMS[algorithm] + ("_released" if kind == "midpoint" else "")
        assert difference(source, steps, prediction, solver=solver, order=order) < CLOSE

    @pytest.mark.parametrize("settings", [{"prediction_type": "epsilon", **BETAS}, FLOW])
    def test_to_the_clean_end(self, steps, kind, order, settings):
        source = diffusers.DPMSolverSinglestepScheduler(
            lower_order_final=True, solver_order=order, solver_type=kind, **settings
        )
        solver = "data" + ("_released" if kind == "midpoint" else "")
        assert difference(source, steps, settings["prediction_type"], solver=solver, order=order) < CLOSE


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_all_steps_of_one_order_as_in_diffusers(order, kind):
    source = diffusers.DPMSolverSinglestepScheduler(
        final_sigmas_type="sigma_min", lower_order_final=False, solver_order=order, solver_type=kind, **BETAS
    )
    solver = "data" + ("_released" if kind == "midpoint" else "")
    found = difference(source, 6, "epsilon", solver=solver, order=order, lower_order_final=False)
    assert source.order_list == [1, 2, 3, 1, 2, 3] if order == 3 else [1, 2, 1, 2, 1, 2]
    assert found < CLOSE


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_orders_are_those_of_diffusers(order, end):
    source = diffusers.DPMSolverSinglestepScheduler(solver_order=order, lower_order_final=True, final_sigmas_type=end)
    for calls in range(1, 30):
        assert call_orders(calls, order, clean=end == "zero") == source.get_order_list(calls)


def test_orders_of_the_last_steps():
    assert call_orders(9, 3) == [1, 2, 3, 1, 2, 3, 1, 2, 1]
    assert call_orders(10, 3) == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert call_orders(11, 3) == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 1]
    assert call_orders(11, 3, clean=False) == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]
    assert call_orders(6, 3, clean=False, lower_order_final=False) == [1, 2, 3, 1, 2, 3]
    assert call_orders(6, 2) == [1, 2, 1, 2, 1, 1]


@pytest.mark.parametrize("solver", ["data", "data_released", "noise", "noise_released"])
@pytest.mark.parametrize("even", [True, False])
def test_the_third_order_is_of_order_three_on_even_calls(solver, even):
    frame = vp().frame

    def drawn(steps):
        # Between two levels where the toy is smooth: even in the log signal-to-noise ratio, or steps of two lengths.
        shares = np.linspace(0, 1, steps + 1)
        if not even:
            shares[2::3] -= 0.6 / steps
        noises = 3.0 * 0.1**shares
        scheduler = vp(
            table=singlestep(frame, noises[:-1].tolist(), solver, 3, float(noises[-1]), lower_order_final=False)
        )
        scheduler.set_timesteps(steps)
        return run(scheduler, levels_of(scheduler), noise(dtype=torch.float64), "epsilon")

    exact = drawn(960)
    errors = [(drawn(steps) - exact).abs().mean().item() for steps in (30, 60, 120)]
    # The sample in the middle of a step is of the first order, and on uneven calls the last update weighs its output.
    for coarse, fine in pairwise(errors):
        assert (coarse / fine > 6) == even


def test_weights_of_a_step_use_its_own_calls_only():
    frame = vp().frame
    made = singlestep(frame, uniform_log_snr(frame, 7), "data_released", 3)
    assert [len(step.linear.outputs) if step.linear else 1 for step in made.steps] == [1, 2, 3, 1, 2, 3, 1]
    assert all(step.order == 1 for step in made.steps if step.linear is None)
    assert made.calls == 7
    # The published third order leaves the middle call out: only what takes the second update back remains of it.
    before, after = made.steps[1].linear, made.steps[2].linear
    assert after.outputs[1] == pytest.approx(-after.sample * before.outputs[0])


def test_what_singlestep_refuses():
    frame = vp().frame
    noises = uniform_log_snr(frame, 4)
    for make, said in (
        (lambda: singlestep(frame, noises, "unipc_bh2"), "no singlestep solver"),
        (lambda: singlestep(frame, noises, order=4), "no order 4"),
        (lambda: singlestep(frame, ()), "0 network calls"),
        (lambda: singlestep(frame, noises, lower_order_final=False), "4 network calls with a clean end"),
        (lambda: singlestep(frame, noises, order=3, final_noise=0.01, lower_order_final=False), "a multiple of 3"),
        (lambda: singlestep(frame, noises[::-1]), "do not fall"),
        (lambda: singlestep(frame, (3.0, 1.0, 1.0)), "3, 1, 1 do not fall"),
        (lambda: singlestep(frame, noises, final_noise=1.0), "Noise falls"),
        (lambda: singlestep(flow().frame, (1.0, 0.7, 0.5), "noise", 2, 0.1), "pure noise"),
    ):
        with pytest.raises(FestinaError, match=said):
            make()
