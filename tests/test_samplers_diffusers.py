"""`PlanScheduler` makes the samples of diffusers' schedulers on the grids of these schedulers."""

import diffusers
import pytest
import torch
from samplers_toy import BETAS, levels_of, noise, output, run

from festina.samplers import Frame, PlanScheduler, SamplerRun, SolverStep, SolverTable, compile_table

FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
CLOSE = 3e-6
"""Largest difference of samples of size 2 in float32, where the other side computes its weights in float32."""


def difference(source, steps, prediction, **settings):
    ours = PlanScheduler.from_scheduler(source, **settings)
    ours.set_timesteps(steps)
    source.set_timesteps(steps)
    assert torch.equal(ours.timesteps.long(), source.timesteps.long())
    levels = levels_of(ours)
    start = noise()
    return (run(ours, levels, start, prediction) - run(source, levels, start, prediction)).abs().max().item()


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
class TestVariancePreserving:
    @pytest.mark.parametrize("to_one", [True, False])
    def test_ddim(self, steps, prediction, to_one):
        source = diffusers.DDIMScheduler(
            clip_sample=False, set_alpha_to_one=to_one, steps_offset=1, prediction_type=prediction, **BETAS
        )
        assert difference(source, steps, prediction, solver_order=1) < CLOSE

    def test_ddim_parallel(self, steps, prediction):
        source = diffusers.DDIMParallelScheduler(
            clip_sample=False, set_alpha_to_one=False, prediction_type=prediction, **BETAS
        )
        assert difference(source, steps, prediction, solver_order=1) < CLOSE

    @pytest.mark.parametrize("spacing", ["leading", "trailing"])
    def test_cogvideox_ddim(self, steps, prediction, spacing):
        # It has a setting for clipping that it does not heed.
        source = diffusers.CogVideoXDDIMScheduler(
            clip_sample=True, snr_shift_scale=3.0, timestep_spacing=spacing, prediction_type=prediction
        )
        assert difference(source, steps, prediction, solver_order=1) < CLOSE

    @pytest.mark.parametrize(
        ("order", "kind", "solver"),
        [
            (1, "midpoint", "data"),
            (2, "midpoint", "data_released"),
            (2, "heun", "data"),
            (3, "midpoint", "data_released"),
        ],
    )
    def test_dpm_solver_plus_plus(self, steps, prediction, order, kind, solver):
        source = diffusers.DPMSolverMultistepScheduler(
            solver_order=order, solver_type=kind, prediction_type=prediction, **BETAS
        )
        # It lowers the order of final steps below 15 steps only.
        found = difference(source, steps, prediction, solver=solver, solver_order=order, lower_order_final=steps < 15)
        assert found < CLOSE

    @pytest.mark.parametrize(
        ("order", "kind", "solver"),
        [
            (1, "midpoint", "noise"),
            (2, "midpoint", "noise_released"),
            (2, "heun", "noise"),
            (3, "midpoint", "noise_released"),
        ],
    )
    def test_dpm_solver(self, steps, prediction, order, kind, solver):
        source = diffusers.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
            solver_order=order,
            solver_type=kind,
            prediction_type=prediction,
            **BETAS,
        )
        found = difference(source, steps, prediction, solver=solver, solver_order=order, lower_order_final=steps < 15)
        assert found < CLOSE

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_unipc_with_corrector(self, steps, prediction, order):
        source = diffusers.UniPCMultistepScheduler(solver_order=order, prediction_type=prediction, **BETAS)
        assert difference(source, steps, prediction, solver="unipc_bh2", solver_order=order, corrector=True) < CLOSE

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_unipc_bh1_up_to_a_final_step_that_is_finite(self, steps, prediction, order):
        source = diffusers.UniPCMultistepScheduler(
            solver_order=order, solver_type="bh1", final_sigmas_type="sigma_min", prediction_type=prediction, **BETAS
        )
        assert difference(source, steps, prediction, solver="unipc_bh1", solver_order=order, corrector=True) < CLOSE

    # The third order has closed forms in float32 there, with cancellation.
    @pytest.mark.parametrize(("order", "tolerance"), [(1, CLOSE), (2, CLOSE), (3, 1e-4)])
    def test_deis_is_the_noise_form(self, steps, prediction, order, tolerance):
        source = diffusers.DEISMultistepScheduler(solver_order=order, prediction_type=prediction, **BETAS)
        found = difference(source, steps, prediction, solver="noise", solver_order=order, lower_order_final=steps < 15)
        assert found < tolerance


@pytest.mark.parametrize("steps", [4, 7, 20])
class TestFlow:
    @pytest.mark.parametrize("solver", ["data", "noise", "adams_bashforth", "deis_time", "unipc_bh1"])
    def test_every_first_order_is_eulers(self, steps, solver):
        source = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        assert difference(source, steps, "flow_prediction", solver=solver, solver_order=1) < CLOSE

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_unipc(self, steps, order):
        source = diffusers.UniPCMultistepScheduler(solver_order=order, **FLOW)
        found = difference(source, steps, "flow_prediction", solver="unipc_bh2", solver_order=order, corrector=True)
        assert found < CLOSE

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_dpm_solver_plus_plus(self, steps, order):
        source = diffusers.DPMSolverMultistepScheduler(solver_order=order, **FLOW)
        found = difference(
            source, steps, "flow_prediction", solver="data_released", solver_order=order, lower_order_final=steps < 15
        )
        assert found < CLOSE

    @pytest.mark.parametrize(("order", "tolerance"), [(1, 1e-11), (2, 1e-11), (3, 1e-6)])
    def test_deis(self, steps, order, tolerance):
        # In float64: its weights in float32 lose four digits where a sample is nearly pure noise.
        source = diffusers.DEISMultistepScheduler(solver_order=order, **FLOW)
        ours = PlanScheduler.from_scheduler(source, solver="noise", solver_order=order, lower_order_final=steps < 15)
        ours.set_timesteps(steps)
        source.set_timesteps(steps)
        source.sigmas = source.sigmas.double()
        levels, start = levels_of(ours), noise(dtype=torch.float64)
        found = run(ours, levels, start, "flow_prediction") - run(source, levels, start, "flow_prediction")
        assert found.abs().max() < tolerance


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_euler_in_its_own_frame(spacing):
    source = diffusers.EulerDiscreteScheduler(timestep_spacing=spacing, **BETAS)
    ours = PlanScheduler.from_scheduler(source, solver_order=1)
    ours.set_timesteps(8)
    source.set_timesteps(8)
    levels = levels_of(ours)
    start = noise()
    scaled = start / levels[0].alpha
    for timestep, level in zip(source.timesteps, levels, strict=True):
        seen = source.scale_model_input(scaled, timestep)
        scaled = source.step(output(seen, level, "epsilon"), timestep, scaled, return_dict=False)[0]
    assert (run(ours, levels, start, "epsilon") - scaled).abs().max() < CLOSE


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_cogvideox_ddim_from_pure_noise(steps, scale):
    # Its first level has no share of the picture; ours has one of 2**-12, the largest that a grid can count from.
    source = diffusers.CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, snr_shift_scale=scale, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    assert difference(source, steps, "v_prediction", solver_order=1) < 1e-3


@pytest.mark.parametrize("steps", [6, 25])
def test_euler_with_continuous_times(steps):
    # The settings of Stable Video Diffusion.
    source = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        steps_offset=1,
        **BETAS,
    )
    ours = PlanScheduler.from_scheduler(source, solver_order=1)
    ours.set_timesteps(steps)
    source.set_timesteps(steps)
    assert ours.init_noise_sigma == pytest.approx(float(source.init_noise_sigma), rel=1e-6)
    assert torch.equal(ours.timesteps, source.timesteps)
    mine = theirs = noise() * source.init_noise_sigma
    for timestep in source.timesteps:
        said = torch.tanh(source.scale_model_input(theirs, timestep) + timestep)
        theirs = source.step(said, timestep, theirs).prev_sample
        mine = ours.step(torch.tanh(ours.scale_model_input(mine, timestep) + timestep), timestep, mine).prev_sample
    assert (mine - theirs).abs().max() < 1e-4  # samples begin at size 700


def test_ipndm_from_its_second_call_on():
    """Adams-Bashforth of the orders 1, 2, 3, 4, 4, ... on the levels of `IPNDMScheduler`, whose network predicts v.

    Its first level is pure noise, where it takes 0 for the picture that the network's output says: it divides by alpha
    where that is 0. There the samples differ, and the run goes on here from its sample.
    """
    source = diffusers.IPNDMScheduler()
    source.set_timesteps(9)
    source.betas = source.betas.double()
    source.alphas = (1 - source.betas**2).sqrt()
    noises = [1e12, *(source.betas / source.alphas)[1:-1].tolist()]
    frame = Frame("variance_preserving", "v_prediction", 9, tuple(noises[::-1]))
    table = SolverTable(
        tuple(SolverStep(value, "adams_bashforth", min(place + 1, 4)) for place, value in enumerate(noises))
    )
    ours, theirs = SamplerRun(compile_table(table, frame), frame), noise(dtype=torch.float64)
    for place, (timestep, value) in enumerate(zip(source.timesteps, noises, strict=True)):
        said = output(theirs, frame.level(value), "v_prediction")
        mine = ours.step(said, theirs)
        theirs = source.step(said, timestep, theirs).prev_sample
        if place == 0:
            level = frame.level(noises[1])
            torch.testing.assert_close(theirs, level.sigma * noise(dtype=torch.float64), atol=1e-10, rtol=0)
            assert (mine - theirs).abs().max() > 0.01
        else:
            torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_edm_euler():
    source = diffusers.EDMEulerScheduler()
    ours = PlanScheduler.from_scheduler(source, solver_order=1)
    assert ours.init_noise_sigma == source.init_noise_sigma
    ours.set_timesteps(8)
    source.set_timesteps(8)
    torch.testing.assert_close(ours.timesteps, source.timesteps)
    mine = theirs = noise() * source.init_noise_sigma
    for timestep in source.timesteps:
        said = torch.tanh(source.scale_model_input(theirs, timestep))
        torch.testing.assert_close(ours.scale_model_input(mine, timestep), source.scale_model_input(theirs, timestep))
        mine = ours.step(torch.tanh(ours.scale_model_input(mine, timestep)), timestep, mine).prev_sample
        theirs = source.step(said, timestep, theirs).prev_sample
    assert (mine - theirs).abs().max() < 1e-4  # samples begin at size 80
