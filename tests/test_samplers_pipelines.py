"""`PlanScheduler` in tiny pipelines of the real diffusers classes, in the place of their schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from pipelines import images, unets
from pipelines.parts_images import images_of
from tiny import generate, pixart_pipeline

import festina
from festina.methods import fora
from festina.samplers import PlanScheduler, SolverStep, SolverTable

FIRST_ORDER = {
    # Schedulers whose step is the first-order one: the drop-in must make their pictures.
    "sd2": (unets.build_sd2, unets.call_text),
    "sdxl": (unets.build_sdxl, unets.call_text),
    "sdxl_img2img": (unets.build_sdxl_img2img, unets.call_sdxl_img2img),
    "sdxl_inpaint": (unets.build_sdxl_inpaint, unets.call_sdxl_inpaint),
    "sd3": (images.build_sd3, images.call_text),
    "flux": (images.build_flux, images.call_text),
    "flux_img2img": (images.build_flux_img2img, images.call_flux_img2img),
}


def counted(pipe, call):
    """The output of a run, and the denoiser calls it made."""
    denoiser, calls = getattr(pipe, "transformer", None) or pipe.unet, []
    hook = denoiser.register_forward_hook(lambda *_: calls.append(1))
    try:
        return images_of(pipe(**call)), len(calls)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_the_first_order_takes_the_place_of_pipelines_schedulers(name):
    build, call = FIRST_ORDER[name]
    pipe = build()
    expected, calls = counted(pipe, call(4, 2))
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, solver_order=1)
    found, ours = counted(pipe, call(4, 2))
    assert ours == calls
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()
    again, _ = counted(pipe, call(4, 2))
    assert torch.equal(found, again)


def test_higher_orders_run_and_differ():
    for build, call in (FIRST_ORDER["flux"], FIRST_ORDER["flux_img2img"], FIRST_ORDER["sdxl"]):
        pipe, ends = build(), []
        source = pipe.scheduler
        for order in (1, 3):
            pipe.scheduler = PlanScheduler.from_scheduler(
                source, solver="unipc_bh2", solver_order=order, corrector=True
            )
            ends.append(counted(pipe, call(6, 1))[0])
        assert ends[1].isfinite().all()
        assert not torch.allclose(ends[0], ends[1])


def test_pixart_with_dpm_solver():
    pipe = pixart_pipeline()
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    expected = generate(pipe, steps=6)
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, solver="data_released")
    torch.testing.assert_close(generate(pipe, steps=6), expected, atol=1e-4, rtol=0)


def test_stable_diffusion_with_plms_gives_place_to_any_solver():
    pipe = unets.build_sd15()
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, solver="adams_bashforth", solver_order=4)
    found, calls = counted(pipe, unets.call_text(4, 1))
    assert calls == 4
    first = DDIMScheduler.from_config(unets.build_sd15().scheduler.config, clip_sample=False)
    pipe.scheduler = first
    plain, _ = counted(pipe, unets.call_text(4, 1))
    assert found.shape == plain.shape
    assert not torch.allclose(found, plain)
    # The published grids of a pipeline's caller are taken too.
    pipe.scheduler = PlanScheduler.from_scheduler(first)
    call = {**unets.call_text(4, 1), "timesteps": [999, 700, 20]}
    assert counted(pipe, call)[1] == 3


def test_a_table_that_leaves_calls_out_makes_fewer():
    pipe = images.build_flux()
    steps = [SolverStep(value, order=1) for value in (1.0, 0.8, 0.6, 0.4, 0.2)]
    steps[2] = SolverStep(0.6, call="delete")
    steps[3] = SolverStep(0.4, call="extrapolate")
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, SolverTable(tuple(steps), before_shift=True))
    found, calls = counted(pipe, images.call_text(5, 1))
    assert calls == 3
    assert found.isfinite().all()


def test_half_precision_in_and_out():
    pipe = pixart_pipeline()
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler)
    pipe.to(torch.bfloat16)
    dtypes = set()
    pipe.transformer.register_forward_pre_hook(lambda _, inputs: dtypes.add(inputs[0].dtype))
    assert generate(pipe, steps=3).isfinite().all()
    assert dtypes == {torch.bfloat16}


def test_plans_run_on_it():
    pipe = pixart_pipeline()
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler)
    expected = generate(pipe, steps=4)
    with festina.accelerate(pipe, fora(pipe, 4, 1)):
        assert torch.equal(generate(pipe, steps=4), expected)
    with festina.accelerate(pipe, fora(pipe, 4, 2)):
        assert not torch.equal(generate(pipe, steps=4), expected)
    assert torch.equal(generate(pipe, steps=4), expected)
