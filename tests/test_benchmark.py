"""A whole benchmark in a folder, on a tiny pipeline: figures that follow from the runs, and going on where it was."""

import io
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import PROMPT, pixart_pipeline

from festina import FestinaError, Plan
from festina.benchmark import drawing, measuring, session, variants
from festina.benchmark.catalogue import entries_named
from festina.benchmark.entries import Entry
from festina.benchmark.session import Job, run_benchmark
from festina.gates import Gate
from festina.methods import fora
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.similarity import ssim_measure
from festina.peers import Audit, Peer, PeerError
from festina.plan import Step, even_noise
from festina.report.comparison import Fidelity
from festina.search import Workload
from festina.search.generation import generate
from festina.search.pricing import holding, pricing
from festina.sites import component_sites, first_blocks, stack_runs

CALL = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20, "height": 16, "width": 16}
PROMPTS = (PROMPT, "a large green star on a pink background", "a small red ring on a black background")
STEPS, BATCH = 5, 2


class Brightness:
    """A reward that is cheap and known: the picture's mean."""

    name, fingerprint = "brightness", "1"

    def __call__(self, images, prompts):
        assert len(images) == len(prompts)
        return images.flatten(1).mean(1)


def gated(pipe, steps, threshold):
    """All blocks but the first are served where the first one's residual moved by less than the threshold."""
    denoiser = pipe.transformer
    gate = Gate(first_blocks(denoiser), "residual", "computed", threshold)
    rows = tuple(Step(noise, "G") for noise in even_noise(steps))
    return Plan(type(denoiser).__name__, stack_runs(denoiser, first=1), rows, "gated", gate=gate)


def refusing(pipe, steps, knobs, calibration):
    raise FestinaError(f"nothing to {knobs['what']} here")


def foreign(pipe, steps, knobs, calibration):
    mask = np.arange(steps)[:, None] % 2 == 0
    return Plan.from_mask("DiTTransformer2DModel", ["transformer_blocks.0.ff"], mask)


ENTRIES = (
    *entries_named("fora"),
    Entry(
        "gated",
        lambda steps: ({"threshold": 0.0}, {"threshold": 1e9}),
        lambda pipe, steps, knobs, _: gated(pipe, steps, knobs["threshold"]),
    ),
    Entry("refusing", lambda steps: ({"what": "hold"},), refusing),
    Entry(
        "again", lambda steps: ({"interval": 2},), lambda pipe, steps, knobs, _: fora(pipe, steps, knobs["interval"])
    ),
    Entry("foreign", lambda steps: ({},), foreign),
)

NAMES = [
    *("uncached", "2 steps", "3 steps", "4 steps", "fora interval=2", "fora interval=3", "fora interval=4"),
    *("gated threshold=0", "gated threshold=1e+09", "own"),
]


def make_job(pipe, **changes):
    sites = [site.name for site in component_sites(pipe.transformer) if site.name.endswith("ff")]
    mask = np.ones((STEPS, len(sites)), dtype=bool)
    mask[3] = False
    plan = Plan.from_mask("PixArtTransformer2DModel", sites, mask, method="by hand")
    plans = (("own", plan), ("short", plan.resample(4)))
    return replace(Job("tiny", PROMPTS, (), ENTRIES, STEPS, 4.5, BATCH, CALL, plans, False, 2), **changes)


def run(pipe, folder, **changes):
    return run_benchmark(pipe, make_job(pipe, **changes), Brightness(), folder, FIDELITY)


FIDELITY = Fidelity(
    lambda images: images.flatten(1)[:, :5], torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
)


@pytest.fixture(scope="module")
def pipe():
    return pixart_pipeline()


@pytest.fixture(scope="module")
def workload():
    return Workload(PROMPTS, tuple(range(2_000_000, 2_000_003)), STEPS, 4.5, BATCH, CALL)


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """A finished benchmark, its folder, and what was told of it."""
    folder = tmp_path_factory.mktemp("bench")
    told = []
    found = run_benchmark(pipe, make_job(pipe), Brightness(), folder, FIDELITY, lambda *words: told.append(words))
    return found, folder, told


@pytest.fixture
def results(made):
    return {result.variant.name: result for result in made[0].results}


def test_every_run_is_there_once_or_its_reason(made):
    found, folder, told = made
    assert [result.variant.name for result in found.results] == NAMES
    assert [(each.name, each.same_as) for each in found.alike] == [("again interval=2", "fora interval=2")]
    reasons = {each.name: each.reason for each in found.failed}
    assert set(reasons) == {"refusing what=hold", "foreign", "short"}
    assert reasons["refusing what=hold"] == "nothing to hold here"
    assert "DiTTransformer2DModel" in reasons["foreign"]
    assert "it has 4 steps, the benchmark 5" in reasons["short"]
    assert len(list((folder / "runs").iterdir())) == len(list((folder / "pictures").iterdir())) == len(NAMES)
    assert len(list((folder / "rounds").iterdir())) == found.rounds == 2
    assert [done for done, _, _ in told] == list(range(1, len(NAMES) + 4))
    assert {total for _, total, _ in told} == {len(NAMES) + 3}


def test_macs_are_those_of_the_run(pipe, workload, results):
    price = pricing(pipe, workload)
    names = [site.name for site in component_sites(pipe.transformer)]
    for steps, name in ((5, "uncached"), (4, "4 steps"), (2, "2 steps")):
        assert results[name].figures.macs == price(Plan.computing_all("PixArtTransformer2DModel", names, steps))
    for interval in (2, 3, 4):
        assert results[f"fora interval={interval}"].figures.macs == price(fora(pipe, STEPS, interval))
    # A gate that never serves, and one that always does after the first step.
    assert results["gated threshold=0"].figures.macs == results["uncached"].figures.macs
    always = gated(pipe, STEPS, 1e9)
    served = replace(always, steps=tuple(replace(step, actions="R") for step in always.steps), gate=None)
    assert results["gated threshold=1e+09"].figures.macs == price(served) < results["uncached"].figures.macs


def test_bytes_are_those_held_for_one_picture(pipe, workload, results):
    assert results["uncached"].figures.held_bytes == results["3 steps"].figures.held_bytes == 0
    hold = holding(pipe, workload)
    assert results["fora interval=2"].figures.held_bytes == hold(fora(pipe, STEPS, 2))
    assert results["gated threshold=1e+09"].figures.held_bytes > 0


def test_figures_follow_from_the_pictures(pipe, workload, made, results):
    plain = generate(pipe, workload.pictures(), workload)
    fewer = generate(pipe, workload.pictures(), replace(workload, steps=3))
    assert torch.equal(load_file(made[1] / "uncached.safetensors")["pictures"], plain)
    own = results["3 steps"].figures
    assert own.scores == tuple(Brightness()(fewer, PROMPTS).tolist())
    assert own.reward == pytest.approx(fewer.mean().item(), rel=1e-6)
    error = (10 ** (psnr(fewer, plain) / -10)).mean().item()
    assert own.error == pytest.approx(error)
    assert own.psnr == pytest.approx(-10 * math.log10(error))
    assert own.frechet == pytest.approx(frechet_distance(FIDELITY.features(fewer), FIDELITY.reference))
    assert own.ssim == pytest.approx(ssim_measure()(fewer, plain))


def test_what_runs_alike_has_the_figures_of_the_uncached_sampler(results):
    first, same = results["uncached"].figures, results["gated threshold=0"].figures
    assert first.psnr == same.psnr == math.inf
    assert (first.scores, first.frechet, first.ssim) == (same.scores, same.frechet, same.ssim)
    assert first.ssim == pytest.approx(1)
    assert results["own"].figures.psnr < math.inf


def test_a_plan_that_changes_what_it_must_not_is_told(pipe, tmp_path, monkeypatch):
    draw = drawing.draw

    def darker(pipe, variant, workload):
        drawn = draw(pipe, variant, workload)
        return replace(drawn, pictures=drawn.pictures / 2) if variant.kind == "uncached" else drawn

    monkeypatch.setattr(drawing, "draw", darker)
    found = run(pipe, tmp_path, entries=(), plans=(), rounds=1)
    assert found.remarks == (("uncached", "a plan that computes everything gives other pictures here"),)
    assert found.uncached.figures.psnr == math.inf


def test_where_no_plan_can_be_put_on_nothing_is_counted(pipe, tmp_path, monkeypatch):
    def refusing_plans(pipe, plan, models, statistics):
        raise FestinaError("compiled as a whole")

    monkeypatch.setattr(variants, "accelerate", refusing_plans)
    found = run(pipe, tmp_path, entries=ENTRIES[:1], plans=(), rounds=1)
    assert [result.variant.name for result in found.results] == NAMES[:4]
    assert {result.figures.macs for result in found.results} == {None}
    assert {each.reason for each in found.failed} == {"compiled as a whole"}


def test_seconds_are_those_of_uncached_by_ratios_within_rounds(made, results):
    rounds = [json.loads(path.read_text())["runs"] for path in sorted((made[1] / "rounds").iterdir())]
    assert all(list(each) == NAMES for each in rounds)
    assert results["uncached"].seconds_ratio == 1
    for name in NAMES:
        uncached = [each["uncached"]["seconds"] for each in rounds]
        ratios = [each["uncached"]["seconds"] / each[name]["seconds"] for each in rounds]
        assert results[name].seconds_ratio == pytest.approx(np.mean(ratios))
        assert results[name].seconds == pytest.approx(np.mean(uncached) / BATCH / np.mean(ratios))


def test_only_what_is_no_untouched_sampler_has_a_rival(results):
    assert all(results[name].rival is None for name in NAMES[:4])
    rivals = [results[name].rival for name in NAMES[4:] if results[name].seconds >= results["2 steps"].seconds]
    assert all(rivals)


def test_pictures_are_those_of_the_first_prompts(pipe, workload, made):
    found = made[0]
    plain = generate(pipe, workload.pictures(), workload)
    assert found.prompts == PROMPTS
    shown = [np.asarray(Image.open(io.BytesIO(png))) for png in found.pictures["uncached"]]
    assert len(shown) == len(PROMPTS)
    for picture, image in zip(shown, plain, strict=True):
        assert np.array_equal(picture, (image * 255).round().byte().permute(1, 2, 0).numpy())


class TestCalibration:
    ENTRY = Entry(
        "calibrated",
        lambda steps: ({"interval": 2}, {"interval": 3}),
        lambda pipe, steps, knobs, calibration: fora(pipe, steps, knobs["interval"] + calibration.steps - steps),
        needs_calibration=True,
    )

    def test_it_is_made_once_and_kept_in_the_folder(self, pipe, tmp_path, monkeypatch):
        asked = []

        def calibrate(pipe, prompts, steps, seeds, guidance, call, measures, out, progress):
            asked.append((prompts, steps, guidance, call["height"], out))
            return SimpleNamespace(steps=steps)

        monkeypatch.setattr(session, "calibrate", calibrate)
        found = run(pipe, tmp_path, entries=(self.ENTRY,), calibration=("a", "b"), plans=(), rounds=1)
        assert asked == [(("a", "b"), STEPS, 4.5, 16, tmp_path / "calibration.json")]
        assert [result.variant.name for result in found.results][4:] == [
            "calibrated interval=2",
            "calibrated interval=3",
        ]

    def test_what_goes_wrong_is_the_reason_of_all_that_need_it(self, pipe, tmp_path, monkeypatch):
        tried = []

        def calibrate(*arguments):
            tried.append(arguments)
            raise FestinaError("hooks do not hold")

        monkeypatch.setattr(session, "calibrate", calibrate)
        found = run(pipe, tmp_path, entries=(self.ENTRY,), calibration=("a",), plans=(), rounds=1)
        assert len(tried) == 1
        assert [(each.name, each.reason) for each in found.failed] == [
            ("calibrated", "no calibration: hooks do not hold")
        ]

    def test_without_prompts_there_is_none(self, pipe, tmp_path):
        found = run(pipe, tmp_path, entries=(self.ENTRY,), plans=(), rounds=1)
        assert "no prompts to calibrate on" in found.failed[0].reason


def test_peers_take_part_and_their_failures_are_told(pipe, tmp_path, monkeypatch):
    good, bad = Peer("Good", {"every": 2}, "library", "1.0"), Peer("Bad", {}, "library", "1.0")

    @contextmanager
    def running(pipe, peer):
        if peer is bad:
            raise PeerError(bad, "attached to nothing")
        yield

    def audit(pipe, peer, render):
        with running(pipe, peer):
            assert render().shape == (1, 3, 16, 16)
        return Audit(1, 10, 10, False, True, True, ())

    monkeypatch.setattr(variants, "peers_for", lambda pipe, steps: (good, bad))
    monkeypatch.setattr(variants, "running", running)
    monkeypatch.setattr(measuring, "audit", audit)
    found = run(pipe, tmp_path, entries=(), plans=(), peers=True, rounds=1)
    last = found.results[-1]
    assert (last.variant.name, last.variant.group) == ("library Good every=2", "library")
    assert (last.figures.macs, last.figures.held_bytes, last.figures.psnr) == (None, None, math.inf)
    assert last.figures.notes == ("left nothing out", "changed nothing")
    assert [(each.name, each.reason) for each in found.failed] == [
        ("library Bad", "Bad (library 1.0) attached to nothing")
    ]
    assert found.remarks[0] == ("library Good every=2", "left nothing out")


def test_jobs_that_cannot_be_are_refused(pipe):
    with pytest.raises(FestinaError, match="at least two"):
        make_job(pipe, prompts=PROMPTS[:1])
    with pytest.raises(FestinaError, match="one round"):
        make_job(pipe, rounds=0)
    with pytest.raises(FestinaError, match="drawn and for calibration"):
        make_job(pipe, calibration=PROMPTS[:1])


def test_two_plans_of_one_name_are_refused(pipe, tmp_path):
    (plan, _) = make_job(pipe).plans
    with pytest.raises(FestinaError, match="two runs are called 'own'"):
        run(pipe, tmp_path, plans=(plan, plan))
