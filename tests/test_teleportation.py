"""Gaussian teleportation: exact for Gaussian pictures, good at large noise for others, and its statistics."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from samplers_gaussian import (
    FAMILIES,
    covariance_of,
    edm,
    first_sample,
    gaussian,
    gaussian_picture,
    integrated,
)
from samplers_pipe import ToyPipe, error
from samplers_toy import CENTRES, SPREAD, flow, gaussian_end, noise, picture, table, vp
from tiny import PROMPT, flux_pipeline, pixart_pipeline

from festina import FestinaError
from festina.calibration.gaussian import generated_statistics
from festina.samplers import Frame, NoiseLevel, PlanScheduler
from festina.samplers.teleportation import GaussianStatistics, carried, statistics_of, teleported
from festina.samplers.times import karras, table_on, uniform_log_snr, uniform_time

LAST = {"variance_preserving": 1.3, "flow": 0.4, "edm": 1.3}
"""A level well below the largest in each family."""


def mixture():
    """Mean and covariance of the mixture of `samplers_toy`, in closed form."""
    mean = CENTRES.mean(0)
    covariance = (CENTRES - mean).T @ (CENTRES - mean) / len(CENTRES) + SPREAD**2 * torch.eye(3)
    variances, directions = torch.linalg.eigh(covariance)
    return GaussianStatistics(mean, directions.T.contiguous(), variances, (3,), 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [1, 3])
def test_it_is_the_probability_flow_of_gaussian_pictures(family, rank):
    frame, statistics = FAMILIES[family]().frame, gaussian(rank)
    start = first_sample(frame)
    exact = integrated(start, frame, gaussian_picture(statistics), LAST[family])
    torch.testing.assert_close(teleported(start, frame, statistics, LAST[family]), exact, atol=1e-8, rtol=0)


def test_isotropic_pictures_end_where_their_formula_says():
    frame, eye = vp().frame, torch.eye(3, dtype=torch.float64)
    statistics = GaussianStatistics(CENTRES[0], eye, torch.full((3,), SPREAD**2, dtype=torch.float64), (3,), 1)
    start, first = noise(dtype=torch.float64), frame.level(frame.largest_noise)
    for last in (6.0, 1.0, 0.0):
        expected = gaussian_end(start, first, frame.level(last))
        torch.testing.assert_close(teleported(start, frame, statistics, last), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_jumps_are_one(family):
    frame, statistics = FAMILIES[family]().frame, gaussian()
    start, last = first_sample(frame), frame.level(LAST[family])
    middle = frame.level((frame.largest_noise * LAST[family]) ** 0.5)
    there = teleported(start, frame, statistics, (frame.largest_noise * LAST[family]) ** 0.5)
    direct = teleported(start, frame, statistics, LAST[family])
    torch.testing.assert_close(carried(there, statistics, middle, last), direct, atol=1e-10, rtol=0)
    torch.testing.assert_close(carried(direct, statistics, last, middle), there, atol=1e-10, rtol=0)
    torch.testing.assert_close(teleported(start, frame, statistics, frame.largest_noise), start, atol=1e-10, rtol=0)


def test_pure_noise_of_a_flow_is_the_limit_of_ever_noisier_levels():
    statistics, start = gaussian(), first_sample(flow().frame)
    target = NoiseLevel(0.6, 0.4)
    limit = carried(start, statistics, NoiseLevel(0.0, 1.0), target)
    gaps = [(carried(start, statistics, NoiseLevel(s, 1 - s), target) - limit).abs().max() for s in (1e-2, 1e-4, 1e-6)]
    assert gaps[0] > 50 * gaps[1] > 2500 * gaps[2] > 0
    # In the units of EDM: the mean, sqrt(sigma_hat^2 + variance) of the noise in the span, sigma_hat of it outside.
    along = start @ statistics.directions.T
    hat = 0.4 / 0.6
    outside = hat * (start - along @ statistics.directions)
    inside = (hat**2 + statistics.variances).sqrt() * along @ statistics.directions
    torch.testing.assert_close(limit, 0.6 * (statistics.mean + inside + outside), atol=1e-12, rtol=0)


def test_on_a_mixture_the_error_falls_with_the_noise_and_mean_and_covariance_are_worth_it():
    frame, statistics = edm().frame, mixture()
    nothing = replace(statistics, mean=torch.zeros(3).double(), variances=torch.zeros(3).double())
    start = first_sample(frame, samples=64, dimensions=3)
    levels, errors = (20.0, 10.0, 5.0, 2.5, 1.5), []
    for level in levels:
        exact = integrated(start, frame, picture, level)
        errors.append([error(teleported(start, frame, known, level), exact) for known in (statistics, nothing)])
    known, shortcut = zip(*errors, strict=True)
    assert list(known) == sorted(known)
    assert known[0] < 1e-3
    assert known[2] < 0.02
    for ratio, mine, other in zip((200, 50, 20, 8, 4), known, shortcut, strict=True):
        assert other > ratio * mine


@pytest.mark.parametrize("is_flow", [False, True])
def test_a_run_from_there_ends_better_than_as_many_calls_from_noise(is_flow):
    pipe, statistics = ToyPipe(is_flow), mixture()
    frame, start = pipe.frame, noise(3, 64, torch.float64)
    exact = integrated(start, frame, picture, 0.002, steps=2000)
    level = 0.8 if is_flow else 4.0
    full = table_on(frame, uniform_log_snr(frame, 8), order=2)
    rest = [level * (0.02 / level) ** (place / 7) for place in range(8)]
    tail = replace(table_on(frame, rest, order=2), start="gaussian")
    ends = [pipe.drawn(full, 3)]
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, tail)
    pipe.scheduler.set_timesteps(8)
    sample = teleported(start, frame, statistics, level)
    for timestep, slot_noise in zip(pipe.scheduler.timesteps, rest, strict=True):
        place = frame.level(slot_noise)
        clean = picture(sample, place)
        dirt = (sample - place.alpha * clean) / place.sigma
        sample = pipe.scheduler.step(dirt - clean if is_flow else dirt, timestep, sample).prev_sample
    ends.append(sample)
    assert error(ends[1], exact) < 0.8 * error(ends[0], exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_samples_keep_their_dtype_and_are_computed_in_float32(dtype):
    frame, statistics = flow().frame, gaussian()
    start = first_sample(frame).to(dtype)
    found = teleported(start, frame, statistics, 0.5)
    assert found.dtype == dtype
    exact = teleported(start.double(), frame, statistics, 0.5)
    torch.testing.assert_close(found, exact.to(dtype), atol=1e-6, rtol=torch.finfo(dtype).eps)


def test_samples_of_a_batch_do_not_touch_each_other():
    frame, statistics = vp().frame, replace(gaussian(), shape=(2, 3))
    start = first_sample(frame).reshape(16, 2, 3)
    whole = teleported(start, frame, statistics, 3.0)
    assert whole.shape == (16, 2, 3)
    torch.testing.assert_close(teleported(start[4:7], frame, statistics, 3.0), whole[4:7], atol=1e-12, rtol=0)


def test_statistics_of_full_rank_are_the_mean_and_covariance():
    latents = first_sample(vp().frame, samples=40).reshape(40, 2, 3) * torch.tensor([3.0, 1.0, 0.2])
    found = statistics_of(latents, 6, measured_on="slanted noise")
    flat = latents.flatten(1)
    torch.testing.assert_close(found.mean, flat.mean(0))
    torch.testing.assert_close(covariance_of(found), torch.cov(flat.T), atol=1e-12, rtol=0)
    assert (found.rank, found.shape, found.count) == (6, (2, 3), 40)
    assert found.measured_on == "slanted noise"
    assert found.variances.tolist() == sorted(found.variances.tolist(), reverse=True)
    assert statistics_of(latents.half(), 2).mean.dtype == torch.float32


def test_few_samples_span_what_they_can():
    latents = first_sample(vp().frame, samples=4, dimensions=50)
    found = statistics_of(latents, 3)
    away = latents - latents.mean(0)
    torch.testing.assert_close(away @ found.directions.T @ found.directions, away, atol=1e-12, rtol=0)


def test_files_round_trip_exactly(tmp_path):
    latents = first_sample(vp().frame, samples=12).reshape(12, 3, 2)
    for made in (statistics_of(latents.float(), 4, "a β text"), statistics_of(latents, 2)):
        made.save(tmp_path / "statistics.safetensors")
        found = GaussianStatistics.load(str(tmp_path / "statistics.safetensors"))
        for name in ("mean", "directions", "variances"):
            assert torch.equal(getattr(found, name), getattr(made, name))
            assert getattr(found, name).dtype == getattr(made, name).dtype
        for name in ("shape", "count", "measured_on"):
            assert getattr(found, name) == getattr(made, name)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.safetensors"]


def written(path, tensors=None, key="festina_gaussian_statistics", **changes):
    """A file as `save` writes it, with changes."""
    made = statistics_of(first_sample(vp().frame, samples=12), 2)
    record = {"version": 1, "shape": [6], "count": 12, "measured_on": ""} | changes
    kept = {name: getattr(made, name) for name in ("mean", "directions", "variances")} | (tensors or {})
    save_file(kept, path, {key: json.dumps({name: value for name, value in record.items() if value is not None})})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": "other"}, "holds no Gaussian statistics"),
        ({"tensors": {"more": torch.zeros(1)}}, "holds no Gaussian statistics"),
        ({"version": 2}, "version 2 of the format; this Festina reads 1"),
        ({"count": None}, "has the keys version, shape, count, measured_on"),
        ({"colour": 1}, "has the keys"),
        ({"shape": [0]}, "list of sizes"),
        ({"count": 1.5}, "a count"),
        ({"measured_on": 3}, "and a text"),
        ({"shape": [7]}, "the mean of statistics of samples of shape \\(7,\\)"),
        ({"tensors": {"mean": torch.full((6,), torch.nan)}}, "finite"),
        ({"tensors": {"mean": torch.zeros(6, dtype=torch.int64)}}, "float32 or float64"),
        ({"tensors": {"variances": torch.tensor([1.0, -1.0])}}, "negative"),
        ({"tensors": {"directions": torch.ones(2, 6)}}, "no orthogonal unit vectors"),
    ],
)
def test_wrong_files_are_refused(tmp_path, changes, said):
    path = tmp_path / "statistics.safetensors"
    written(path)
    assert GaussianStatistics.load(path).rank == 2
    written(path, **changes)
    with pytest.raises(FestinaError, match=said):
        GaussianStatistics.load(path)


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "statistics.safetensors"
    with pytest.raises(FestinaError, match="cannot read the statistics"):
        GaussianStatistics.load(path)
    path.write_text("a text")
    with pytest.raises(FestinaError, match="cannot read the statistics"):
        GaussianStatistics.load(path)
    with pytest.raises(FestinaError, match="cannot write the statistics"):
        gaussian().save(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: teleported(torch.zeros(2, 5), vp().frame, gaussian(), 2.0), "have \\(5,\\)"),
        (lambda: teleported(torch.zeros(6), vp().frame, gaussian(), 2.0), "have \\(\\)"),
        (lambda: teleported(torch.zeros(2, 6), vp().frame, gaussian(), 15.0), "is to be carried to 15"),
        (lambda: teleported(torch.zeros(2, 6), flow().frame, gaussian(), 1.5), "no noise level of the family flow"),
        (lambda: carried(torch.zeros(2, 6), gaussian(), NoiseLevel(1.0, 0.0), NoiseLevel(0.5, 0.5)), "clean sample"),
        (lambda: statistics_of(torch.zeros(1, 6), 1), "no covariance to measure"),
        (lambda: statistics_of(torch.zeros(()), 1), "no covariance to measure"),
        (lambda: statistics_of(torch.zeros(0, 6), 1), "no covariance to measure"),
        (lambda: statistics_of(torch.full((4, 6), torch.inf), 1), "no covariance to measure"),
        (lambda: statistics_of(torch.zeros(4, 6), 4), "rank from 1 to 3"),
        (lambda: statistics_of(torch.zeros(4, 2), 3), "rank from 1 to 2"),
        (lambda: statistics_of(torch.zeros(4, 6), 0), "rank from 1 to 3"),
    ],
)
def test_what_cannot_be_done_raises(make, said):
    with pytest.raises(FestinaError, match=said):
        make()


def test_statistics_of_what_a_pipeline_draws():
    pipe = pixart_pipeline()
    source, frame = pipe.scheduler, PlanScheduler.from_scheduler(pipe.scheduler).frame
    drawn_by = table_on(frame, karras(frame, 3))
    call = {"height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False}
    call["max_sequence_length"] = 20
    told, prompts = [], [PROMPT, "a small green circle on a black background", "a blue square"]
    found = generated_statistics(
        pipe, drawn_by, prompts, 2, [5, 6, 7], 3.0, call, progress=lambda *now: told.append(now[:2])
    )
    assert pipe.scheduler is source
    assert told == [(1, 3), (2, 3), (3, 3)]
    pipe.scheduler = PlanScheduler.from_scheduler(source, drawn_by)
    latents = [
        pipe(prompt, num_inference_steps=3, guidance_scale=3.0, generator=seeded(seed), output_type="latent", **call)
        for prompt, seed in zip(prompts, (5, 6, 7), strict=True)
    ]
    expected = statistics_of(torch.cat([result.images for result in latents]), 2)
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.variances, expected.variances)
    assert (found.shape, found.count) == ((4, 8, 8), 3)
    assert found.measured_on == "PixArtAlphaPipeline, 3 network calls, guidance 3"
    with pytest.raises(FestinaError, match="more prompts than the rank"):
        generated_statistics(pipe, drawn_by, prompts, 3)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_statistics_of_packed_latents_fit_the_pipelines_noise():
    pipe = flux_pipeline()
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    call = {"height": 16, "width": 16, "max_sequence_length": 20}
    found = generated_statistics(pipe, table_on(frame, uniform_time(frame, 2)), [PROMPT, "a blue square"], 1, call=call)
    assert found.shape == (16, 16)
    start = torch.randn(2, 16, 16, generator=seeded(0))
    assert teleported(start, frame, found, 0.8).shape == start.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_with_a_gaussian_start_begins_below_the_largest_level(family):
    scheduler = FAMILIES[family](table=replace(table(LAST[family], 0.2), start="gaussian"))
    frame: Frame = scheduler.frame
    # The pipeline still makes pure noise at the largest level.
    assert scheduler.init_noise_sigma == frame.initial_scale
    scheduler.set_timesteps(2)
    sample = teleported(frame.initial_scale * noise(samples=2), frame, gaussian(1, 3), LAST[family])
    said = scheduler.scale_model_input(sample, scheduler.timesteps[0])
    assert scheduler.step(said, scheduler.timesteps[0], sample).prev_sample.isfinite().all()
