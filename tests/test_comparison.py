"""Comparing ways to run one model: same noise for all, interleaved timing, figures that follow from the pictures."""

import io
import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import PROMPT, pixart_pipeline

from festina import FestinaError, Plan
from festina.methods import fora
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.reward import scores_of
from festina.report import FrontPage, Point, rounds
from festina.report.choice import best_point
from festina.report.comparison import Fidelity, Variant, animation, compare, png, strip
from festina.report.page import page_html
from festina.search import Workload
from festina.search.generation import generate
from festina.search.pricing import holding, pricing, probe
from festina.sites import component_sites

CALL = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20, "height": 16, "width": 16}
PROMPTS = (PROMPT, "a large green star on a pink background", "a small red ring on a black background")


class Brightness:
    """A reward that is cheap and known: the picture's mean."""

    name, fingerprint = "brightness", "1"

    def __call__(self, images, prompts):
        assert len(images) == len(prompts)
        return images.flatten(1).mean(1)


@pytest.fixture(scope="module")
def pipe():
    return pixart_pipeline()


@pytest.fixture(scope="module")
def workload():
    return Workload(PROMPTS, (0, 1, 2), 4, 4.5, 2, CALL)


@pytest.fixture(scope="module")
def uncached(pipe):
    return Plan.computing_all("PixArtTransformer2DModel", [s.name for s in component_sites(pipe.transformer)], 4)


@pytest.fixture(scope="module")
def points(pipe, workload, uncached):
    variants = [
        Variant("uncached", "uncached", None, 4),
        Variant("2 steps", "fewer-steps", None, 2),
        Variant("same", "front", uncached, 4),
        Variant("FORA 2", "fora", fora(pipe, 4, 2), 4),
    ]
    features = lambda images: images.flatten(1)[:, :5]  # noqa: E731
    fidelity = Fidelity(features, torch.rand(20, 5, generator=torch.Generator().manual_seed(0)))
    told = []
    found = compare(
        pipe,
        variants,
        workload,
        Brightness(),
        pricing(pipe, workload),
        holding(pipe, workload),
        uncached,
        fidelity,
        shown=2,
        rounds=3,
        progress=lambda *words: told.append(words),
    )
    assert [done for done, _, _ in told] == [1, 2, 3, 4, 5, 6, 7]
    assert {total for _, total, _ in told} == {7}
    return {point.name: point for point in found}


def test_a_batch_has_one_shape_per_step(pipe, workload):
    for pictures, probed in zip((2, 1), probe(pipe, workload), strict=True):
        assert (probed.pictures, probed.calls, probed.batches) == (pictures, 1, 1)
        # Two rows of guidance, 16 image tokens, 16 wide.
        assert probed.traced.returned["transformer_blocks.0"][0][0].numbers == pictures * 2 * 16 * 16


def test_a_plan_that_computes_everything_equals_the_untouched_pipeline(points):
    assert points["same"].psnr == points["uncached"].psnr == math.inf
    assert points["same"].reward == points["uncached"].reward
    assert points["same"].macs == points["uncached"].macs
    assert points["same"].held_bytes == 0
    assert points["same"].frechet == points["uncached"].frechet


def test_figures_follow_from_the_pictures(pipe, workload, points):
    plain = generate(pipe, workload.pictures(), workload)
    fewer = generate(pipe, workload.pictures(), Workload(PROMPTS, (0, 1, 2), 2, 4.5, 2, CALL))
    point = points["2 steps"]
    assert point.reward == pytest.approx(fewer.flatten(1).mean(1).mean().item(), rel=1e-6)
    assert point.psnr == pytest.approx(psnr(fewer, plain).mean().item(), rel=1e-6)
    reference = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    assert point.frechet == pytest.approx(frechet_distance(fewer.flatten(1)[:, :5], reference))
    assert points["uncached"].macs == 2 * point.macs
    assert points["FORA 2"].macs < points["uncached"].macs
    assert points["FORA 2"].held_bytes > 0
    assert points["FORA 2"].psnr < math.inf


def test_pictures_are_png_files_of_the_first_prompts(pipe, workload, points):
    plain = generate(pipe, workload.pictures(), workload)
    assert len(points["uncached"].pictures) == 2
    shown = np.asarray(Image.open(io.BytesIO(points["uncached"].pictures[1])))
    assert np.array_equal(shown, (plain[1] * 255).round().byte().permute(1, 2, 0).numpy())
    assert png(plain[1]) == points["uncached"].pictures[1]


class Way:
    """A way to run a pipeline whose putting on and taking off take long, by a clock that is set by hand."""

    def __init__(self, name, steps, clock):
        self.name, self.steps, self.clock = name, steps, clock

    @contextmanager
    def running(self, pipe):
        self.clock[0] += 100
        yield
        self.clock[0] += 100


@pytest.fixture
def clocked(monkeypatch):
    """The clock, how fast the machine is at each draw, and what was drawn: a draw takes its steps' seconds by that."""
    clock, slowness, drawn = [0.0], [], []

    def draw(pipe, pictures, own):
        clock[0] += own.steps * (slowness[len(drawn)] if slowness else 1)
        drawn.append((own.steps, pictures))

    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(rounds, "generate", draw)
    return clock, slowness, drawn


def test_a_round_takes_turns_and_counts_the_drawing_alone(workload, clocked):
    clock, _, drawn = clocked
    ways = [Way("b", 3, clock), Way("a", 4, clock)]
    assert rounds.timed_round(None, ways, workload, ways[1]) == {"a": 4.0, "b": 3.0}
    # One batch each, the yardstick around the others.
    assert drawn == [(steps, workload.pictures()[:2]) for steps in (4, 3, 4)]


def test_a_machine_that_slows_down_during_a_round_moves_no_way_against_another(workload, clocked):
    clock, slowness, drawn = clocked
    ways = [Way("a", 8, clock), *(Way(f"b{number}", 2 + number % 3, clock) for number in range(20))]
    # Three spans of at most eight, with the yardstick around each, the machine slower in each by as much.
    slowness += [1, *[1.5] * 8, 2, *[2.5] * 8, 3, *[3.5] * 4, 4]
    found = rounds.timed_round(None, ways, workload, ways[0])
    assert [steps for steps, _ in drawn] == [8, *(2, 3, 4) * 2, 2, 3, 8, 4, *(2, 3, 4) * 2, 2, 8, 3, 4, 2, 3, 8]
    assert list(found) == [way.name for way in ways]
    # In the middle of the yardstick's runs the machine was 2.5 times as slow as at first.
    assert found == {way.name: pytest.approx(2.5 * way.steps) for way in ways}


def test_a_slow_round_moves_no_way_against_another():
    timed = [{"a": 4.0, "b": 2.0}, {"a": 40.0, "b": 20.0}, {"a": 5.0, "b": 1.0}]
    # The medians of "b" by itself are 2 seconds.
    assert rounds.over_rounds(timed, "a") == ({"a": 5.0, "b": 2.5}, {"a": 1.0, "b": 2.0})


def test_scores_are_made_in_batches_and_have_to_be_numbers():
    batches = []

    class Reward(Brightness):
        def __call__(self, images, prompts):
            batches.append(list(prompts))
            return super().__call__(images, prompts)

    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2)
    assert scores_of(Reward(), images, PROMPTS, 2) == (0.0, 1.0, 2.0)
    assert batches == [list(PROMPTS[:2]), list(PROMPTS[2:])]
    with pytest.raises(FestinaError, match=r"the reward .brightness. gave .*nan.* for 2 pictures; wanted one finite"):
        scores_of(Reward(), images / 0, PROMPTS, 2)


class Videos:
    """A pipeline whose videos get darker with every step; the seed decides where they are bright."""

    def __call__(self, prompt, generator, num_inference_steps, guidance_scale, output_type, video_length=4):
        noise = [torch.rand(video_length, 3, 8, 8, generator=one) for one in generator]
        return SimpleNamespace(frames=torch.stack(noise) / num_inference_steps)


@pytest.fixture(scope="module")
def video_points(uncached):
    features = lambda videos: videos[:, 0].flatten(1)[:, :5]  # noqa: E731
    return compare(
        Videos(),
        [Variant("uncached", "uncached", None, 4), Variant("2 steps", "fewer-steps", None, 2)],
        Workload(PROMPTS, (0, 1, 2), 4, 4.5, 2),
        Brightness(),
        lambda plan: len(plan.steps),
        lambda plan: 0,
        uncached,
        Fidelity(features, torch.rand(20, 5, generator=torch.Generator().manual_seed(0))),
        shown=2,
        rounds=1,
    )


def test_videos_are_measured_over_all_frames(video_points):
    four, two = video_points
    noise = torch.stack([torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    assert four.reward == pytest.approx(noise.mean().item() / 4, rel=1e-5)
    assert two.reward == pytest.approx(noise.mean().item() / 2, rel=1e-5)
    error = (noise / 4).double().square().flatten(1).mean(1)
    assert two.psnr == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-6)
    reference = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    assert two.frechet == pytest.approx(frechet_distance((noise / 2)[:, 0].flatten(1)[:, :5], reference))


def test_the_picture_of_a_video_is_its_frames_side_by_side(video_points):
    noise = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 4
    shown = np.asarray(Image.open(io.BytesIO(video_points[0].pictures[0])))
    assert shown.shape == (8, 32, 3)
    for number, frame in enumerate(noise):
        wanted = (frame * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(shown[:, 8 * number : 8 * number + 8], wanted)
    assert torch.equal(strip(noise[0]), noise[0])


def test_an_animation_holds_every_frame_without_loss():
    video = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with Image.open(io.BytesIO(animation(video))) as moving:
        assert (moving.format, moving.n_frames, moving.info["loop"]) == ("PNG", 4, 0)
        for number, frame in enumerate(video):
            moving.seek(number)
            wanted = (frame * 255).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(np.asarray(moving.convert("RGB")), wanted)
            assert moving.info["duration"] == 125


def test_the_page_gives_videos_the_whole_width(points, video_points):
    for found, wide in ((tuple(points.values()), "false"), (video_points, "true")):
        page = FrontPage("t", "m", PROMPTS[:2], found, "h", "s")
        assert f'"wide": {wide}' in page_html(page)


def page_of(plan, *figures):
    first = Point("uncached", "uncached", 4, 1000, 1.0, 1.0, 0.9, 0.8, 1.0, None, None, 0, None)
    rest = [
        Point(f"found {n}", "front", 4, macs, 1 / ratio, ratio, reward, 0.0, 1.0, None, 30.0, held, plan)
        for n, (macs, ratio, reward, held) in enumerate(figures)
    ]
    return FrontPage("t", "m", (), (first, *rest), "h", "s")


def test_the_best_point_is_the_best_within_all_limits(uncached):
    page = page_of(uncached, (400, 2.1, 0.80, 10), (450, 1.9, 0.85, 20), (250, 3.0, 0.60, 30), (500, 1.8, 0.85, 5))
    assert best_point(page).name == "found 1"
    assert best_point(page, speedup=2).name == "found 0"
    assert best_point(page, fewer_macs=4).name == "found 2"
    assert best_point(page, max_bytes=9).name == "found 3"
    assert best_point(page, min_reward=0.7, speedup=2).name == "found 0"
    with pytest.raises(FestinaError, match=r"reach 3\.00 times faster, 4\.00 times fewer MACs, reward 0\.850"):
        best_point(page, speedup=5)
    with pytest.raises(FestinaError, match="no plans of a front"):
        best_point(page_of(uncached))
