"""Runs that begin midway or end early: rows of a plan belong to noise levels, and nothing is left behind."""

import diffusers
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline
from lifecycle import STEPS, Loop, Ran, all_compute, random_plan, reference, reusing_plan
from tiny import PROMPT, flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.sites import block_sites

WITH_INDEX = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "LCMScheduler")
WITHOUT_INDEX = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")

TOLD, SEEN, HIDDEN = "told", "seen", "hidden"
"""How a run can learn where it begins: `set_begin_index`, the timestep's place in memory, or only after a step."""


def looping(name, how=SEEN):
    scheduler = getattr(diffusers, name)
    loop = Loop(pixart_transformer(), scheduler(skip_prk_steps=True) if name == "PNDMScheduler" else scheduler())
    loop.hidden = how == HIDDEN
    loop.scheduler.set_timesteps(6)
    return loop, len(loop.scheduler.timesteps)


@pytest.mark.parametrize("how", [TOLD, SEEN, HIDDEN])
@pytest.mark.parametrize("name", [*WITH_INDEX, *WITHOUT_INDEX])
@pytest.mark.parametrize("begin", [0, 2, 4])
def test_a_run_takes_the_rows_of_its_noise_levels(name, how, begin):
    loop, entries = looping(name, how)
    if (name, how, begin) == ("PNDMScheduler", HIDDEN, 2):
        pytest.skip("this scheduler has two equal timesteps and no index, so that a copy of one says too little")
    call = {"steps": 6, "begin": begin, "tell": how == TOLD and name in WITH_INDEX}
    plain = loop(**call)
    with festina.accelerate(loop, all_compute(loop, entries)):
        assert torch.equal(loop(**call), plain)
    plan = random_plan(loop, 1, entries)
    with reference(loop, plan, begin):
        wanted = loop(**call)
    with festina.accelerate(loop, plan) as run:
        ran = Ran(loop, run)
        result = loop(**call)
        ran.remove()
        assert len(run.store) == 0
        assert run.clock.ended == entries - begin
    assert torch.equal(result, wanted)
    for site, steps in ran.steps.items():
        later = [step for step in plan.computed_steps(site) if step > begin]
        assert [step for step, _ in steps][1:] == later
    assert len({len(steps) for steps in ran.steps.values()}) > 1


def test_the_first_step_keeps_what_later_rows_read_and_no_more():
    loop, _ = looping("EulerDiscreteScheduler")
    sites = ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1", "transformer_blocks.2.attn1")
    rows = ["CCC", "CCR", "RCC", "RCC", "CCR", "CCC"]
    plan = Plan("PixArtTransformer2DModel", sites, tuple(Step(1 - i / 6, row) for i, row in enumerate(rows)))
    held = {}
    for loop.hidden in (False, True):
        for begin in (1, 2):
            counts = held[loop.hidden, begin] = []
            with festina.accelerate(loop, plan) as run:
                loop.on_step = lambda step, run=run, counts=counts: counts.append(len(run.store))
                loop(6, begin)
    assert held[False, 1] == held[True, 1] == [1, 1, 1, 0, 0]
    assert held[False, 2] == held[True, 2] == [1, 1, 0, 0]


def test_nothing_is_kept_in_vain_where_the_beginning_is_known():
    loop, _ = looping("EulerDiscreteScheduler")
    plan = random_plan(loop, 1, 6)
    peaks = {}
    for loop.hidden in (False, True):
        with festina.accelerate(loop, plan) as run:
            loop(6)
            peaks[loop.hidden] = run.store.peak_bytes
    assert peaks[False] <= peaks[True]


def test_a_site_that_is_left_out_computes_in_the_first_step_of_a_run():
    loop, _ = looping("EulerDiscreteScheduler")
    names = tuple(site.name for site in block_sites(loop.transformer))
    rows = ["CCC", "CSC", "CSC", "CRC", "CCC", "CCC"]
    plan = Plan("PixArtTransformer2DModel", names, tuple(Step(1 - i / 6, row) for i, row in enumerate(rows)))
    for begin, hidden in [(1, False), (1, True), (2, True)]:
        loop.hidden = hidden
        loop(6, begin)
        first = loop.seen[0]
        with festina.accelerate(loop, plan) as run:
            ran = Ran(loop, run)
            loop(6, begin)
            ran.remove()
            assert torch.equal(loop.seen[0], first)
        steps = [step for step, _ in ran.steps["transformer_blocks.1.attn1"]]
        # In the first step no row of the plan fits; the value of that step is what row 3 reuses.
        assert steps == [6, 4, 5]


def test_no_value_on_a_device_is_read_where_the_beginning_is_known(monkeypatch):
    read = []
    original = torch.Tensor.item
    for name, begin, tell in [("EulerDiscreteScheduler", 0, True), ("DDIMScheduler", 0, False)]:
        loop, entries = looping(name)
        monkeypatch.setattr(torch.Tensor, "item", lambda self: read.append(1) or original(self))
        loop(6, begin, tell=tell)
        plain = len(read)
        with festina.accelerate(loop, random_plan(loop, 1, entries)):
            read.clear()
            loop(6, begin, tell=tell)
        monkeypatch.undo()
        assert len(read) == plain
        read.clear()


def test_a_scheduler_that_says_nothing_of_its_place_is_an_error():
    loop, entries = looping("DDIMScheduler", HIDDEN)
    with festina.accelerate(loop, random_plan(loop, 1, entries)) as run:
        loop.on_call = lambda step, call: setattr(loop.scheduler, "timesteps", loop.scheduler.timesteps + 1)
        with pytest.raises(FestinaError, match="cannot tell at which of its 6 timesteps DDIMScheduler began"):
            loop(6)
        assert len(run.store) == 0


@pytest.mark.parametrize("kind", [FluxImg2ImgPipeline, FluxInpaintPipeline])
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.3])
def test_a_picture_is_changed_with_a_strength(kind, strength):
    parts = flux_pipeline().components
    pipe = kind(**{name: parts[name] for name in parts if name not in ("image_encoder", "feature_extractor")})
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    begin = 6 - round(6 * strength)
    mask = {"mask_image": torch.ones(1, 1, 16, 16)} if kind is FluxInpaintPipeline else {}

    def run_it():
        call = {"height": 16, "width": 16, "max_sequence_length": 20, "output_type": "pt", **mask}
        generator = torch.Generator().manual_seed(0)
        call |= {"negative_prompt": ["black"], "true_cfg_scale": 2.0}
        return pipe(PROMPT, image=picture, strength=strength, num_inference_steps=6, generator=generator, **call).images

    plain = run_it()
    plan = random_plan(pipe, 1, 6)
    with reference(pipe, plan, begin):
        wanted = run_it()
    with festina.accelerate(pipe, all_compute(pipe, 6)) as run:
        assert torch.equal(run_it(), plain)
        assert run.clock.first == begin
        assert run.clock.calls == 2 * (6 - begin)
    with festina.accelerate(pipe, plan) as run:
        assert torch.equal(run_it(), wanted)
        assert len(run.store) == 0


def test_a_run_that_ends_early_ends_with_the_pipeline():
    loop, _ = looping("EulerDiscreteScheduler")
    plan = reusing_plan(loop, 6)
    with festina.accelerate(loop, plan) as run:
        loop.on_step = lambda step: held.append(len(run.store))
        held = []
        early = loop(6, end=3)
        assert held == [len(plan.sites)] * 3
        assert len(run.store) == 0
        assert not run.clock.running
        assert run.clock.ended == 3
        assert torch.equal(loop(6, end=3), early)


def test_an_interrupted_pipeline_leaves_nothing():
    pipe = flux_pipeline()
    with festina.accelerate(pipe, reusing_plan(pipe)) as run:
        whole = generate(pipe)

        def stop(pipe, step, timestep, kwargs):
            pipe._interrupt = step == 1
            return kwargs

        generate(pipe, callback_on_step_end=stop)
        assert len(run.store) == 0
        assert run.clock.ended == 2
        assert torch.equal(generate(pipe), whole)


@pytest.mark.parametrize("where", ["denoiser", "scheduler", "callback"])
def test_after_an_exception_the_next_run_is_exact(where):
    pipe = pixart_pipeline()
    plan = random_plan(pipe, 3, density=0.3)
    with reference(pipe, plan):
        wanted = generate(pipe)

    def fail(*args, **kwargs):
        if run.clock.ended == 1:
            raise KeyboardInterrupt
        return kind.convert_model_output(pipe.scheduler, *args, **kwargs) if where == "scheduler" else None

    call, kind = {}, type(pipe.scheduler)
    with festina.accelerate(pipe, plan) as run:
        if where == "denoiser":
            undo = pipe.transformer.proj_out.register_forward_pre_hook(fail).remove
        elif where == "scheduler":
            pipe.scheduler.convert_model_output = fail
            undo = lambda: delattr(pipe.scheduler, "convert_model_output")  # noqa: E731
        else:
            call, undo = {"callback": fail, "callback_steps": 1}, lambda: None
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, seed=9, **call)
        undo()
        if where == "callback":
            assert len(run.store) > 0
        else:
            assert len(run.store) == 0
            assert not run.clock.running
        assert torch.equal(generate(pipe), wanted)
        assert len(run.store) == 0


def test_the_end_of_a_pipeline_is_given_back():
    pipe = pixart_pipeline()
    with festina.accelerate(pipe, all_compute(pipe)):
        assert "maybe_free_model_hooks" in vars(pipe)
    assert "maybe_free_model_hooks" not in vars(pipe)


def test_a_pipeline_that_cleans_up_before_its_loop_has_not_ended():
    loop, _ = looping("EulerDiscreteScheduler")
    original = loop.conditioning
    with festina.accelerate(loop, all_compute(loop, 6)) as run:
        loop.conditioning = lambda *args: loop.maybe_free_model_hooks() or original(*args)
        loop(6)
        assert run.clock.ended == 6


def test_steps_of_an_explicit_clock():
    model = pixart_transformer()
    with festina.accelerate(model, reusing_plan(model)) as run:
        run.start(STEPS)
        run.begin_at(2)
        assert run.clock.step == 2
        with pytest.raises(FestinaError, match="begins at step 4"):
            run.begin_at(4)
