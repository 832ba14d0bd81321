"""What ships: four pipelines, their captions, renders and judges, and how each is called."""

import json
import re
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny import flux_pipeline

from festina import FestinaError
from festina.cli.judging import fidelity_of, load_reward
from festina.cli.prompts import prompts_of_search
from festina.cli.searching import notes_on
from festina.metrics.judge import Judge
from festina.metrics.video_judge import VIDEO_HEADS, VideoJudge
from festina.search import Workload
from festina.search.generation import call_of, draws_videos, generate, generate_batch
from festina.zoo import SHIPPED, call_arguments, load, loading, shipped_judge
from festina.zoo.grammar import parse_caption
from festina.zoo.motion import FRAMES, parse_moving_caption
from festina.zoo.shipped import Shipped, shipped
from festina.zoo.train import FAMILIES, save_judge, save_pipeline

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import scenes_score
import table

ROOT = Path(__file__).parents[1]
MOVING = "a small red circle moving up left of a large blue square on a white background"
STILL = "a small red circle left of a large blue square on a white background"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A folder of weights like that of an installation, in which nothing but `scenes` was trained."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "scenes").symlink_to(loading.WEIGHTS / "scenes")
    torch.manual_seed(0)
    vae = load("scenes").vae
    for name in ("scenes-flux", "scenes-video"):
        family = FAMILIES[name]()
        save_pipeline(family, family.text_encoders(), vae, family.denoiser(), folder / name / "pipeline")
    judge = VideoJudge()
    judge.frames.load_state_dict(shipped_judge().state_dict())
    save_judge(judge, folder / "scenes-video" / "judge")
    return folder


@pytest.fixture
def installed(untrained, monkeypatch):
    monkeypatch.setattr(loading, "WEIGHTS", untrained)
    return untrained


def test_there_is_a_recipe_for_everything_that_ships():
    assert set(SHIPPED) == set(FAMILIES)
    assert [shipped(name).name for name in SHIPPED] == list(SHIPPED)
    assert [name for name in SHIPPED if shipped(name).moving] == ["scenes-video"]
    assert shipped("someone/else") is None
    assert shipped(Path("scenes")) is None


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_captions_differ_and_a_quarter_is_held_out(name, count):
    parse = parse_moving_caption if name == "scenes-video" else parse_caption
    captions = shipped(name).captions(count, 100)
    assert len(set(captions)) == len(captions) == count
    scenes = [getattr(parse(caption), "scene", parse(caption)) for caption in captions]
    assert [scene.held_out for scene in scenes] == [False] * (count - count // 4) + [True] * (count // 4)
    assert captions == shipped(name).captions(count, 100)
    others = shipped(name).captions(count, 100, captions)
    assert len(others) == count
    assert not set(others) & set(captions)


def test_a_search_never_scores_its_front_on_a_calibration_prompt():
    calibration, held_out = prompts_of_search(shipped("scenes"), None, None, 256, 512)
    assert (len(calibration), len(held_out)) == (256, 512)
    assert not set(calibration) & set(held_out)


def test_renders_show_the_captions():
    pictures, videos = (shipped(name) for name in ("scenes-unet", "scenes-video"))
    captions = pictures.captions(16, 3)
    drawn = pictures.renders(captions, 5)
    assert drawn.shape == (16, 3, 64, 64)
    assert pictures.judge().reward(drawn, captions).min() > 0.95
    captions = videos.captions(4, 3)
    drawn = videos.renders(captions, 5)
    assert drawn.shape == (4, FRAMES, 3, 64, 64)
    still = [parse_moving_caption(caption).scene.caption() for caption in captions]
    # Half way an object is where one in a picture could be.
    assert shipped_judge().reward(drawn[:, FRAMES // 2], still).mean() > 0.95
    with pytest.raises(FestinaError, match="not a caption of a moving scene"):
        videos.renders([STILL], 0)


def test_the_wheel_leaves_out_the_larger_pipelines_and_nothing_else():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    weights = (Path(loading.__file__).parent / "weights").relative_to(ROOT)
    larger = [name for name in SHIPPED if name != "scenes"]
    assert built["wheel"]["exclude"] == [f"/{weights.as_posix()}/{name}/pipeline" for name in larger]
    assert "sdist" not in built


@pytest.mark.parametrize("name", ["scenes-flux", "scenes-unet", "scenes-video"])
def test_weights_that_are_missing_are_said_with_the_command_that_makes_them(name, monkeypatch, tmp_path, festina):
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    with pytest.raises(FestinaError, match=f"'{name}' are not in this installation.*festina zoo train {name} --out"):
        load(name)
    status, _, err = festina("generate", name, MOVING)
    assert (status, err.count("\n")) == (1, 1)
    assert f"zoo train {name}" in err


def test_call_json_is_merged_into_the_call(installed):
    assert call_arguments(load("scenes-flux")) == {
        "max_sequence_length": 20,
        "height": 64,
        "width": 64,
        "negative_prompt": "",
    }
    assert call_arguments(load("scenes-video")) == {
        "clean_caption": False,
        "height": 64,
        "width": 64,
        "video_length": FRAMES,
    }
    assert not (loading.WEIGHTS / "scenes" / "pipeline" / "call.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the call arguments"),
        ("[1]", "no JSON object"),
        ('{"hight": 64}', r"\['hight'\], which the call of FluxPipeline does not take"),
    ],
)
def test_a_wrong_call_json_is_refused(installed, tmp_path, text, message):
    pipe = flux_pipeline()
    pipe.register_to_config(_name_or_path=str(tmp_path))
    assert "height" not in call_arguments(pipe)
    (tmp_path / "call.json").write_text(text)
    with pytest.raises(FestinaError, match=message):
        call_arguments(pipe)


def test_the_longest_tokenizer_decides_how_much_of_a_caption_is_read():
    pipe = flux_pipeline()
    # CLIP reads 77 tokens; what FLUX limits is the caption of its T5.
    pipe.tokenizer_2.model_max_length = 512
    assert "max_sequence_length" not in call_arguments(pipe)
    pipe.tokenizer_2.model_max_length = 100
    assert call_arguments(pipe)["max_sequence_length"] == 100


def workload(**call):
    return Workload(("a", "b"), (0, 1), 2, 3.0, 2, call)


def test_guidance_goes_where_the_pipeline_has_it(pixart):
    distilled, plain = flux_pipeline(guidance=True), flux_pipeline(guidance=False)
    guided = workload(negative_prompt="")
    assert call_of(plain, guided, ["a", "b"]) == {
        "prompt": ["a", "b"],
        "true_cfg_scale": 3.0,
        "negative_prompt": ["", ""],
    }
    for pipe, work in ((plain, workload()), (distilled, guided), (pixart, guided)):
        call = call_of(pipe, work, ["a"])
        assert call["guidance_scale"] == 3.0
        assert "true_cfg_scale" not in call
    both = call_of(plain, workload(negative_prompt=["x", "y"], true_cfg_scale=2.0), ["a", "b"])
    assert both["negative_prompt"] == ["x", "y"]
    assert (both["guidance_scale"], both["true_cfg_scale"]) == (3.0, 2.0)


def test_guidance_by_a_second_call_takes_place():
    pipe = flux_pipeline(guidance=False)
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    size = {"height": 16, "width": 16, "max_sequence_length": 20}
    drawn = {}
    for scale, wanted in ((3.0, 4), (1.0, 2)):
        calls = []
        work = Workload(
            (STILL, "a large green star on a pink background"), (0, 1), 2, scale, 2, {**size, "negative_prompt": ""}
        )
        drawn[scale] = generate(pipe, work.pictures(), work)
        assert len(calls) == wanted
    assert not torch.equal(drawn[3.0], drawn[1.0])


class Stub:
    """A pipeline that gives what it was made with."""

    def __init__(self, **found):
        self.found = found

    def __call__(self, prompt, generator, num_inference_steps, guidance_scale, output_type, video_length=4):
        return SimpleNamespace(**self.found)


@pytest.mark.parametrize(
    "found",
    [
        {"frames": torch.rand(2, 4, 3, 8, 8)},
        {"frames": list(torch.rand(2, 4, 3, 8, 8))},
        {"images": torch.rand(2, 3, 8, 8)},
    ],
)
def test_pictures_and_videos_are_taken_as_they_come(found):
    ((_, given),) = found.items()
    made = generate_batch(Stub(**found), [("a", 0), ("b", 1)], workload(), 2)
    assert torch.equal(made, torch.stack(list(given)))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"frames": torch.rand(2, 3, 8, 8)}, r"wanted \(count, frames, 3, height, width\)"),
        ({"frames": torch.rand(2, 3, 4, 8, 8)}, "shape"),
        ({"frames": torch.rand(1, 4, 3, 8, 8)}, "for 2 prompts"),
        ({"images": torch.rand(4, 3, 8, 8)}, "num_images_per_prompt"),
        ({"audios": torch.rand(2, 100)}, "neither images nor frames"),
    ],
)
def test_anything_else_is_refused(found, message):
    with pytest.raises(FestinaError, match=message):
        generate_batch(Stub(**found), [("a", 0), ("b", 1)], workload(), 2)


def test_who_draws_videos_is_known_from_the_call(pixart):
    assert draws_videos(Stub())
    assert not draws_videos(pixart)
    assert notes_on(pixart) == ()
    assert "side by side" in notes_on(Stub())[0]


def test_rewards_by_name(installed, tmp_path):
    assert isinstance(load_reward("judge", "cpu", "scenes-video").judge, VideoJudge)
    for model in ("scenes", "scenes-flux", str(tmp_path)):
        assert isinstance(load_reward("judge", "cpu", model).judge, Judge)
    # The judge beside a pipeline one trained, else the one that ships.
    shipping = load_reward("video-judge", "cpu", str(tmp_path / "pipeline"))
    torch.manual_seed(5)
    save_judge(VideoJudge(width=8, features=16), tmp_path / "judge")
    own = load_reward("video-judge", "cpu", str(tmp_path / "pipeline"))
    assert own.judge.config == {"width": 8, "features": 16}
    assert shipping.fingerprint == load_reward("video-judge", "cpu", "scenes-video").fingerprint != own.fingerprint
    with pytest.raises(FestinaError, match=r"no --reward; wanted 'judge'.*'video-judge'.*'clip:MODEL'"):
        load_reward(None, "cpu")


def test_fidelity_is_taken_against_renders_of_the_same_captions(installed):
    for name, length in (("scenes-flux", 96), ("scenes-video", 192)):
        captions = shipped(name).captions(200, 3)
        fidelity = fidelity_of(name, captions, "cpu")
        assert fidelity.reference.shape == (400, length)
    assert fidelity_of("somewhere/else", (STILL,), "cpu") is None
    assert fidelity_of("scenes", ("a fox in snow",), "cpu") is None


def test_generate_writes_videos_as_frames_and_as_animations(installed, festina, tmp_path):
    status, out, _ = festina("generate", "scenes-video", MOVING, "--steps", "2", "--out", tmp_path)
    assert status == 0
    assert "wrote 1 videos" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00-uncached-moving.png",
        "00-uncached.png",
        "prompts.txt",
    ]
    assert Image.open(tmp_path / "00-uncached.png").size == (FRAMES * 64, 64)
    assert Image.open(tmp_path / "00-uncached-moving.png").size == (64, 64)


@pytest.mark.parametrize("name", ["scenes-flux", "scenes-video"])
def test_the_score_of_any_that_ships(installed, name, capsys, tmp_path):
    sheet = tmp_path / "sheet.png"
    found = scenes_score.main([name, "--images", "4", "--steps", "1", "--sheet", str(sheet)])
    shown = capsys.readouterr().out
    assert shown.startswith("| videos |" if name == "scenes-video" else "| pictures |")
    assert len(found) == 6
    assert {score["pictures"] for score in found.values()} == {4}
    renders = found["renders, combinations seen in training"]
    # The motion is read by a part of the judge that has not learned anything here.
    assert renders["attributes"] == 1 if name == "scenes-flux" else 0.85 <= renders["attributes"] < 1
    attributes = tuple(VIDEO_HEADS if name == "scenes-video" else Judge.attributes)
    assert tuple(renders["shares"]) == attributes
    assert f"| {' | '.join(attributes)} |" in shown
    assert Image.open(sheet).size == ((2 * FRAMES * 64, 2 * 4 * 64) if name == "scenes-video" else (2 * 4 * 64, 2 * 64))
    with pytest.raises(FestinaError, match="does not ship"):
        scenes_score.main(["mountains"])


def test_the_table_takes_the_plans_of_the_model(installed, tmp_path):
    for model in ("scenes-flux", str(tmp_path)):
        with pytest.raises(FestinaError, match="no plans; give --plans"):
            table.main([model])


def test_the_table_takes_all_plans_that_ship():
    names = loading.shipped_plans("scenes")
    assert names == ("scenes/fast", "scenes/faster", "scenes/fastest")
    assert table.named_plans(names) == {name.removeprefix("scenes/"): loading.shipped_plan(name) for name in names}


def test_plans_that_ship_lie_with_their_pipeline():
    for folder in loading.WEIGHTS.iterdir():
        for path in (folder / "plans").glob("*.json"):
            assert re.fullmatch(r"[a-z]+", path.stem)
            assert json.loads(path.read_text())


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_was_trained_by_its_recipe(name):
    folder = loading.WEIGHTS / name
    if not (folder / "pipeline").is_dir():
        pytest.skip(f"the weights of {name} are not in this checkout")
    # One that was trained on from its own earlier weights made the recipe's steps in several runs.
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*settings.json"))]
    assert [run["start"] for run in runs] == ["nothing", name, name][: len(runs)]
    told = runs[0] | {"denoiser_steps": sum(run["denoiser_steps"] for run in runs), "compile": False}
    assert told == asdict(FAMILIES[name].settings)
    for log in folder.glob("*denoiser.log.jsonl"):
        settings = json.loads((folder / log.name.replace("denoiser.log.jsonl", "settings.json")).read_text())
        assert json.loads(log.read_text().splitlines()[-1])["step"] == settings["denoiser_steps"]
    path = folder / "pipeline" / "call.json"
    assert (json.loads(path.read_text()) if path.exists() else {}) == FAMILIES[name].call


def test_the_page_names_what_the_recipes_differ_in():
    text = (ROOT / "docs" / "scenes.md").read_text(encoding="utf-8")
    told = re.search(r"^\| setting \| (scenes-flux .*) \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    names = told[1].split(" | ")
    written = {row[0].strip("`"): row[1:] for row in (line.strip("| ").split(" | ") for line in told[2].splitlines())}
    usual = asdict(FAMILIES["scenes"].settings)
    others = {name: asdict(FAMILIES[name].settings) for name in names}
    assert set(others) == set(SHIPPED) - {"scenes"}
    differing = [key for key in usual if any(other[key] != usual[key] for other in others.values())]
    assert written == {key: [str(others[name][key]) for name in names] for key in differing}


def test_a_shipped_pipeline_is_only_a_name():
    assert Shipped("scenes") == shipped("scenes")
