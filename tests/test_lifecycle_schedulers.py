"""Every scheduler of diffusers: a step is one entry of its timesteps; of order 1 or 2, deterministic or not."""

import diffusers
import pytest
import torch
from lifecycle import STEPS, Loop, Ran, all_compute, random_plan, reference
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError

PIXART = (
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers that the PixArt pipeline accepts."""

FLUX = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
"""Schedulers that the FLUX pipeline accepts."""

LOOP = ("FlowMatchHeunDiscreteScheduler", "FlowMapEulerDiscreteScheduler")
"""Schedulers for pipelines of which there is no tiny one here: driven by a loop like theirs."""

TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
"""Schedulers that need the torchsde library."""

LEFT_OUT = {
    "AmusedScheduler": "fills in masked tokens; its pipeline alone drives it",
    "BlockRefinementScheduler": "fills in tokens of a language model; no timesteps of a picture",
    "CogVideoXDPMScheduler": "its step wants two timesteps and the last prediction; CogVideoX alone drives it",
    "DDPMWuerstchenScheduler": "has no order and one more timestep than steps; Wuerstchen alone drives it",
    "DiscreteDDIMScheduler": "for tokens of a language model",
    "EntropyBoundScheduler": "for tokens of a language model",
    "HeliosDMDScheduler": "sets timesteps anew for every stage of a run, which Helios alone does",
    "HeliosScheduler": "sets timesteps anew for every stage of a run, which Helios alone does",
    "KarrasVeScheduler": "retired by diffusers",
    "LTXEulerAncestralRFScheduler": "takes sigmas that the LTX pipeline makes",
    "MiniMaxH3Scheduler": "takes a schedule that the pipeline of MiniMax H3 makes",
    "PiflowScheduler": "makes only the steps that a model was distilled for",
    "RFD4ProteinaScheduler": "for proteins; takes arguments that their pipeline alone gives",
    "RePaintScheduler": "jumps back to noisier timesteps, so that a step has no fixed row of a plan",
    "SCMScheduler": "for the two steps of Sana-Sprint, or steps of its own kind",
    "ScoreSdeVeScheduler": "has no step, but a prediction and a correction with a call each",
    "UnCLIPScheduler": "has no order; the unCLIP pipelines alone drive it",
    "VQDiffusionScheduler": "for tokens of VQ-Diffusion",
}
"""Schedulers that no text-to-image pipeline accepts in the place of its own, each with the reason."""


def published():
    """Names of all scheduler classes of diffusers, also of those whose libraries are missing."""
    return {name for name in dir(diffusers) if name.endswith("Scheduler")}


def made(name):
    """A pipeline with this scheduler, or a loop, and what runs it."""
    kind = getattr(diffusers, name)
    if name in LOOP:
        pipe = Loop(pixart_transformer(), kind())
        return pipe, lambda: pipe()
    pipe = flux_pipeline() if name in FLUX else pixart_pipeline()
    pipe.scheduler = kind()

    def run():
        torch.manual_seed(5)  # FLUX gives a stochastic scheduler no generator
        return generate(pipe)

    return pipe, run


def check(name):
    pipe, run = made(name)
    plain = run()
    assert torch.isfinite(plain).all()
    entries = len(pipe.scheduler.timesteps)
    with festina.accelerate(pipe, all_compute(pipe, entries)):
        assert torch.equal(run(), plain)
    plan = random_plan(pipe, 3, entries)
    with reference(pipe, plan):
        wanted = run()
    with festina.accelerate(pipe, plan) as attached:
        ran = Ran(pipe, attached)
        result = run()
        ran.remove()
        assert len(attached.store) == 0
        assert not attached.clock.running
        assert attached.clock.ended == entries
    for site, steps in ran.steps.items():
        assert tuple(step for step, _ in steps) == plan.computed_steps(site)
    assert torch.equal(result, wanted)
    assert not torch.equal(result, plain)
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("name", [*PIXART, *FLUX, *LOOP])
def test_a_plan_runs_with_every_scheduler(name):
    check(name)


@pytest.mark.parametrize("name", TORCHSDE)
def test_a_plan_runs_with_schedulers_that_need_torchsde(name):
    pytest.importorskip("torchsde")
    check(name)


def test_every_scheduler_of_diffusers_is_tried_or_left_out_for_a_reason():
    assert published() - {*PIXART, *FLUX, *LOOP, *TORCHSDE, *LEFT_OUT} == set()


@pytest.mark.parametrize(("name", "entries"), [("HeunDiscreteScheduler", 7), ("PNDMScheduler", 13)])
def test_a_wrong_number_of_steps_says_both_numbers_and_why(name, entries):
    pipe = pixart_pipeline()
    pipe.scheduler = getattr(diffusers, name)()
    said = (
        rf"plan has 4 steps, this run {entries} \({name} makes {entries} for num_inference_steps=4.*resample\({entries}"
    )
    with festina.accelerate(pipe, all_compute(pipe)) as run, pytest.raises(FestinaError, match=said):
        generate(pipe)
    assert not run.clock.running


def test_an_order_of_two_is_named_in_the_error():
    loop = Loop(pixart_transformer(), diffusers.HeunDiscreteScheduler())
    with festina.accelerate(loop, all_compute(loop)), pytest.raises(FestinaError, match="calls the denoiser 2 times"):
        loop(20)
    with festina.accelerate(loop, all_compute(loop, 39)) as run:
        loop(20)
    assert run.clock.calls == 39


def test_a_schedule_given_by_sigmas_is_counted_by_its_entries():
    pipe = flux_pipeline()
    with festina.accelerate(pipe, all_compute(pipe)), pytest.raises(FestinaError, match=r"this run 3 .*3 sigmas"):
        generate(pipe, sigmas=[1.0, 0.6, 0.3])
    with festina.accelerate(pipe, all_compute(pipe)) as run:
        generate(pipe, sigmas=[1.0, 0.8, 0.6, 0.3])
    assert run.clock.ended == STEPS
