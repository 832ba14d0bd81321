"""`scenes-unconditional`: its recipe, a training that can be killed, loading, and what the weights that ship draw."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from cutting import cut_at_first_checkpoints, run_to_the_end
from diffusers import DDIMPipeline
from torch.nn import functional

from festina import FestinaError
from festina.metrics.distances import frechet_distance
from festina.samplers import PlanScheduler
from festina.samplers.denoising_mcmc import DenoisingChains, LangevinGibbs
from festina.samplers.karras import KarrasIntegrator
from festina.samplers.noise_classifier import load_noise_classifier
from festina.samplers.row_denoiser import RowDenoiser
from festina.search import Workload
from festina.search.generation import generate
from festina.zoo import SHIPPED, load, loading, shipped_judge
from festina.zoo.grammar import sample_scenes
from festina.zoo.loading import UNCONDITIONAL
from festina.zoo.render import render
from festina.zoo.train import train
from festina.zoo.unconditional import (
    PICTURE_SIZE,
    SmallScenes,
    UnconditionalSettings,
    build_denoiser,
    build_scheduler,
    shipped_noise_classifier,
    train_unconditional,
)

SETTINGS = UnconditionalSettings(
    scenes=24, denoiser_steps=2, denoiser_batch=2, classifier_steps=2, classifier_batch=2, levels=20
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training of a moment."""
    folder = tmp_path_factory.mktemp("unconditional")
    train_unconditional(SETTINGS, folder / "work", folder / "out", CPU)
    return folder / "out"


def features(judge, pictures):
    """The judge's features of pictures of its own size or of half of it."""
    if pictures.shape[-1] == PICTURE_SIZE:
        pictures = functional.interpolate(pictures, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        return judge.features(pictures)


def as_pictures(samples):
    return (samples / 2 + 0.5).clamp(0, 1)


def test_pictures_for_training_are_renders_of_half_the_size():
    scenes = SmallScenes().sample(3, 4)
    assert scenes == sample_scenes(3, 4)
    small, whole = SmallScenes().render(scenes, 5), render(scenes, 5)
    assert small.shape == (3, 3, PICTURE_SIZE, PICTURE_SIZE)
    assert small[1, 2, 7, 11].item() == pytest.approx(whole[1, 2, 14:16, 22:24].mean().item(), abs=1e-6)


def test_a_training_ends_in_a_folder_that_loads_and_draws(trained):
    pipe = load(trained / "pipeline")
    assert type(pipe) is DDIMPipeline
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    drawn = pipe(batch_size=2, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
    assert drawn.shape == (2, PICTURE_SIZE, PICTURE_SIZE, 3)
    assert json.loads((trained / "settings.json").read_text()) == asdict(SETTINGS)
    assert {path.name for path in trained.glob("*.log.jsonl")} == {"denoiser.log.jsonl", "classifier.log.jsonl"}
    classifier = load_noise_classifier(trained / "noise_classifier")
    assert len(classifier.sigmas) == 20
    settings = LangevinGibbs(skip=1, chains=2, start=KarrasIntegrator(2), start_steps=1, warm_up=0)
    chains = DenoisingChains(pipe, classifier, settings, torch.Generator().manual_seed(0))
    assert chains.draw(2).shape == (2, 3, PICTURE_SIZE, PICTURE_SIZE)


def test_a_killed_training_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    cuts = cut_at_first_checkpoints(monkeypatch)
    run_to_the_end(lambda: train_unconditional(SETTINGS, tmp_path / "work", tmp_path / "out", CPU))
    assert cuts == ["denoiser", "classifier"]
    for name in (
        "pipeline/unet/diffusion_pytorch_model.safetensors",
        "noise_classifier/noise_classifier.safetensors",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (trained / name).read_bytes()
    with pytest.raises(FestinaError, match="other settings"):
        train_unconditional(replace(SETTINGS, seed=1), tmp_path / "work", tmp_path / "out", CPU)


def test_the_command_takes_the_settings_of_the_recipe(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from festina.cli.main import app
    from festina.zoo import unconditional

    asked = []
    monkeypatch.setattr(unconditional, "train_unconditional", lambda *words: asked.append(words))
    told = ["zoo", "train", UNCONDITIONAL, "--out", str(tmp_path / "o"), "--work", str(tmp_path / "w")]
    found = CliRunner().invoke(app, told)
    assert (found.exit_code, found.output) == (0, f"wrote {tmp_path / 'o'}/pipeline\n")
    assert CliRunner().invoke(app, [*told, "--compile", "--denoiser-steps", "7"]).exit_code == 0
    usual = UnconditionalSettings()
    assert asked == [
        (usual, tmp_path / "w", tmp_path / "o", CPU),
        (replace(usual, compile=True, denoiser_steps=7), tmp_path / "w", tmp_path / "o", CPU),
    ]


def test_it_is_no_pipeline_with_captions(trained, tmp_path):
    assert UNCONDITIONAL not in SHIPPED
    pipe = load(trained / "pipeline")
    work = Workload(("a large red circle on a white background",), (0,), 2, 1.0, 1, {})
    with pytest.raises(FestinaError, match="DDIMPipeline takes no prompts"):
        generate(pipe, work.pictures(), work)
    with pytest.raises(FestinaError, match=f"no recipe for 'nothing'.*{UNCONDITIONAL}"):
        train("nothing", UnconditionalSettings(), tmp_path, tmp_path, CPU)


def test_weights_that_are_not_installed_are_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    with pytest.raises(FestinaError, match=f"festina zoo train {UNCONDITIONAL}"):
        load(UNCONDITIONAL)


@pytest.fixture(scope="module")
def judge():
    return shipped_judge()


@pytest.fixture(scope="module")
def reference(judge):
    """Features of renders, drawn at the size of the pipeline."""
    return features(judge, SmallScenes().render(sample_scenes(200, 77), 77))


def test_what_ships_was_trained_by_its_recipe():
    folder = loading.WEIGHTS / UNCONDITIONAL
    settings = json.loads((folder / "settings.json").read_text())
    assert settings | {"compile": False} == asdict(UnconditionalSettings())
    for stage in ("denoiser", "classifier"):
        last = json.loads((folder / f"{stage}.log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == last["steps"] == settings[f"{stage}_steps"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 4.5e6


def test_the_classifier_that_ships_knows_the_noise_of_renders():
    classifier = shipped_noise_classifier()
    clean = SmallScenes().render(sample_scenes(16, 78), 78) * 2 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.02, 0.1, 0.5, 2.0, 10.0, 20.0):
        with torch.no_grad():
            found = classifier.sigmas[classifier(clean + sigma * noise).argmax(1)]
        # The levels are 9 % apart.
        assert (found / sigma).log().abs().median().exp() < 1.25, sigma


def test_what_ships_draws_what_the_renderer_draws(judge, reference):
    pipe = load(UNCONDITIONAL)
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(batch_size=48, num_inference_steps=12, generator=generator, output_type="np").images
    found = frechet_distance(features(judge, torch.from_numpy(drawn).permute(0, 3, 1, 2)), reference)
    renders = SmallScenes().render(sample_scenes(48, 79), 79)
    blurred = functional.interpolate(functional.avg_pool2d(renders, 8), size=PICTURE_SIZE, mode="bilinear")
    noisy = (renders + 0.5 * torch.randn(renders.shape, generator=generator)).clamp(0, 1)
    torch.manual_seed(0)
    untrained = DDIMPipeline(build_denoiser().eval(), build_scheduler())
    untrained.set_progress_bar_config(disable=True)
    nothing = untrained(batch_size=48, num_inference_steps=12, generator=generator, output_type="np").images
    for worse in (blurred, noisy, torch.from_numpy(nothing).permute(0, 3, 1, 2)):
        assert found < frechet_distance(features(judge, worse), reference)
    assert frechet_distance(features(judge, renders), reference) < found


def test_other_samplers_draw_with_what_ships_too(judge, reference):
    pipe = load(UNCONDITIONAL)
    denoiser, generator = RowDenoiser(pipe), torch.Generator().manual_seed(0)
    start = 50.0 * torch.randn(32, 3, PICTURE_SIZE, PICTURE_SIZE, generator=generator)
    clean = KarrasIntegrator(9)(denoiser, start, torch.full((32,), 50.0), generator)
    assert denoiser.rows == 32 * 17
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler)
    drawn = pipe(batch_size=32, num_inference_steps=17, generator=generator, output_type="np").images
    noise = frechet_distance(features(judge, torch.rand(start.shape, generator=generator)), reference)
    for pictures in (as_pictures(clean), torch.from_numpy(drawn).permute(0, 3, 1, 2)):
        assert frechet_distance(features(judge, pictures), reference) < 0.75 * noise


def test_the_benchmark_counts_what_the_network_was_called(trained, tmp_path, capsys):
    sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
    import denoising_mcmc

    classifier, sheet, out = trained / "noise_classifier", tmp_path / "sheet.png", tmp_path / "figures.json"
    tiny = ["--calls", "8", "--images", "8", "--chains", "4", "--reference", "6", "--classifier", str(classifier)]
    found = denoising_mcmc.main([str(trained / "pipeline"), *tiny, "--sheet", str(sheet), "--out", str(out)])
    rows = {row["sampler"]: row for row in found["rows"]}
    # Heun's method takes an odd number of calls.
    calls = {"renders": 0, "DDIM": 8, "data 2": 8, "KAR1": 7, "KAR2": 7, "DLG+KAR1": 8, "DLG+KAR2": 8}
    assert {name: row["calls"] for name, row in rows.items()} == calls
    # Four chains of two pictures each: half of a chain's start falls to a picture.
    assert {name: row["start_calls"] for name, row in rows.items() if row["start_calls"]} == {
        "DLG+KAR1": 59 / 2,
        "DLG+KAR2": 59 / 2,
    }
    assert json.loads(out.read_text())["figures"] == found
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n| ") == 1 + len(rows)
    with pytest.raises(FestinaError, match="multiple of --chains"):
        denoising_mcmc.main(["--images", "9", "--chains", "2"])
