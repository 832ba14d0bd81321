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


@pytest.mark.parametrize("curve", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_a_curve_of_the_scheduler_leaves_a_tables_levels_alone(curve):
    source = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **{curve: True})
    scheduler = PlanScheduler.from_scheduler(source, SolverTable(table(1.0, 0.75, 0.5, 0.25).steps, before_shift=True))
    scheduler.set_timesteps(4)
    np.testing.assert_allclose(scheduler.sigmas, [1.0, 0.9, 0.75, 0.5, 0.0], atol=1e-7)
    np.testing.assert_allclose(scheduler.timesteps, [1000.0, 900.0, 750.0, 500.0], atol=1e-3)
    # Levels that a pipeline passes go through the curve, as they do in the source.
    plain, asked = PlanScheduler.from_scheduler(source), [1.0, 0.75, 0.5, 0.25]
    plain.set_timesteps(sigmas=asked)
    source.set_timesteps(sigmas=asked)
    assert torch.equal(plain.sigmas, source.sigmas)


def test_the_final_level_is_shifted_with_the_others():
    steps = table(1.0, 0.75, 0.5, 0.25).steps
    scheduler = flow(table=SolverTable(steps, 0.1, before_shift=True))
    scheduler.set_timesteps(4)
    np.testing.assert_allclose(scheduler.sigmas, [1.0, 0.9, 0.75, 0.5, 0.25], atol=1e-7)
    assert scheduler.run_table.final_noise == pytest.approx(0.25)
    # A shift down, too, keeps it below the last level.
    source = diffusers.FlowMatchEulerDiscreteScheduler(**FLUX)
    down = PlanScheduler.from_scheduler(source, SolverTable(steps, 0.24, before_shift=True))
    down.set_timesteps(4, mu=-1.0)
    assert down.sigmas[-1].item() == pytest.approx(shifted(0.24, float(np.exp(-1.0))))


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_levels_are_stretched_to_a_last_one_as_in_diffusers(name):
    unipc = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    settings = unipc if name.startswith("UniPC") else {"shift": 3.0}
    source = getattr(diffusers, name)(shift_terminal=0.1, **settings)
    asked = np.array([0.999, 0.75, 0.5, 0.25])
    source.set_timesteps(sigmas=asked)
    scheduler = PlanScheduler.from_scheduler(source, SolverTable(table(*asked).steps, before_shift=True))
    scheduler.set_timesteps(4)
    torch.testing.assert_close(scheduler.sigmas, source.sigmas)
    assert scheduler.sigmas[3].item() == pytest.approx(0.1)
    ends = PlanScheduler.from_scheduler(source, SolverTable(table(*asked).steps, 0.1, before_shift=True))
    with pytest.raises(FestinaError, match=r"ends at the level 0\.1 before the shift"):
        ends.set_timesteps(4)
    single = PlanScheduler.from_scheduler(source, SolverTable(table(1.0).steps, before_shift=True))
    with pytest.raises(FestinaError, match="shift_terminal cannot stretch"):
        single.set_timesteps(1)


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


def source_of(name):
    clips = name.startswith(("DDIM", "DDPM"))
    # With Runge-Kutta steps it also calls the network between its levels.
    warms = name == "PNDMScheduler"
    return getattr(diffusers, name)(**{"clip_sample": False} if clips else {"skip_prk_steps": True} if warms else {})


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("name", SOURCES)
def test_levels_and_times_are_those_of_the_source(name, steps):
    source = source_of(name)
    scheduler = PlanScheduler.from_scheduler(source)
    scheduler.set_timesteps(steps)
    source.set_timesteps(steps)
    times = source.timesteps.double().unique().flip(0)
    if hasattr(source, "sigmas"):
        levels = source.sigmas.double()
    else:
        kept = source.alphas_cumprod.double()
        kept = torch.cat(
            [kept[times.long()], torch.ones(1) if source.config.get("set_alpha_to_one", True) else kept[:1]]
        )
        levels = ((1 - kept) / kept).sqrt()
    torch.testing.assert_close(scheduler.sigmas.double(), levels, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(scheduler.timesteps.double(), times, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_grid_that_falls(name):
    scheduler = PlanScheduler.from_scheduler(source_of(name), solver_order=3)
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 10
    assert len(scheduler.sigmas) == 11
    assert (scheduler.sigmas.diff() <= 0).all()
    assert (scheduler.timesteps.float().diff() < 0).all()
    x = noise() * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, timestep)), timestep, x).prev_sample
    assert x.isfinite().all()


@pytest.mark.parametrize("curve", ["karras", "exponential"])
@pytest.mark.parametrize("steps", range(4, 21))
def test_a_final_level_at_the_smallest_survives_rounding(steps, curve):
    source = diffusers.EDMDPMSolverMultistepScheduler(final_sigmas_type="sigma_min", sigma_schedule=curve)
    scheduler = PlanScheduler.from_scheduler(source, solver="data_released", lower_order_final=steps < 15)
    scheduler.set_timesteps(steps)
    source.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas, source.sigmas, rtol=1e-5, atol=0)
    assert scheduler.sigmas[-1] <= scheduler.sigmas[-2]
    mine = theirs = noise() * source.init_noise_sigma
    for timestep in source.timesteps:
        said = torch.tanh(source.scale_model_input(theirs, timestep))
        mine = scheduler.step(torch.tanh(scheduler.scale_model_input(mine, timestep)), timestep, mine).prev_sample
        theirs = source.step(said, timestep, theirs).prev_sample
    assert (mine - theirs).abs().max() < 1e-4  # samples begin at size 80


def test_a_final_level_really_above_the_last_is_refused():
    source = diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, final_sigmas_type="sigma_min", **BETAS
    )
    with pytest.raises(FestinaError, match="Noise falls"):
        PlanScheduler.from_scheduler(source).set_timesteps(8)


def test_levels_that_do_not_belong_to_the_times_are_refused():
    source = diffusers.EulerDiscreteScheduler(interpolation_type="log_linear", **BETAS)
    with pytest.raises(FestinaError, match="9 noise levels for 8 timesteps"):
        PlanScheduler.from_scheduler(source).set_timesteps(8)


SVD = {"timestep_type": "continuous", "prediction_type": "v_prediction", **BETAS}
KARRAS = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading"}


@pytest.mark.parametrize("settings", [KARRAS, {"timestep_spacing": "trailing"}, {"final_sigmas_type": "sigma_min"}])
def test_continuous_times_are_told_and_inverted(settings):
    source = diffusers.EulerDiscreteScheduler(**SVD, **settings)
    scheduler = PlanScheduler.from_scheduler(source)
    assert (scheduler.frame.family, scheduler.frame.sigma_data) == ("edm", 1.0)
    source.set_timesteps(6)
    scheduler.set_timesteps(6)
    torch.testing.assert_close(scheduler.sigmas, source.sigmas)
    assert torch.equal(scheduler.timesteps, source.timesteps)
    assert scheduler.frame.largest_noise == pytest.approx(source.sigmas[0].item(), rel=1e-6)
    first = (noise(), source.timesteps[0])
    torch.testing.assert_close(scheduler.scale_model_input(*first), source.scale_model_input(*first))
    # Levels and times of one's own end where the source ends.
    again = PlanScheduler.from_scheduler(source)
    again.set_timesteps(timesteps=source.timesteps.tolist())
    torch.testing.assert_close(again.sigmas, source.sigmas, rtol=1e-5, atol=0)


def test_continuous_times_without_one_largest_level_are_refused():
    source = diffusers.EulerDiscreteScheduler(**SVD, timestep_spacing="leading")
    with pytest.raises(FestinaError, match=r"with 2 steps and .* with 7\. Set sigma_max"):
        PlanScheduler.from_scheduler(source)
    # Diffusers heeds the setting for networks that predict v only.
    noisy = diffusers.EulerDiscreteScheduler(**{**SVD, "prediction_type": "epsilon"}, timestep_spacing="leading")
    assert PlanScheduler.from_scheduler(noisy).frame.family == "variance_preserving"


@pytest.mark.parametrize(
    ("twice", "once", "settings"),
    [
        ("HeunDiscreteScheduler", "EulerDiscreteScheduler", BETAS),
        ("KDPM2AncestralDiscreteScheduler", "EulerDiscreteScheduler", BETAS),
        ("KDPM2DiscreteScheduler", "EulerDiscreteScheduler", BETAS),
        ("FlowMatchHeunDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_the_scheduler_named_for_one_that_calls_twice_has_its_levels(twice, once, settings):
    source = getattr(diffusers, twice)(**settings)
    with pytest.raises(FestinaError, match=rf"begin with {once}\.from_config"):
        PlanScheduler.from_scheduler(source)
    scheduler = PlanScheduler.from_scheduler(getattr(diffusers, once).from_config(source.config))
    source.set_timesteps(6)
    scheduler.set_timesteps(6)
    torch.testing.assert_close(scheduler.sigmas, source.sigmas.unique().flip(0))
    assert (scheduler.timesteps[:, None] - source.timesteps).abs().min(dim=1).values.max() < 1e-3


def test_levels_between_training_times_are_kept_with_the_sources_rounded_times():
    source = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **BETAS)
    scheduler = PlanScheduler.from_scheduler(source)
    source.set_timesteps(12)
    scheduler.set_timesteps(12)
    assert torch.equal(scheduler.timesteps, source.timesteps)
    torch.testing.assert_close(scheduler.sigmas, source.sigmas)
