"""The scenes data set, its judge and its training: what is drawn is what is said, and damage lowers the reward."""

import json
import random

import pytest
import torch
from cutting import cut_at_first_checkpoints, run_to_the_end
from diffusers import PixArtAlphaPipeline

from festina import FestinaError
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.judge import ABSENT, HEADS, Judge, load_judge, scene_targets
from festina.zoo import call_arguments, load, shipped_judge
from festina.zoo.components import CAPTION_TOKENS, build_tokenizer
from festina.zoo.grammar import (
    BACKGROUNDS,
    HELD_OUT,
    RELATIONS,
    Scene,
    Thing,
    parse_caption,
    sample_scene,
    sample_scenes,
)
from festina.zoo.render import BACKGROUND_RGB, COLOUR_RGB, render, sample_layout

RED_CIRCLE = Thing("large", "red", "circle")
BLUE_SQUARE = Thing("small", "blue", "square")


@pytest.fixture(scope="module")
def judge():
    return shipped_judge()


@pytest.fixture(scope="module")
def held_out_renders():
    scenes = sample_scenes(150, 4242) + sample_scenes(150, 4243, held_out=True)
    return scenes, render(scenes, seed=99)


def test_captions_read_back():
    rng = random.Random(0)
    scenes = [sample_scene(rng, held_out=index % 2 == 1) for index in range(500)]
    assert all(parse_caption(scene.caption()) == scene for scene in scenes)
    assert parse_caption(" A Small Blue Square on a PINK background. ") == Scene(BLUE_SQUARE, "pink")


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red fox in snow",
        "a red circle on a white background",
        "a large red circle on a green background",
        "a large red circle left of on a white background",
        "a large red circle on a white background and more",
    ],
)
def test_other_sentences_are_refused(caption):
    with pytest.raises(FestinaError, match="not a caption"):
        parse_caption(caption)


def test_held_out_combinations_never_occur_in_training():
    training, held_out = sample_scenes(3000, 0), sample_scenes(300, 0, held_out=True)
    pairs = {(thing.colour, thing.shape) for scene in training for thing in scene.things}
    assert not pairs & HELD_OUT
    assert len(pairs) == 6 * 6 - len(HELD_OUT)
    assert all(any((t.colour, t.shape) in HELD_OUT for t in scene.things) for scene in held_out)
    assert sample_scenes(20, 0) == training[:20]


def test_reading_order_is_told_from_the_left_or_from_above():
    scene = Scene(RED_CIRCLE, "white", "right of", BLUE_SQUARE)
    assert scene.in_reading_order() == Scene(BLUE_SQUARE, "white", "left of", RED_CIRCLE)
    scene = Scene(RED_CIRCLE, "white", "below", BLUE_SQUARE)
    assert scene.in_reading_order() == Scene(BLUE_SQUARE, "white", "above", RED_CIRCLE)
    assert Scene(RED_CIRCLE, "white").in_reading_order() == Scene(RED_CIRCLE, "white")


@pytest.mark.parametrize("relation", RELATIONS)
def test_layouts_stand_as_they_are_told(relation):
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        first, second = sample_layout(Scene(RED_CIRCLE, "white", relation, RED_CIRCLE), generator).centres
        across, down = first[0] - second[0], first[1] - second[1]
        if relation in ("left of", "right of"):
            assert abs(across) > abs(down)
            assert (across < 0) == (relation == "left of")
        else:
            assert abs(down) > abs(across)
            assert (down < 0) == (relation == "above")


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_pictures_show_the_colours(background):
    picture = render([Scene(RED_CIRCLE, background, "left of", BLUE_SQUARE)], seed=3)[0]
    layout = sample_layout(Scene(RED_CIRCLE, background, "left of", BLUE_SQUARE), torch.Generator().manual_seed(3))
    for (x, y), colour in zip(layout.centres, ("red", "blue"), strict=True):
        pixel = picture[:, int(y * 64), int(x * 64)] * 255
        assert (pixel - torch.tensor(COLOUR_RGB[colour])).abs().max() < 8
    assert (picture[:, 0, 0] * 255 - torch.tensor(BACKGROUND_RGB[background])).abs().max() < 8


def test_rendering_is_anti_aliased_and_repeatable():
    scenes = sample_scenes(4, 1)
    assert torch.equal(render(scenes, 5), render(scenes, 5))
    assert not torch.equal(render(scenes, 5), render(scenes, 6))
    circle = render([Scene(RED_CIRCLE, "white")], 0)[0, 1]
    assert len(circle.mul(255).round().unique()) > 10


def test_targets_name_the_attributes():
    targets = scene_targets([Scene(RED_CIRCLE, "grey", "below", BLUE_SQUARE), Scene(RED_CIRCLE, "pink")])
    words = {head: [HEADS[head][i] if i != ABSENT else None for i in targets[head].tolist()] for head in HEADS}
    assert words == {
        "count": ["2", "1"],
        "background": ["grey", "pink"],
        "relation": ["above", None],
        "size1": ["small", "large"],
        "colour1": ["blue", "red"],
        "shape1": ["square", "circle"],
        "size2": ["large", None],
        "colour2": ["red", None],
        "shape2": ["circle", None],
    }


def test_the_judge_reads_every_attribute_of_held_out_renders(judge, held_out_renders):
    scenes, pictures = held_out_renders
    right, applies = judge.correct(pictures, [scene.caption() for scene in scenes])
    shares = right.sum(0) / applies.sum(0)
    assert shares.min() >= 0.98, dict(zip(HEADS, shares.tolist(), strict=True))


def test_the_reward_ranks_damage(judge, held_out_renders):
    scenes, pictures = held_out_renders
    captions = [scene.caption() for scene in scenes]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures.shape, generator=generator)
    levels = [judge.reward((pictures + size * noise).clamp(0, 1), captions).mean() for size in (0, 0.1, 0.2, 0.4)]
    assert levels == sorted(levels, reverse=True)
    small = torch.nn.functional.interpolate(pictures, size=8, mode="area")
    blurred = torch.nn.functional.interpolate(small, size=64, mode="bilinear")
    ghosted = 0.5 * pictures + 0.5 * pictures.roll(1, 0)
    for worse in (blurred, ghosted, pictures.roll(1, 0), torch.full_like(pictures, 0.5)):
        assert judge.reward(worse, captions).mean() < levels[0] - 0.1


def test_one_wrong_attribute_costs_its_share(judge):
    scene = Scene(RED_CIRCLE, "white", "left of", BLUE_SQUARE)
    picture = render([scene] * 4, 0)
    captions = [
        scene.caption(),
        Scene(Thing("large", "green", "circle"), "white", "left of", BLUE_SQUARE).caption(),
        Scene(RED_CIRCLE, "white", "above", BLUE_SQUARE).caption(),
        Scene(BLUE_SQUARE, "white", "right of", RED_CIRCLE).caption(),
    ]
    right, colour, relation, turned = judge.reward(picture, captions).tolist()
    assert right > 0.97
    assert colour == pytest.approx(right - 1 / 9, abs=0.03)
    assert relation == pytest.approx(right - 1 / 9, abs=0.03)
    assert turned == pytest.approx(right, abs=0.03)


def test_the_frechet_distance_ranks_damage(judge, held_out_renders):
    scenes, pictures = held_out_renders
    again = render(scenes, seed=100)
    with torch.no_grad():
        reference = judge.features(pictures)
        same = frechet_distance(judge.features(again), reference)
        noisy = frechet_distance(judge.features((again + 0.2 * torch.randn(again.shape)).clamp(0, 1)), reference)
        noise = frechet_distance(judge.features(torch.rand(again.shape)), reference)
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-3)
    assert same < noisy < noise


def test_the_frechet_distance_of_gaussians_with_known_moments():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50_000, 3, generator=generator, dtype=torch.float64)
    values = (values - values.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(values.T)).T)
    other = values * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64) + torch.tensor([3.0, 0, 0])
    # |m|^2 + sum (s1 - s2)^2 for diagonal covariances
    assert frechet_distance(values, other) == pytest.approx(9 + 1 + 0.25, rel=1e-6)
    with pytest.raises(FestinaError, match="two or more"):
        frechet_distance(values[:1], other)


def test_psnr_in_closed_form():
    black = torch.zeros(2, 3, 4, 4)
    grey = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.0)])
    assert psnr(grey, black).tolist() == pytest.approx([20.0, float("inf")])
    with pytest.raises(FestinaError, match="shape"):
        psnr(black, black[:1])


def test_rewards_need_one_caption_per_picture(judge):
    with pytest.raises(FestinaError, match="2 pictures but 1 captions"):
        judge.reward(torch.zeros(2, 3, 64, 64), [Scene(RED_CIRCLE, "white").caption()])


def test_a_folder_without_a_judge_is_refused(tmp_path):
    with pytest.raises(FestinaError, match=r"no judge in .*festina zoo train"):
        load_judge(tmp_path)


def test_every_caption_fits_the_tokens():
    tokenizer = build_tokenizer()
    captions = [scene.caption() for scene in sample_scenes(500, 3)]
    lengths = [len(tokens) for tokens in tokenizer(captions).input_ids]
    assert max(lengths) <= CAPTION_TOKENS
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert all(unknown not in tokens for tokens in tokenizer(captions).input_ids)
    assert unknown not in tokenizer("a red fox in snow!").input_ids


def test_scenes_loads_as_a_stock_pipeline():
    pipe = load("scenes")
    assert type(pipe) is PixArtAlphaPipeline
    stock = PixArtAlphaPipeline.from_pretrained(pipe.config._name_or_path)
    assert {part.dtype for part in (stock.text_encoder, stock.vae, stock.transformer)} == {torch.float32}
    assert len(pipe.transformer.transformer_blocks) >= 8
    assert call_arguments(pipe) == {
        "clean_caption": False,
        "use_resolution_binning": False,
        "max_sequence_length": 20,
    }
    image = pipe(
        Scene(RED_CIRCLE, "white").caption(),
        num_inference_steps=2,
        generator=torch.manual_seed(0),
        **call_arguments(pipe),
    ).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [("./no-such-folder", "no such model"), ("nowhere", "no such model"), ("a/b/c", "no such model")],
)
def test_loading_nothing_is_refused(model, message):
    with pytest.raises(FestinaError, match=message):
        load(model)


def test_loading_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(FestinaError, match=r"no model_index\.json"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(FestinaError, match="cannot load a pipeline"):
        load(tmp_path)


def test_training_resumes_where_it_was(tmp_path, monkeypatch, capsys):
    from festina.zoo import train

    settings = train.TrainSettings(
        scenes=64,
        vae_steps=3,
        vae_batch=2,
        text_steps=3,
        text_batch=4,
        denoiser_steps=3,
        denoiser_batch=2,
        judge_steps=3,
        judge_batch=4,
    )
    train.train("scenes", settings, tmp_path / "work", tmp_path / "whole", torch.device("cpu"))

    # The same again, cut off after every stage's first checkpoint.
    cuts = cut_at_first_checkpoints(monkeypatch)
    run_to_the_end(lambda: train.train("scenes", settings, tmp_path / "work2", tmp_path / "cut", torch.device("cpu")))
    assert len(cuts) == 4
    for name in ("pipeline/transformer/diffusion_pytorch_model.safetensors", "judge/judge.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "cut" / "settings.json").read_text())["scenes"] == 64
    assert isinstance(load_judge(tmp_path / "cut" / "judge"), Judge)
    load(tmp_path / "cut" / "pipeline")
