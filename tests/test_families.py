"""The recipes of the shipped pipelines: noise and targets fit together, captions are told to the denoiser as the stock
pipeline tells them, words are whole, and a training of each ends in a folder that loads and draws."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from cutting import cut_at_first_checkpoints, run_to_the_end
from diffusers import FluxPipeline, LattePipeline, PixArtAlphaPipeline, StableDiffusionPipeline
from torch import nn

from festina.search import Workload
from festina.search.generation import generate
from festina.zoo import call_arguments, load
from festina.zoo.components import LATENT_CHANNELS
from festina.zoo.grammar import RELATIONS, sample_scenes
from festina.zoo.motion import DIRECTIONS, FRAMES, sample_moving_scenes
from festina.zoo.render import render
from festina.zoo.scenes_video import _GROWN_FROM
from festina.zoo.train import FAMILIES, TrainSettings, train

NAMES = sorted(FAMILIES)
PIPELINES = {
    "scenes": PixArtAlphaPipeline,
    "scenes-flux": FluxPipeline,
    "scenes-unet": StableDiffusionPipeline,
    "scenes-video": LattePipeline,
}
SETTINGS = TrainSettings(
    scenes=40,
    vae_steps=2,
    vae_batch=2,
    text_steps=2,
    text_batch=4,
    denoiser_steps=2,
    denoiser_batch=2,
    judge_steps=2,
    judge_batch=4,
)


@pytest.fixture(scope="module")
def families():
    return {name: family() for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of all pipelines, trained for a moment, by name."""
    folder = tmp_path_factory.mktemp("trained")
    for name in NAMES:
        train(name, SETTINGS, folder / f"{name}-work", folder / name, torch.device("cpu"))
    return folder


def captions_of(name, count, seed=0):
    sample = sample_moving_scenes if name == "scenes-video" else sample_scenes
    return [scene.caption() for scene in sample(count, seed)]


def clean_of(name, batch=3):
    size = (FRAMES, 16, 16) if name == "scenes-video" else (16, 16)
    return torch.randn(batch, LATENT_CHANNELS, *size, generator=torch.Generator().manual_seed(1))


def test_pictures_are_those_the_shipped_judge_and_autoencoder_were_trained_on():
    # Recorded before frames of videos were drawn by the same code, when pictures were equal to the last bit.
    pictures = render(sample_scenes(3, 21) + sample_scenes(3, 21, held_out=True), 21)
    levels = pictures.mul(255).round().to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(levels).hexdigest() == "269ab247344afcd73c5e4f48d6434c67f7db6064dd42293d7544c2a36c9218af"


@pytest.mark.parametrize("name", NAMES)
def test_the_clean_latents_follow_from_the_noisy_ones_and_the_target(families, name):
    family, clean = families[name], clean_of(name)
    noisy, target, times = family.corrupt(clean, torch.Generator().manual_seed(2))
    share = times.view(-1, *(1,) * (clean.ndim - 1))
    if name == "scenes-flux":
        assert ((times >= 0) & (times < 1)).all()
        found = noisy - share * target
    else:
        signal = family.scheduler.alphas_cumprod[share]
        if name == "scenes-unet":
            found = (noisy - (1 - signal).sqrt() * target) / signal.sqrt()
        else:
            found = signal.sqrt() * noisy - (1 - signal).sqrt() * target
    # Where there is hardly any signal, dividing by it magnifies the rounding.
    assert torch.allclose(found, clean, atol=1e-3)


def test_every_other_video_of_training_is_nearly_noise_and_most_lean_to_one_side(families):
    family = families["scenes-video"]
    _, _, times = family.corrupt(clean_of("scenes-video", 400), torch.Generator().manual_seed(2))
    assert times[1::2].min() >= 860
    assert times[1::2].max() <= 999
    assert times[::2].min() < 20
    assert times[::2].max() > 980
    assert abs(times[::2].float().mean() - 500) < 60
    to_one_side = sum(moving.direction in ("left", "up") for moving in family.sample(1000, 4))
    assert 700 < to_one_side < 800


def test_flow_matching_goes_straight_from_the_latents_to_the_noise(families, monkeypatch):
    clean = clean_of("scenes-flux")
    for share in (0.0, 1.0):
        monkeypatch.setattr(torch, "rand", lambda *size, share=share, **_: torch.full(size, share))
        noisy, target, _ = families["scenes-flux"].corrupt(clean, torch.Generator().manual_seed(2))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
        assert torch.equal(noisy, noise if share else clean)
        assert torch.equal(target, noise - clean)


def test_the_u_net_is_to_find_the_noise(families):
    clean = clean_of("scenes-unet")
    noisy, target, _ = families["scenes-unet"].corrupt(clean, torch.Generator().manual_seed(2))
    assert torch.equal(target, torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)))
    assert not torch.equal(noisy, target)


def test_unpacking_undoes_packing(families):
    clean = clean_of("scenes-flux")
    found = families["scenes-flux"].predict(
        lambda hidden_states, **_: (hidden_states,), clean, torch.rand(3), {"encoder_hidden_states": clean}
    )
    assert torch.equal(found, clean)


@pytest.mark.parametrize("name", NAMES)
def test_every_word_is_one_token(families, name):
    family = families[name]
    captions = captions_of(name, 300)
    words = {word for caption in captions for word in caption.split()}
    assert {word for relation in RELATIONS for word in relation.split()} <= words
    if name == "scenes-video":
        assert {"moving", *DIRECTIONS} <= words
    for tokenizer in [part for part in vars(family).values() if hasattr(part, "get_vocab")]:
        ends = len(tokenizer("").input_ids)
        for word in words:
            assert len(tokenizer(word).input_ids) == 1 + ends, word
        assert max(len(ids) for ids in tokenizer(captions).input_ids) <= tokenizer.model_max_length


def small_denoiser(family):
    """The family's denoiser, and what it is called with."""
    denoiser = family.denoiser().eval()
    calls = []
    denoiser.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return denoiser, calls


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3])
def test_the_denoiser_is_told_what_the_stock_pipeline_tells_it(families, name, count):
    """Captions and the empty caption, for one prompt and for several: what was trained on is what is drawn with."""
    torch.manual_seed(0)
    family = families[name]
    encoders = family.text_encoders().eval().requires_grad_(False)
    denoiser, calls = small_denoiser(family)
    pipe = family.pipeline(encoders, load("scenes").vae, denoiser)
    pipe.set_progress_bar_config(disable=True)
    captions = captions_of(name, count)
    call = {**call_arguments(pipe), **family.call}
    work = Workload(tuple(captions), tuple(range(count)), 2, 3.0, count, call)
    generate(pipe, work.pictures(), work)
    calls = calls[: len(calls) // 2]
    for key, trained_on in family.conditions(encoders, [""] * count + captions).items():
        rows = [kwargs[key] for _, kwargs in calls]
        # The empty caption comes first in one batched call, last in two calls.
        drawn_with = torch.cat(rows[::-1] if len(rows) == 2 else rows)
        if drawn_with.shape != trained_on.shape:
            length = min(drawn_with.shape[1], trained_on.shape[1])
            # Beyond the shorter one there is but padding, all of it alike.
            for longer in (drawn_with, trained_on):
                rest = longer[:, length:]
                assert torch.allclose(rest, longer[:, -1:].expand_as(rest), atol=1e-5)
            drawn_with, trained_on = drawn_with[:, :length], trained_on[:, :length]
        assert torch.allclose(drawn_with.float(), trained_on.float(), atol=1e-4), key


def test_padding_to_the_length_of_the_stock_pipeline_repeats_the_padding(families):
    words = torch.randn(2, 24, 128)
    for times in (torch.tensor([3, 4]), torch.tensor([4, 4])):
        told = []
        families["scenes-video"].predict(
            lambda noisy, times, text, told=told, **_: told.append(text) or (noisy,),
            clean_of("scenes-video", 2),
            times,
            {"encoder_hidden_states": words},
        )
        assert torch.equal(told[0][:, :24], words)
        assert told[0].shape[1] == (120 if times[0] == 3 else 24)
        assert (told[0][:, 24:] == words[:, -1:]).all()


def test_a_video_begins_as_pictures_drawn_frame_by_frame(families):
    """Grown from the transformer of scenes: each frame is what the same blocks of that transformer make of it."""
    picture = load("scenes").transformer
    picture.transformer_blocks = nn.ModuleList(picture.transformer_blocks[index] for index in _GROWN_FROM)
    video = families["scenes-video"].denoiser().eval()
    # The class adds the number of the frame to the values that run through all blocks; no weight could undo that.
    video.temp_pos_embed.zero_()
    clean = clean_of("scenes-video", 2)
    words = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([100, 700])
    with torch.no_grad():
        drawn = video(clean, times, words, return_dict=False)[0]
        assert drawn.shape == (2, 2 * LATENT_CHANNELS, FRAMES, 16, 16)
        assert (drawn[:, LATENT_CHANNELS:] == 0).all()
        for frame in range(FRAMES):
            alone = picture(clean[:, :, frame], words, times, return_dict=False)[0]
            assert torch.allclose(drawn[:, :LATENT_CHANNELS, frame], alone, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_trained_loads_and_draws(trained, families, name):
    folder = trained / name
    assert json.loads((folder / "settings.json").read_text())["scenes"] == 40
    assert (folder / "judge").is_dir() == (name in ("scenes", "scenes-video"))
    assert {path.name for path in folder.glob("*.log.jsonl")} >= {"text.log.jsonl", "denoiser.log.jsonl"}
    pipe = load(folder / "pipeline")
    assert type(pipe) is PIPELINES[name]
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}
    call = call_arguments(pipe)
    assert families[name].call.items() <= call.items()
    prompts = tuple(captions_of(name, 3, seed=9))
    # Batches of two prompts and of one.
    work = Workload(prompts, (0, 1, 2), 2, 3.0, 2, call)
    drawn = generate(pipe, work.pictures(), work)
    assert drawn.shape == ((3, FRAMES, 3, 64, 64) if name == "scenes-video" else (3, 3, 64, 64))
    assert drawn.isfinite().all()
    assert torch.equal(generate(pipe, work.pictures(), work), drawn)
    without = generate(pipe, work.pictures(), replace(work, guidance_scale=1.0))
    assert not torch.equal(without, drawn)


@pytest.mark.parametrize("name", ["scenes-flux", "scenes-unet", "scenes-video"])
def test_a_killed_training_goes_on_where_it_was(trained, name, tmp_path, monkeypatch):
    cuts = cut_at_first_checkpoints(monkeypatch)
    run_to_the_end(lambda: train(name, SETTINGS, tmp_path / "work", tmp_path / "out", torch.device("cpu")))
    assert sorted(cuts) == sorted(["text", "denoiser", *(["judge"] if name == "scenes-video" else [])])
    weights = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.safetensors"))
    assert len(weights) >= 3
    for path in weights:
        assert (tmp_path / "out" / path).read_bytes() == (trained / name / path).read_bytes(), path
