"""Grids of `PlanScheduler`: shifts, times, final levels, and the traps of other schedulers."""

import diffusers
import numpy as np
import pytest
import torch
from samplers_toy import BETAS, FLUX, flow, levels_of, noise, output, run, table, vp

from festina import FestinaError
from festina.samplers import SOURCES, PlanScheduler, SolverTable, shifted


def test_a_tables_levels_are_never_shifted():
    scheduler = flow(table=table(1.0, 0.75, 0.5, 0.25))
    scheduler.set_timesteps(4)
    assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert scheduler.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]


def test_levels_before_the_shift_are_shifted_once():
    steps = table(1.0, 0.75, 0.5, 0.25).steps
    scheduler = flow(table=SolverTable(steps, before_shift=True))
    scheduler.set_timesteps(4)
    expected = [shifted(value, 3.0) for value in (1.0, 0.75, 0.5, 0.25)]
    np.testing.assert_allclose(scheduler.sigmas[:-1], expected, atol=1e-6)
    # A run changes nothing about the next one, and a shift by size is taken from the run.
    dynamic = PlanScheduler.from_scheduler(
        diffusers.FlowMatchEulerDiscreteScheduler(**FLUX), table=SolverTable(steps, before_shift=True)
    )
    for mu in (0.5, 1.1, 0.5):
        dynamic.set_timesteps(sigmas=[1.0, 0.7, 0.4, 0.1], mu=mu)
        expected = [shifted(value, float(np.exp(mu))) for value in (1.0, 0.75, 0.5, 0.25)]
        np.testing.assert_allclose(dynamic.sigmas[:-1], expected, atol=1e-6)
        np.testing.assert_allclose(dynamic.timesteps, 1000 * np.array(expected), atol=1e-3)


def test_levels_before_a_linear_shift_are_shifted_by_mu_itself():
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    steps, mu = SolverTable(table(1.0, 0.75, 0.5, 0.25).steps, before_shift=True), 2.2
    unipc = diffusers.UniPCMultistepScheduler(**settings, time_shift_type="linear")
    euler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    for source in (unipc, euler):
        scheduler = PlanScheduler.from_scheduler(source, steps)
        scheduler.set_timesteps(4, mu=mu)
        np.testing.assert_allclose(scheduler.sigmas[:-1], [shifted(v, mu) for v in (1.0, 0.75, 0.5, 0.25)], atol=1e-6)
        # As the source shifts its own levels.
        plain = PlanScheduler.from_scheduler(source)
        plain.set_timesteps(6, mu=mu)
        source.set_timesteps(6, mu=mu)
        torch.testing.assert_close(plain.sigmas, source.sigmas)
    for kind in (diffusers.DPMSolverMultistepScheduler, diffusers.DEISMultistepScheduler):
        source = kind(**settings, time_shift_type="linear")
        for scheduler in (PlanScheduler.from_scheduler(source), PlanScheduler.from_scheduler(source, steps)):
            with pytest.raises(FestinaError, match=f"{kind.__name__} knows no time_shift_type"):
                scheduler.set_timesteps(4, mu=mu)


@pytest.mark.parametrize("mu", [0.5, 1.15])
def test_a_flow_pipelines_levels_are_shifted_once_as_in_diffusers(mu):
    source = diffusers.FlowMatchEulerDiscreteScheduler(**FLUX)
    scheduler = PlanScheduler.from_scheduler(source)
    asked = np.linspace(1.0, 1 / 6, 6)
    scheduler.set_timesteps(sigmas=asked, mu=mu)
    source.set_timesteps(sigmas=asked, mu=mu)
    torch.testing.assert_close(scheduler.sigmas, source.sigmas)
    torch.testing.assert_close(scheduler.timesteps, source.timesteps)
    np.testing.assert_allclose(scheduler.sigmas[:-1], [shifted(value, np.exp(mu)) for value in asked], atol=1e-6)


def test_custom_levels_reach_a_solver_whose_own_scheduler_has_none():
    source = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    scheduler = PlanScheduler.from_scheduler(source)
    # A pipeline that reads a true use_flow_sigmas drops the levels it was given.
    assert "use_flow_sigmas" not in scheduler.config
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.2])
    expected = [shifted(value, 3.0) for value in (0.9, 0.5, 0.2)]
    np.testing.assert_allclose(scheduler.sigmas, [*expected, 0.0], atol=1e-7)


def test_fractional_times_reach_the_network_untruncated():
    source = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    scheduler = PlanScheduler.from_scheduler(source)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])
    assert (scheduler.timesteps != scheduler.timesteps.round()).any()
    model = vp()
    model.set_timesteps(timesteps=[900.5, 400.25, 10.0])
    assert model.timesteps.tolist() == [900.5, 400.25, 10.0]
    assert model.sigmas[0].item() == pytest.approx(model.frame.noise_at(900.5))
    model.set_timesteps(timesteps=[900, 400, 10])
    assert model.timesteps.dtype == torch.int64


def test_uneven_timesteps_step_to_the_next_one():
    # PNDM steps by an even stride whatever its timesteps are.
    source = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, **BETAS)
    scheduler = PlanScheduler.from_scheduler(source, solver_order=1)
    scheduler.set_timesteps(timesteps=[900, 650, 30])
    levels, x = levels_of(scheduler), noise(dtype=torch.float64)
    end = run(scheduler, levels, x, "epsilon")
    targets = [*(scheduler.frame.level(scheduler.frame.noise_at(time)) for time in (650, 30)), scheduler.frame.level(0)]
    for level, target in zip(levels, targets, strict=True):
        dirt = output(x, level, "epsilon")
        x = target.alpha * (x - level.sigma * dirt) / level.alpha + target.sigma * dirt
    torch.testing.assert_close(end, x, atol=1e-6, rtol=0)


def test_final_levels_are_those_of_the_source():
    deis = PlanScheduler.from_scheduler(diffusers.DEISMultistepScheduler(**BETAS))
    deis.set_timesteps(5)
    assert deis.sigmas[-1].item() == pytest.approx(0.0292, abs=1e-4)
    clean = PlanScheduler.from_scheduler(diffusers.DEISMultistepScheduler(**BETAS), table=table(10.0, 2.0, 0.5))
    clean.set_timesteps(3)
    assert clean.sigmas[-1] == 0
    levels = vp()
    levels.set_timesteps(sigmas=[14.0, 3.0, 0.4, 0.0])  # as lists of noise levels are published, with their end
    assert len(levels.timesteps) == 3
    assert levels.sigmas.tolist() == pytest.approx([14.0, 3.0, 0.4, 0.0])


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_grid_that_falls(name):
    settings = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    scheduler = PlanScheduler.from_scheduler(getattr(diffusers, name)(**settings), solver_order=3)
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 10
    assert len(scheduler.sigmas) == 11
    assert (scheduler.sigmas.diff() <= 0).all()
    assert (scheduler.timesteps.float().diff() < 0).all()
    x = noise() * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, timestep)), timestep, x).prev_sample
    assert x.isfinite().all()


def test_levels_between_training_times_are_kept_with_the_sources_rounded_times():
    source = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **BETAS)
    scheduler = PlanScheduler.from_scheduler(source)
    source.set_timesteps(12)
    scheduler.set_timesteps(12)
    assert torch.equal(scheduler.timesteps, source.timesteps)
    torch.testing.assert_close(scheduler.sigmas, source.sigmas)
