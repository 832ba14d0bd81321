"""`PlanScheduler` in tiny pipelines of the real diffusers classes, in the place of their schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DPMSolverMultistepScheduler, EDMEulerScheduler
from pipelines import images, unets
from pipelines.parts_images import images_of
from samplers_pipe import error
from tiny import dit_pipeline, generate, pixart_pipeline

import festina
from festina.methods import fora
from festina.samplers import PlanScheduler, SamplerRun, SolverStep, SolverTable, compile_table
from festina.samplers.coefficients import first_order
from festina.samplers.olss import fit_on_policy
from festina.samplers.recording import record
from festina.samplers.times import karras, table_on, uniform_time


def build_sdxl_edm():
    """Stable Diffusion XL in the words of EDM, as Playground v2.5 is."""
    pipe = unets.build_sdxl()
    pipe.scheduler = EDMEulerScheduler()
    return pipe


FIRST_ORDER = {
    # Schedulers whose step is the first-order one: the drop-in must make their pictures.
    "sd2": (unets.build_sd2, unets.call_text),
    "sdxl": (unets.build_sdxl, unets.call_text),
    "sdxl_edm": (build_sdxl_edm, unets.call_text),
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
    pipe, seen = images.build_flux(), []
    steps = [SolverStep(value, order=1) for value in (1.0, 0.8, 0.6, 0.4, 0.2)]
    steps[2] = SolverStep(0.6, call="delete")
    steps[3] = SolverStep(0.4, call="extrapolate")
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, SolverTable(tuple(steps), before_shift=True))
    pipe.transformer.register_forward_hook(
        lambda _, __, named, out: seen.append((named["hidden_states"], named["timestep"], out[0])), with_kwargs=True
    )
    found = images_of(pipe(**images.call_text(5, 1)))
    first, second, third, fourth = (pipe.scheduler.run_table.steps[place].noise for place in (0, 1, 3, 4))
    assert second > 0.81  # shifted
    times = [time.item() for _, time, _ in seen]
    assert times == pytest.approx([first, second, fourth], abs=1e-4)
    start, velocities = seen[0][0], [velocity for _, _, velocity in seen]
    one = start + (second - first) * velocities[0]
    two = one + (third - second) * velocities[1]
    three = two + (second - third) / (first - second) * (two - one)
    torch.testing.assert_close(seen[1][0], one, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[2][0], three, atol=1e-4, rtol=0)
    torch.testing.assert_close(found, three - fourth * velocities[2], atol=1e-4, rtol=0)


def test_half_precision_in_and_out():
    pipe = pixart_pipeline().to(torch.bfloat16)
    frame, dtypes = PlanScheduler.from_scheduler(pipe.scheduler).frame, set()
    pipe.transformer.register_forward_pre_hook(lambda _, inputs: dtypes.add(inputs[0].dtype))
    table = table_on(frame, karras(frame, 5), order=3)
    found = record(pipe, table, lambda: generate(pipe, steps=5))
    assert dtypes == {torch.bfloat16}
    # Samples are rounded after each step, and nothing else is: not the predictions of earlier steps either.
    run = SamplerRun(compile_table(table, frame), frame)
    for place, output in enumerate(found.outputs):
        assert torch.equal(run.step(output, found.samples[place]).bfloat16().float(), found.samples[place + 1])


def lifted(pipe, step, timestep, named):
    return {"latents": named["latents"] + 0.5}


CHANGED = {
    # A callback adds to the latents, and filling in puts the known part of the picture there.
    "callback": (
        images.build_flux,
        lambda: {**images.call_text(2, 1), "callback_on_step_end": lifted},
    ),
    "inpaint": (unets.build_sdxl_inpaint, lambda: {**unets.call_sdxl_inpaint(2, 1), "strength": 1.0}),
}


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_what_a_pipeline_changes_between_steps_stays_without_a_corrector(name, corrector):
    build, call = CHANGED[name]
    pipe = build()
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    table = table_on(frame, (frame.largest_noise, 0.5), "unipc_bh2", 1, corrector, final_noise=0.25)
    run = record(pipe, table, lambda: pipe(**call()))
    pictures = [frame.predictions(*each)[0] for each in zip(run.outputs, run.samples, run.levels, strict=False)]

    def moved(sample, picture, place):
        own, other = first_order(run.levels[place], run.levels[place + 1], "data")
        return own * sample + other * picture

    first, changed, last = run.samples
    assert (changed - moved(first, pictures[0], 0)).abs().max() > 0.1
    # The corrector makes the first step again, with the mean of both pictures; the change is in the second one only.
    corrected = moved(first, (pictures[0] + pictures[1]) / 2, 0)
    ends = [moved(sample, pictures[1], 1) for sample in (changed, corrected)]
    torch.testing.assert_close(last, ends[corrector], atol=2e-4, rtol=0)
    assert (last - ends[not corrector]).abs().max() > 0.02


def test_weights_fitted_to_a_pipeline_draw_better_and_are_saved_with_it(tmp_path):
    pipe = dit_pipeline()
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    teacher = record(pipe, table_on(frame, uniform_time(frame, 9), order=1), lambda: generate(pipe, steps=9))
    nodes = (0, 3, 6, 9)
    solver = table_on(frame, [teacher.noises[node] for node in nodes[:-1]])
    fitted = fit_on_policy(pipe, teacher, nodes, lambda: generate(pipe, steps=3))
    ends = [record(pipe, table, lambda: generate(pipe, steps=3)).samples[-1] for table in (fitted, solver)]
    assert error(ends[0], teacher.samples[-1]) < 0.5 * error(ends[1], teacher.samples[-1])
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, fitted)
    expected = generate(pipe, steps=3)
    pipe.save_pretrained(tmp_path)
    again = DiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, PlanScheduler)
    assert again.scheduler.table == fitted
    assert torch.equal(generate(again, steps=3), expected)
    with pytest.raises(festina.FestinaError, match="num_inference_steps=3"):
        generate(again, steps=4)


def test_plans_run_on_it():
    pipe = pixart_pipeline()
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler)
    expected = generate(pipe, steps=4)
    with festina.accelerate(pipe, fora(pipe, 4, 1)):
        assert torch.equal(generate(pipe, steps=4), expected)
    with festina.accelerate(pipe, fora(pipe, 4, 2)):
        assert not torch.equal(generate(pipe, steps=4), expected)
    assert torch.equal(generate(pipe, steps=4), expected)
