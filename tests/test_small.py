"""`scenes-small`: a small denoiser for the first steps of `scenes`; loading one denoiser; and models that a plan calls,
from the command line."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cutting import CutError, cut_at_first_checkpoints
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from safetensors.torch import load_file
from tiny import pixart_pipeline, pixart_transformer

from festina import FestinaError, Plan
from festina.capture import first_call, plain_arguments
from festina.cost import trace
from festina.methods import t_stitch
from festina.search import Workload
from festina.search.generation import generate
from festina.zoo import SHIPPED, SMALL, call_arguments, load, load_denoiser, loading, shipped_judge
from festina.zoo.family import TrainSettings
from festina.zoo.shipped import shipped
from festina.zoo.train import FAMILIES, SIBLINGS, train

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import scenes_score

SMALL_SETTINGS = TrainSettings(scenes=40, denoiser_steps=2, denoiser_batch=2)
CAPTION = "a large red circle on a white background"


@pytest.fixture(scope="module")
def scenes():
    return load("scenes")


@pytest.fixture
def folder(tmp_path):
    """A tiny denoiser in a folder of its own."""
    pixart_transformer(1).save_pretrained(tmp_path / "denoiser")
    return tmp_path / "denoiser"


def test_there_is_a_recipe_for_every_small_denoiser_that_ships():
    assert {name: family.beside for name, family in SIBLINGS.items()} == SMALL
    assert set(SMALL.values()) <= set(SHIPPED)
    assert not set(SMALL) & set(SHIPPED)
    assert not any(family.beside for family in FAMILIES.values())


def test_it_is_of_the_same_class_and_a_fifth_of_the_work(scenes):
    small, big = SIBLINGS["scenes-small"]().denoiser(), scenes.transformer
    assert type(small) is type(big) is PixArtTransformer2DModel
    assert (len(small.transformer_blocks), len(big.transformer_blocks)) == (4, 8)
    mine, its = dict(small.config), dict(big.config)
    differing = {key for key in its if key[0] != "_" and mine[key] != its[key]}
    assert differing == {"num_layers", "num_attention_heads", "cross_attention_dim"}
    assert (small.inner_dim, big.inner_dim) == (96, 192)
    call = first_call(scenes, **plain_arguments(scenes), **call_arguments(scenes))
    assert 5 * trace(small.eval(), call).macs.total <= trace(big, call).macs.total


def test_it_is_trained_on_the_noise_of_its_pipeline(scenes):
    family, wanted = SIBLINGS["scenes-small"](), dict(scenes.scheduler.config)
    assert type(family.scheduler) is type(scenes.scheduler) is DPMSolverMultistepScheduler
    for key in ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps"):
        assert family.scheduler.config[key] == wanted[key]
    assert torch.equal(family.scheduler.alphas_cumprod, scenes.scheduler.alphas_cumprod)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trained for a moment: the folder, and what its denoiser was given."""
    from festina.zoo import train as training

    given, folder = {}, tmp_path_factory.mktemp("small")
    original = training.train_denoiser

    def noting(family, model, schedule, latents, conditions, *rest):
        given.update(latents=latents, conditions=conditions)
        return original(family, model, schedule, latents, conditions, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_denoiser", noting)
        train("scenes-small", SMALL_SETTINGS, folder / "work", folder / "out", torch.device("cpu"))
    return folder, given


def test_a_training_leaves_the_denoiser_alone(trained):
    folder, _ = trained
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "config.json",
        "denoiser.log.jsonl",
        "diffusion_pytorch_model.safetensors",
        "settings.json",
    ]
    assert json.loads((folder / "out" / "settings.json").read_text()) == asdict(SMALL_SETTINGS)
    kept = load_file(folder / "out" / "diffusion_pytorch_model.safetensors")
    assert {weights.dtype for weights in kept.values()} == {torch.float16}
    assert load_denoiser(folder / "out").dtype == torch.float32


def test_latents_and_captions_are_those_of_its_pipeline(trained, scenes):
    folder, given = trained
    pictures = torch.load(folder / "work" / "pictures.pt", weights_only=True)[:4]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        latents = scenes.vae.encode(pictures.float() / 127.5 - 1).latent_dist.mean
    wanted = latents.float() * scenes.vae.config.scaling_factor
    assert torch.allclose(given["latents"][:4].float(), wanted, atol=0.05)
    # Latents of unit variance, but by the factor of the pipeline and not by one of their own.
    raw = torch.load(folder / "work" / "latents.pt", weights_only=True)
    assert torch.equal(given["latents"], raw * scenes.vae.config.scaling_factor)
    caption = FAMILIES["scenes"]().sample(1, SMALL_SETTINGS.seed)[0].caption()
    told, mask, *_ = scenes.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=20)
    assert torch.allclose(given["conditions"]["encoder_hidden_states"][0].float(), told[0], atol=2e-3)
    assert torch.equal(given["conditions"]["encoder_attention_mask"][0], mask[0])


def test_a_killed_training_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    cut_at_first_checkpoints(monkeypatch)
    run = ("scenes-small", SMALL_SETTINGS, tmp_path / "work", tmp_path / "out", torch.device("cpu"))
    with pytest.raises(CutError):
        train(*run)
    assert not (tmp_path / "out").exists()
    train(*run)
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (trained[0] / "out" / weights).read_bytes()


def test_it_starts_from_nothing(tmp_path):
    settings = TrainSettings(start="scenes")
    with pytest.raises(FestinaError, match="cannot start scenes-small from 'scenes'"):
        train("scenes-small", settings, tmp_path / "work", tmp_path / "out", torch.device("cpu"))
    assert not (tmp_path / "work").exists()


def test_what_ships_was_trained_by_its_recipe():
    folder = loading.WEIGHTS / "scenes-small"
    told = json.loads((folder / "settings.json").read_text())
    assert told | {"compile": False} == asdict(SIBLINGS["scenes-small"].settings)
    last = json.loads((folder / "denoiser.log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == told["denoiser_steps"]
    kept, made = load_denoiser("scenes-small"), SIBLINGS["scenes-small"]().denoiser()
    # The versions of diffusers and the name of the folder are kept with them.
    assert {key: value for key, value in kept.config.items() if key[0] != "_"} == {
        key: value for key, value in made.config.items() if key[0] != "_"
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2 * 2**20


def test_the_page_says_what_its_recipe_differs_in():
    text = (Path(__file__).parents[1] / "docs" / "scenes.md").read_text(encoding="utf-8")
    usual, mine = (asdict(family.settings) for family in (FAMILIES["scenes"], SIBLINGS["scenes-small"]))
    differing = [f"`{name}` is {value}" for name, value in mine.items() if usual[name] != value]
    assert f"differs from the table [above](#training) in two settings: {' and '.join(differing)}." in text
    parameters = sum(weights.numel() for weights in SIBLINGS["scenes-small"]().denoiser().parameters())
    assert f"4 blocks, 96 wide, {parameters / 1e6:.1f} million parameters" in text


def test_it_draws_what_is_said_though_not_as_well_as_its_pipeline():
    pipe, captions = load("scenes"), shipped("scenes").captions_of_kind(32, 11, False)
    work = Workload(captions, tuple(range(500, 532)), 10, 4.5, 32, call_arguments(pipe))
    torch.manual_seed(0)
    untrained = SIBLINGS["scenes-small"]().denoiser().eval()
    rewards = {}
    for name, denoiser in (
        ("big", pipe.transformer),
        ("small", load_denoiser("scenes-small")),
        ("untrained", untrained),
    ):
        pipe.transformer = denoiser
        rewards[name] = shipped_judge().reward(generate(pipe, work.pictures(), work), captions).mean().item()
    assert rewards["untrained"] + 0.2 < rewards["small"] < rewards["big"]


def test_the_score_of_the_pipeline_with_it(capsys, monkeypatch):
    drawn_by = []

    def noting(pipe, *rest):
        drawn_by.append(len(pipe.transformer.transformer_blocks))
        return generate(pipe, *rest)

    monkeypatch.setattr(scenes_score, "generate", noting)
    found = scenes_score.main(["scenes-small", "--images", "4", "--steps", "2"])
    assert drawn_by == [4, 4]
    assert capsys.readouterr().out.startswith("| pictures |")
    assert found["renders, combinations seen in training"]["attributes"] == 1
    with pytest.raises(FestinaError, match=r"'mountains' does not ship; there are .*scenes-small"):
        scenes_score.main(["mountains"])


def test_a_denoiser_is_taken_from_wherever_it_lies(folder, tmp_path):
    wanted = pixart_transformer(1).state_dict()
    pixart_pipeline(1).save_pretrained(tmp_path / "pipeline")
    for source in (folder, str(folder), tmp_path / "pipeline", tmp_path / "pipeline" / "transformer"):
        found = load_denoiser(source)
        assert type(found) is PixArtTransformer2DModel
        assert not found.training
        assert all(torch.equal(value, wanted[key]) for key, value in found.state_dict().items())
    assert load_denoiser(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    own = load("scenes").transformer.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in load_denoiser("scenes").state_dict().items())


@pytest.mark.parametrize("source", ["./nowhere", "nowhere", "a/b/c", "/nowhere"])
def test_no_denoiser_is_loaded_from_nowhere(source):
    with pytest.raises(FestinaError, match=r"no such model: .*\(owner/name\).*scenes-small, scenes, scenes-flux"):
        load_denoiser(source)


def test_a_hub_id_that_cannot_be_read_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FestinaError, match=r"cannot load a denoiser from 'nobody/nothing': \S") as found:
        load_denoiser("nobody/nothing")
    assert "\n" not in str(found.value)


def test_what_is_no_denoiser_is_refused(tmp_path, folder):
    pipe = pixart_pipeline(1)
    with pytest.raises(FestinaError, match=r"neither config\.json nor model_index\.json"):
        load_denoiser(tmp_path)
    pipe.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(FestinaError, match="holds a AutoencoderKL, which takes no timestep"):
        load_denoiser(tmp_path / "vae")
    pipe.save_pretrained(tmp_path / "pipeline")
    index = tmp_path / "pipeline" / "model_index.json"
    told = json.loads(index.read_text())
    index.write_text(json.dumps({**told, "transformer": [None, None]}))
    with pytest.raises(FestinaError, match="has none of transformer, unet, prior, decoder"):
        load_denoiser(tmp_path / "pipeline")
    config = folder / "config.json"
    for text in ("{", "{}", json.dumps({**json.loads(config.read_text()), "_class_name": "NoSuchModel"})):
        config.write_text(text)
        with pytest.raises(FestinaError, match="cannot load a denoiser from"):
            load_denoiser(folder)


def test_weights_that_are_missing_are_said_with_the_command_that_makes_them(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    monkeypatch.setattr("festina.zoo.denoisers.WEIGHTS", tmp_path)
    with pytest.raises(FestinaError, match=r"'scenes-small' are not in this.*festina zoo train scenes-small --out"):
        load_denoiser("scenes-small")


class TestFromTheCommandLine:
    """`festina generate --with` and `festina plan check --with`."""

    @pytest.fixture
    def plan(self, tmp_path):
        path = tmp_path / "plan.json"
        t_stitch(load("scenes"), 4, 0.5).save(path)
        return path

    @pytest.fixture
    def small(self, tmp_path):
        torch.manual_seed(0)
        SIBLINGS["scenes-small"]().denoiser().save_pretrained(tmp_path / "small")
        return tmp_path / "small"

    def test_pictures_by_two_denoisers(self, festina, plan, small, tmp_path):
        words = ["generate", "scenes", CAPTION, "--plan", plan, "--with", f"small={small}", "--out", tmp_path / "out"]
        status, out, err = festina(*words, "--compare")
        assert status == 0, err
        assert "2 of them of small" in out
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"00-plan.png", "00-uncached.png", "side-by-side.png", "prompts.txt"}
        pictures = [(tmp_path / "out" / f"00-{kind}.png").read_bytes() for kind in ("plan", "uncached")]
        assert pictures[0] != pictures[1]

    def test_a_plan_is_checked_with_its_models(self, festina, plan, small):
        status, out, _ = festina("plan", "check", plan, "--model", "scenes", "--with", f"small={small}")
        assert (status, out.endswith("fits scenes\n")) == (0, True)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                [],
                "the plan calls 'small' in the place of the denoiser, and no source of it was given; say it as --with",
            ),
            (["--with", "small"], "--with 'small' is not NAME=SOURCE"),
            (["--with", "=scenes-small"], "is not NAME=SOURCE"),
            (["--with", "small="], "is not NAME=SOURCE"),
            (["--with", "small=./nowhere"], "no such model: './nowhere'"),
            (["--with", "small=a", "--with", "small=b"], "--with names 'small' twice"),
            (["--with", "small=a", "--with", "tiny=b"], "the plan calls no model 'tiny': it calls 'small'"),
        ],
    )
    def test_other_models_than_the_plans_are_one_line(self, festina, plan, words, message, tmp_path):
        commands = (
            ["generate", "scenes", CAPTION, "--plan", plan, "--out", tmp_path / "out"],
            ["plan", "check", plan, "--model", "scenes"],
        )
        for command in commands:
            status, _, err = festina(*command, *words)
            assert (status, err.count("\n")) == (1, 1)
            assert message in err
        assert not (tmp_path / "out").exists()

    def test_models_of_no_plan_are_refused(self, festina, plan, tmp_path):
        status, _, err = festina(
            "generate", "scenes", CAPTION, "--with", "small=scenes-small", "--out", tmp_path / "out"
        )
        assert (status, "--with needs a --plan" in err) == (1, True)
        status, _, err = festina("plan", "check", plan, "--with", "small=scenes-small")
        assert (status, "--with and --statistics need a --model" in err) == (1, True)
        own = tmp_path / "own.json"
        t_stitch(load("scenes"), 4, 0.0).save(own)
        assert not Plan.load(own).models
        status, _, err = festina("generate", "scenes", CAPTION, "--plan", own, "--with", "small=scenes-small")
        assert (status, "no model 'small': it calls none" in err) == (1, True)
