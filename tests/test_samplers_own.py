"""The sampler that a pipeline has already, as a table: it draws the same samples."""

import diffusers
import pytest
import torch
from samplers_pipe import ToyPipe
from samplers_toy import BETAS, levels_of, noise, run

from festina import FestinaError
from festina.samplers import PlanScheduler
from festina.samplers.own import own_table, replica

CLOSE = 3e-6
"""Largest difference of samples of size 2; the other side computes its weights in float32."""


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "lower_order_final": False},
        ),
        ("DPMSolverMultistepScheduler", {"lower_order_final": False, "use_karras_sigmas": True}),
        ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
        ("DDIMParallelScheduler", {"clip_sample": False}),
        ("CogVideoXDDIMScheduler", {"clip_sample": False}),
        ("UniPCMultistepScheduler", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("DEISMultistepScheduler", {"solver_order": 2}),
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ],
)
def test_the_table_draws_what_the_scheduler_draws(name, settings, steps):
    pipe = ToyPipe()
    own = pipe.scheduler = getattr(diffusers, name)(**settings, **BETAS)
    table = own_table(pipe, steps, lambda: pipe(steps))
    assert pipe.scheduler is own
    assert table.calls == steps
    assert (pipe.drawn(table) - _own(pipe, own, steps)).abs().max() < CLOSE


@pytest.mark.parametrize("steps", [6, 20])
def test_of_flow_models_levels_are_after_the_shift(steps):
    pipe = ToyPipe(flow=True)
    own = pipe.scheduler
    table = own_table(pipe, steps, lambda: pipe(steps))
    own.set_timesteps(steps)
    assert not table.before_shift
    assert [step.noise for step in table.steps] == pytest.approx(own.sigmas[:-1].tolist(), rel=1e-6)
    assert (pipe.drawn(table) - _own(pipe, own, steps)).abs().max() < CLOSE


def _own(pipe, own, steps):
    """What the scheduler itself draws: it does not tell levels as `PlanScheduler` does, so these come from one."""
    levels = PlanScheduler.from_scheduler(own)
    levels.set_timesteps(steps)
    own.set_timesteps(steps)
    return run(own, levels_of(levels), noise(0, 64, torch.float64), pipe.prediction, pipe.centres)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EDMEulerScheduler", {}),
        ("EDMDPMSolverMultistepScheduler", {}),
        ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
        ("EDMDPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ],
)
def test_of_edm_models_too(name, settings, steps):
    own = getattr(diffusers, name)(**settings)
    ends = []
    for scheduler in (own, replica(own, steps)):
        scheduler.set_timesteps(steps)
        sample = noise(0, 64, torch.float64) * float(scheduler.init_noise_sigma)
        for time in scheduler.timesteps:
            said = torch.tanh(1.3 * scheduler.scale_model_input(sample, time) + 0.2)
            sample = scheduler.step(said, time, sample, return_dict=False)[0]
        ends.append(sample)
    # Samples begin at size 80.
    assert (ends[0] - ends[1]).abs().max() < 1e-4


def test_of_a_plan_scheduler_it_is_a_new_one_alike():
    scheduler = PlanScheduler.from_scheduler(diffusers.DDIMScheduler(clip_sample=False), solver_order=3)
    found = replica(scheduler, 5)
    assert found is not scheduler
    assert found.config == scheduler.config


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "not known as a table. Known are"),
        (diffusers.EulerAncestralDiscreteScheduler(), "EulerAncestralDiscreteScheduler"),
        (diffusers.LMSDiscreteScheduler(), "LMSDiscreteScheduler"),
        (diffusers.DPMSolverMultistepScheduler(euler_at_final=True), "with euler_at_final True .* wanted False"),
        (diffusers.UniPCMultistepScheduler(disable_corrector=[0]), r"disable_corrector \[0\]"),
        (diffusers.UniPCMultistepScheduler(predict_x0=False), "predict_x0 False"),
        (diffusers.DPMSolverMultistepScheduler(solver_order=3, solver_type="heun"), "mixes two .* wanted 'midpoint'"),
        (diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="linspace"), "'linspace' does not step"),
        (diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), "'trailing' .* of 7 steps"),
    ],
)
def test_other_solvers_are_refused(scheduler, said):
    with pytest.raises(FestinaError, match=said):
        replica(scheduler, 7)


def test_drawing_nothing_or_something_else_is_told():
    pipe = ToyPipe()
    own = pipe.scheduler
    with pytest.raises(FestinaError, match="nothing was drawn"):
        own_table(pipe, 5, lambda: None)
    with pytest.raises(FestinaError, match="a run of 6 network calls; wanted 5"):
        own_table(pipe, 5, lambda: pipe(6))
    assert pipe.scheduler is own
    # A run of before says nothing of this one.
    pipe.scheduler = PlanScheduler.from_scheduler(own)
    pipe(5)
    with pytest.raises(FestinaError, match="nothing was drawn"):
        own_table(pipe, 5, lambda: None)
