"""Faster Diffusion with its parallel decoder and noise injection, against a loop written out."""

import pytest
import torch
from denoisers.all_classes import CLASSES
from pipelines.unets import PIPELINES

import festina
from festina import FestinaError, Plan
from festina.methods import faster_diffusion

STEPS, KEYS, SHARE = 8, (0, 1, 4), 0.25
ENCODER = "down_blocks.0..mid_block:feature"


@pytest.fixture(scope="module")
def pipe():
    """Stable Diffusion 2 with a DDIM scheduler."""
    return PIPELINES["sd2"].build()


def picture(pipe, steps=STEPS):
    case = PIPELINES["sd2"]
    return case.output(pipe(**case.call(steps, 1))).clone()


@torch.no_grad()
def by_hand(pipe, share):
    """Key steps run the U-Net; in the others hooks give what its way down returned then, and the way up runs."""
    unet, scheduler = pipe.unet, pipe.scheduler
    seen, memory, state = [], {}, {"step": 0}
    handle = unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    picture(pipe)
    handle.remove()
    (sample, _), given = seen[0]
    latents = initial = sample[:1]

    def remembering(name):
        def hook(module, args, output):
            if state["step"] in KEYS:
                memory[name] = output
            return memory[name]

        return hook

    names = ("conv_in", *(f"down_blocks.{n}" for n in range(len(unet.down_blocks))), "mid_block")
    handles = [unet.get_submodule(name).register_forward_hook(remembering(name)) for name in names]
    scheduler.set_timesteps(STEPS)
    for step, time in enumerate(scheduler.timesteps):
        state["step"] = step
        answer = unet(torch.cat([latents] * 2), time, given["encoder_hidden_states"]).sample
        plain, told = answer.chunk(2)
        latents = scheduler.step(plain + 5.0 * (told - plain), time, latents).prev_sample
        if time < 500:
            latents = latents + share * initial
    for each in handles:
        each.remove()
    return latents


@pytest.mark.parametrize("share", [0.0, SHARE])
def test_it_is_the_loop_of_the_paper(pipe, share):
    plan = faster_diffusion(pipe, STEPS, KEYS, parallel=True, injection=share)
    wanted = by_hand(pipe, share)
    with festina.accelerate(pipe, plan) as run:
        found = picture(pipe)
        report = run.report()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert sum(report.shapes.values()) == len(KEYS) + 2
    assert not torch.allclose(found, by_hand(pipe, 0.5), atol=1e-2)


def test_calls_of_the_default_keys(pipe):
    plan = faster_diffusion(pipe, 50, parallel=True, injection=0.003)
    assert plan.sites == ("conv_in:feature", ENCODER)
    assert {step: record.ahead for step, record in enumerate(plan.steps) if record.ahead} == {
        3: 1,
        5: 4,
        10: 4,
        15: 9,
        25: 9,
        35: 14,
    }
    assert [step.actions for step in plan.steps] == [
        "CC" if step in plan.settings["keys"] else "RR" for step in range(50)
    ]
    assert plan.canonical().steps == plan.steps
    assert [step.injected for step in plan.steps] == [0.0] * 25 + [0.003] * 25
    assert (plan.settings["parallel"], plan.settings["injection"]) == (True, 0.003)
    assert Plan.from_json(plan.to_json()) == plan


def test_neutral_knobs_change_nothing(pipe):
    assert not any(step.ahead or step.injected for step in faster_diffusion(pipe, 20).steps)
    plan = faster_diffusion(pipe, 6, 1, parallel=True)
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 6).key()


@pytest.mark.parametrize("injection", [-0.1, 1.5, float("nan"), "much", True])
def test_shares_out_of_range_are_refused(pipe, injection):
    with pytest.raises(FestinaError, match=r"injection is .*; wanted a share from 0 to 1"):
        faster_diffusion(pipe, 10, injection=injection)


def test_a_u_net_without_an_entry_cannot_answer_ahead():
    """UNet1DModel takes its samples in by its first level."""
    model = CLASSES["UNet1DModel"].build()
    assert faster_diffusion(model, 10).sites
    with pytest.raises(FestinaError, match="is no U-Net whose latents come in through one layer"):
        faster_diffusion(model, 10, parallel=True)
