"""Warm starts: latents at a middle level, and the part of a table from there."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler
from pipelines import images, unets
from pipelines.parts_images import images_of
from samplers_gaussian import FAMILIES, edm
from samplers_pipe import ToyPipe, error
from samplers_toy import flow, levels_of, noise, output, table, vp
from tiny import PROMPT, dit_pipeline, flux_pipeline, generate, pixart_pipeline

from festina import FestinaError
from festina.samplers import LinearWeights, PlanScheduler, SolverStep, SolverTable, compile_table
from festina.samplers.olss import linear_form
from festina.samplers.recording import record
from festina.samplers.search import EvolutionSettings, evolve
from festina.samplers.times import karras, table_on, uniform_log_snr
from festina.samplers.warm_start import encoded, remaining, started_at, warm_start


def built_sdxl_edm():
    pipe = unets.build_sdxl()
    pipe.scheduler = EDMEulerScheduler()
    return pipe


# Starts of tables ------------------------------------------------------------------------------------------------


def test_the_start_is_left_out_of_json_where_it_is_noise():
    made = table(1.0, 0.5)
    assert "start" not in made.to_json()
    assert SolverTable.from_json(made.to_json()).start == "noise"
    for start in ("given", "gaussian"):
        other = replace(made, start=start)
        assert other.to_json()["start"] == start
        assert SolverTable.from_json(other.to_json()) == other != made
        # Other levels and times change nothing about it.
        assert other.at_noises([0.9, 0.4]).start == other.at_own_times().start == start
    for wrong, said in (
        ("warm", "no start of a table is called 'warm'"),
        (1, "'start' of a table is 1; wanted a text"),
    ):
        with pytest.raises(FestinaError, match=said):
            SolverTable.from_json({**made.to_json(), "start": wrong})


def test_weights_of_a_table_keep_its_start_and_a_search_takes_none_but_noise():
    frame = vp().frame
    assert linear_form(replace(table(2.0, 0.5), start="given"), frame).start == "given"
    levels = uniform_log_snr(frame, 4)
    seeds = [replace(table_on(frame, levels), start="given")]
    with pytest.raises(FestinaError, match="from noise to clean"):
        evolve(levels, 4, lambda _: 0.0, seeds, EvolutionSettings(evaluations=1))


def test_schedulers_save_the_start(tmp_path):
    scheduler = flow(table=replace(table(0.6, 0.3), start="given"))
    scheduler.save_pretrained(tmp_path)
    assert PlanScheduler.from_pretrained(tmp_path).table == scheduler.table


@pytest.mark.parametrize("family", FAMILIES)
def test_given_latents_are_left_as_they_are(family):
    make = FAMILIES[family]
    begun = replace(table(0.6, 0.3), start="given")
    assert make(table=begun).init_noise_sigma == 1
    assert make().init_noise_sigma == make().frame.initial_scale
    with pytest.raises(FestinaError, match=r"Use levels up to the largest|no noise level"):
        make(table=replace(table(90.0, 0.3), start="given"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [1, 3])
def test_a_run_from_given_latents_is_the_tail_of_the_whole_run(family, order):
    make = FAMILIES[family]
    frame = make().frame
    full = table_on(frame, uniform_log_snr(frame, 7), order=order)
    prediction = frame.prediction

    def run_of(scheduler, sample, places):
        seen = []
        levels = levels_of(scheduler)
        for place in places:
            timestep = scheduler.timesteps[place]
            seen.append(sample)
            assert scheduler.scale_model_input(sample, timestep).shape == sample.shape
            said = output(sample, levels[place], prediction)
            sample = scheduler.step(said, timestep, sample).prev_sample
        return [*seen, sample]

    whole, rest = make(table=full), make(table=remaining(full, 4 / 7))
    whole.set_timesteps(7)
    samples = run_of(whole, frame.initial_scale * noise(), range(7))
    # Outputs before it are not there: of the first order that is the whole run's tail, else the run begun midway.
    whole.set_timesteps(7)
    whole.set_begin_index(3)
    begun = run_of(whole, samples[3], range(3, 7))
    rest.set_timesteps(4)
    found = run_of(rest, samples[3], range(4))
    assert torch.equal(rest.timesteps, whole.timesteps[3:])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, begun, strict=True))
    same = [torch.equal(mine, theirs) for mine, theirs in zip(found, samples[3:], strict=True)]
    assert all(same) if order == 1 else not all(same)


# Latents at a level ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_get_the_noise_of_their_level(family):
    scheduler = FAMILIES[family](table=replace(table(0.7, 0.2), start="given"))
    clean, dirt = noise(1), noise(2)
    found = warm_start(scheduler.frame, clean, 0.7, noise=dirt)
    level = scheduler.frame.level(0.7)
    torch.testing.assert_close(found, level.alpha * clean + level.sigma * dirt)
    scheduler.set_timesteps(2)
    torch.testing.assert_close(found, scheduler.add_noise(clean, dirt, scheduler.timesteps[:1]))
    exact = warm_start(scheduler.frame, clean.double(), 0.7, noise=dirt.double())
    rounded = warm_start(scheduler.frame, clean.bfloat16(), 0.7, noise=dirt)
    assert (exact.dtype, rounded.dtype) == (torch.float64, torch.bfloat16)
    expected = level.alpha * clean.bfloat16().float() + level.sigma * dirt
    torch.testing.assert_close(rounded, expected.bfloat16(), atol=0, rtol=0)


def test_noise_is_that_of_the_generators():
    frame, clean = flow().frame, noise(1, 2)

    def seeds(*numbers):
        return [torch.Generator().manual_seed(number) for number in numbers]

    drawn = torch.cat([torch.randn(1, 3, generator=generator) for generator in seeds(3, 4)])
    expected = warm_start(frame, clean, 0.5, noise=drawn)
    assert torch.equal(warm_start(frame, clean, 0.5, seeds(3, 4)), expected)
    both = torch.randn(2, 3, generator=seeds(5)[0])
    assert torch.equal(warm_start(frame, clean, 0.5, *seeds(5)), warm_start(frame, clean, 0.5, noise=both))


# Parts of tables -------------------------------------------------------------------------------------------------


def test_a_part_of_a_table_ends_clean():
    full = table(8.0, 4.0, 2.0, 1.0, 0.5)
    assert remaining(full, 0.4) == replace(table(1.0, 0.5), start="given")
    assert remaining(full, 1.0) == replace(full, start="given")
    assert remaining(full, 0.01).calls == 1
    assert started_at(full, 2.0) == replace(table(2.0, 1.0, 0.5), start="given")
    # Within a step, and between the last level and the end.
    assert [step.noise for step in started_at(full, 3.0).steps] == [3.0, 2.0, 1.0, 0.5]
    assert [step.noise for step in started_at(full, 0.1).steps] == [0.1]
    assert started_at(SolverTable(full.steps, 0.25), 0.3).final_noise == 0.25


def test_a_cut_step_keeps_its_solver_and_is_told_the_time_of_its_level():
    steps = (SolverStep(8.0, "noise", 3, network_time=900.0), SolverStep(1.0, "data", 1, network_time=300.0))
    begun, later = started_at(SolverTable(steps), 3.0).steps
    assert begun == SolverStep(3.0, "noise", 3)
    assert later == steps[1]
    assert started_at(SolverTable(steps), 1.0).steps == (steps[1],)


def test_deleted_and_extrapolated_steps_stay_where_they_are():
    calls = {1: "delete", 3: "extrapolate", 5: "extrapolate"}
    steps = [SolverStep(noise, call=calls.get(place, "network")) for place, noise in enumerate((8, 6, 4, 3, 2, 1, 0.5))]
    full, frame = SolverTable((SolverStep(10.0), *steps)), vp().frame
    half = remaining(full, 0.8)
    assert half.calls == 4
    assert [step.call for step in half.steps] == [step.call for step in steps]
    assert compile_table(half, frame) == compile_table(full, frame, first_call=1)
    # A step that calls no network cannot be begun with: the one before it begins there.
    begun = started_at(full, 6.0)
    assert begun.steps[0] == SolverStep(6.0)
    assert [step.noise for step in begun.steps] == [6.0, 4, 3, 2, 1, 0.5]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: remaining(table(4.0, 1.0), 0.0), "share of 0 of"),
        (lambda: remaining(table(4.0, 1.0), 1.5), "share of 1.5 of"),
        (lambda: started_at(table(4.0, 1.0), 5.0), "goes from the noise level 4 to 0, and 5 is none"),
        (lambda: started_at(table(4.0, 1.0), 0.0), "none from which a step is left"),
        (lambda: started_at(SolverTable(table(4.0, 1.0).steps, 0.5), 0.5), "none from which a step is left"),
        (lambda: remaining(SolverTable(table(1.0, 0.5).steps, before_shift=True), 0.5), "run_table of a PlanScheduler"),
        (lambda: started_at(SolverTable(table(1.0, 0.5).steps, before_shift=True), 0.5), "run_table"),
        (
            lambda: remaining(table(4.0, 1.0, linear=LinearWeights((0.5,), anchor=0.1)), 0.5),
            "weighs the sample that the whole run starts from",
        ),
        (lambda: started_at(table(4.0, 1.0, linear=LinearWeights((0.5,))), 2.0), "which hold from there only"),
        (
            lambda: started_at(SolverTable((*table(4.0, 2.0).steps, SolverStep(1.0, call="extrapolate"))), 1.5),
            "extrapolation needs two steps before it",
        ),
        (lambda: warm_start(vp().frame, noise(), 15.0, noise=noise()), "a warm start is to begin at 15"),
        (lambda: warm_start(vp().frame, noise(), 2.0), "Give one of both"),
        (lambda: warm_start(vp().frame, noise(), 2.0, torch.Generator(), noise()), "Give one of both"),
        (lambda: warm_start(vp().frame, noise(), 2.0, noise=noise(samples=1)), "noise of the estimate's shape"),
        (lambda: encoded(ToyPipe(), torch.zeros(1, 3, 8, 8)), "how ToyPipe makes latents"),
        (lambda: encoded(pixart_pipeline(), torch.zeros(1, 8, 8, 3)), "wanted \\(batch, 3, height, width\\)"),
        (lambda: encoded(flux_pipeline(), torch.zeros(1, 3, 18, 16)), "packs latents two by two"),
        (lambda: encoded(pixart_pipeline(), torch.full((1, 3, 8, 8), torch.nan)), "not finite in torch.float32"),
    ],
)
def test_what_cannot_be_begun_raises(make, said):
    with pytest.raises(FestinaError, match=said):
        make()


# Pipelines -------------------------------------------------------------------------------------------------------


PIPELINES = {
    "pixart": (pixart_pipeline, lambda pipe, steps, **call: generate(pipe, steps=steps, **call)),
    "flux": (flux_pipeline, lambda pipe, steps, **call: generate(pipe, steps=steps, **call)),
    "sdxl_edm": (built_sdxl_edm, lambda pipe, steps, **call: images_of(pipe(**unets.call_text(steps, 1), **call))),
    "sd2": (unets.build_sd2, lambda pipe, steps, **call: images_of(pipe(**unets.call_text(steps, 1), **call))),
    "sd3": (images.build_sd3, lambda pipe, steps, **call: images_of(pipe(**images.call_text(steps, 1), **call))),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_go_on_from_given_latents(name):
    build, draw = PIPELINES[name]
    pipe = build()
    source, frame = pipe.scheduler, PlanScheduler.from_scheduler(pipe.scheduler).frame
    full = table_on(frame, karras(frame, 5), order=1)
    pictures = []
    seen = record(pipe, full, lambda: pictures.append(draw(pipe, 5)))
    pipe.scheduler = PlanScheduler.from_scheduler(source, remaining(full, 0.4))
    assert torch.equal(draw(pipe, 2, latents=seen.samples[3]), pictures[0])


def test_a_draft_is_polished():
    draft_pipe, pipe = pixart_pipeline(blocks=2), pixart_pipeline(blocks=3)
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    drafts = record(draft_pipe, table_on(frame, karras(frame, 2)), lambda: generate(draft_pipe, steps=2)).samples[-1]
    full = table_on(frame, karras(frame, 8))
    source, gaps, calls = pipe.scheduler, [], []
    counted = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    for share in (0.25, 0.75):
        polish = remaining(full, share)
        given = warm_start(pipe, drafts, polish.steps[0].noise, torch.Generator().manual_seed(1))
        drawn = record(pipe, polish, lambda steps=polish.calls, given=given: generate(pipe, steps=steps, latents=given))
        assert torch.equal(drawn.samples[0], given)
        gaps.append(error(drawn.samples[-1], drafts))
    counted.remove()
    assert pipe.scheduler is source
    assert len(calls) == 2 + 6
    assert 0 < gaps[0] < gaps[1]


@pytest.mark.parametrize("is_flow", [False, True])
def test_the_lower_the_level_the_more_of_the_draft_stays(is_flow):
    pipe = ToyPipe(is_flow)
    full = table_on(pipe.frame, uniform_log_snr(pipe.frame, 24), order=1)
    draft, gaps = pipe.drawn(table_on(pipe.frame, uniform_log_snr(pipe.frame, 4), order=1)), []
    for share in (0.25, 0.5, 1.0):
        polish = remaining(full, share)
        scheduler = PlanScheduler.from_scheduler(pipe.scheduler, polish)
        scheduler.set_timesteps(polish.calls)
        sample = warm_start(pipe, draft, polish.steps[0].noise, noise=noise(9, 64, torch.float64))
        for timestep, level in zip(scheduler.timesteps, levels_of(scheduler), strict=True):
            sample = scheduler.step(output(sample, level, pipe.prediction), timestep, sample).prev_sample
        gaps.append(error(sample, draft))
    assert gaps == sorted(gaps)
    assert gaps[0] < 0.3 * gaps[2]


def test_pictures_are_encoded_as_the_pipeline_wants_them():
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pipe = dit_pipeline()
    means = pipe.vae.encode(2 * pictures - 1).latent_dist.mean.detach()
    torch.testing.assert_close(encoded(pipe, pictures), means * pipe.vae.config.scaling_factor)
    pipe.vae.register_to_config(shift_factor=0.2)
    torch.testing.assert_close(encoded(pipe, pictures), (means - 0.2) * pipe.vae.config.scaling_factor)
    pipe.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    found = encoded(pipe, pictures)
    # The inverse, as pipelines of Stable Diffusion XL decode.
    mean, deviation = (torch.tensor(values).view(1, 4, 1, 1) for values in ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(found * deviation / pipe.vae.config.scaling_factor + mean, means)


def test_flux_gets_its_pictures_packed():
    pipe = flux_pipeline()
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = encoded(pipe, pictures)
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    seen = record(pipe, table_on(frame, (1.0, 0.5)), lambda: generate(pipe, [PROMPT, "a blue square"], steps=2))
    assert found.shape == seen.samples[0].shape
    plain = pipe.vae.encode(2 * pictures - 1).latent_dist.mean.detach() * pipe.vae.config.scaling_factor
    # A token holds two by two neighbours of each channel.
    torch.testing.assert_close(found[:, 0], plain[:, :, :2, :2].flatten(1))


def test_edm_latents_are_scaled_for_the_network_at_their_level():
    scheduler = edm(table=replace(table(2.0, 0.5), start="given"))
    scheduler.set_timesteps(2)
    scaled = scheduler.scale_model_input(torch.ones(1, 3), scheduler.timesteps[0])
    torch.testing.assert_close(scaled, torch.full((1, 3), (2.0**2 + 0.5**2) ** -0.5))
