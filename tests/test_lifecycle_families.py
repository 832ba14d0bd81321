"""The life cycle on pipelines of several families: where a run begins and ends, whose values are served."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from lifecycle import all_compute, random_plan, reference, reusing_plan, snapshot
from pipelines import images, unets, videos_wan
from tiny import PROMPT

import festina

PIPELINES = {**unets.PIPELINES, **images.PIPELINES, **videos_wan.PIPELINES}

FAMILIES = ("sd15", "sdxl", "sdxl-img2img", "sdxl-inpaint", "sd3", "flux-true-cfg", "flux-img2img", "lumina2")
FAMILIES += ("qwen-image", "cogview4", "wan", "wan22", "wan22-5b")


@pytest.fixture
def made():
    """Makes a tiny pipeline of a family and what runs it with some arguments replaced."""

    def make(name, steps=4):
        fixture = PIPELINES[name]
        pipe = fixture.build()

        def run(**more):
            return fixture.output(pipe(**{**fixture.call(steps, 1), **more})).clone()

        return pipe, run

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_a_family(made, family):
    pipe, run = made(family)
    plain = run()
    entries, before = len(pipe.scheduler.timesteps), snapshot(pipe)
    with festina.accelerate(pipe, all_compute(pipe, entries)) as attached:
        assert torch.equal(run(), plain)
        begin = attached.clock.first
        assert begin == entries - attached.clock.ended
    plan = random_plan(pipe, 1, entries)
    with reference(pipe, plan, begin):
        wanted = run()
    with festina.accelerate(pipe, plan) as attached:
        for _ in range(2):
            assert torch.equal(run(), wanted)
            assert len(attached.store) == 0
            assert not attached.clock.running
    assert not torch.equal(wanted, plain)
    assert snapshot(pipe)[:-2] == before[:-2]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_needs_to_have_its_conditioning_compared(made, family, monkeypatch):
    pipe, run = made(family)
    run()
    monkeypatch.setattr("festina.executor.branches.same_values", lambda *_: pytest.fail("values were compared"))
    with festina.accelerate(pipe, all_compute(pipe, len(pipe.scheduler.timesteps))):
        run()


def test_a_picture_handed_on_from_one_pipeline_to_another(made):
    """A base that stops at a noise level and a refiner that begins there, each with its rows."""
    pipe, run = made("sdxl", steps=6)
    image, _ = made("sdxl-img2img")
    refiner = type(image)(**{name: part for name, part in pipe.components.items() if part is not None})
    refiner.set_progress_bar_config(disable=True)
    assert isinstance(pipe, StableDiffusionXLPipeline)

    def base():
        return run(denoising_end=0.5, output_type="latent")

    def refine(latents):
        call = {"num_inference_steps": 6, "denoising_start": 0.5, "output_type": "latent"}
        generator = torch.Generator().manual_seed(0)
        return refiner(PROMPT, image=latents, generator=generator, **call).images

    plan = random_plan(pipe, 1, 6)
    with reference(pipe, plan) as serving:
        begun = base()
        half = serving.row
    with reference(pipe, plan, half):
        wanted = refine(begun)
    with festina.accelerate(pipe, plan) as attached:
        assert torch.equal(base(), begun)
        assert attached.clock.ended == half
        assert len(attached.store) == 0
        assert torch.equal(refine(begun), wanted)
        assert attached.clock.first == half
        assert attached.clock.ended == 6 - half
    assert 0 < half < 6


def test_guidance_that_is_switched_off_midway(made):
    """Two rows become one: from there on everything is computed anew, once."""
    pipe, run = made("sdxl", steps=6)

    def switch_off(pipe, step, timestep, kwargs):
        if step == 2:
            pipe._guidance_scale = 0.0
            return {name: kwargs[name][-1:] for name in kwargs if name != "latents"}
        return {}

    inputs = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    call = {"callback_on_step_end": switch_off, "callback_on_step_end_tensor_inputs": inputs}
    plain = run(**call)
    with festina.accelerate(pipe, all_compute(pipe, 6)) as attached:
        assert torch.equal(run(**call), plain)
        assert sorted(record.count for record in attached.calls.values()) == [3, 3]
    with festina.accelerate(pipe, reusing_plan(pipe, 6)) as attached:
        run(**call)
        assert {column.computed.total() for column in attached.columns} == {2}
        assert {column.served.total() for column in attached.columns} == {4}


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_guidance_that_is_cut_off_by_the_pipeline(made, ratio):
    pipe, run = made("lumina2", steps=4)
    call = {"cfg_trunc_ratio": ratio}
    plain = run(**call)
    with festina.accelerate(pipe, all_compute(pipe)) as attached:
        assert torch.equal(run(**call), plain)
        calls = attached.clock.calls
    assert (calls < 8) == (ratio < 1)
    plan = reusing_plan(pipe)
    with reference(pipe, plan):
        wanted = run(**call)
    with festina.accelerate(pipe, plan):
        assert torch.equal(run(**call), wanted)


def test_both_experts_of_a_pipeline_run_by_the_plan(made):
    pipe, run = made("wan22")
    with festina.accelerate(pipe, reusing_plan(pipe)) as attached:
        run()
        # Each expert computes in its first step, in both branches.
        assert {column.computed.total() for column in attached.columns} == {4}
        assert "forward" in vars(pipe.transformer)
        assert "forward" in vars(pipe.transformer_2)
    assert "forward" not in vars(pipe.transformer_2)
