from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny import pixart_pipeline

from festina.errors import FestinaError
from festina.methods import fora
from festina.plan import Plan
from festina.search.archive import Archive
from festina.search.engine import search
from festina.search.evaluator import Evaluator
from festina.search.genome import Genome
from festina.search.settings import SearchSettings
from festina.search.workload import Workload, pipeline_fingerprint

PROMPTS = ("a small red circle on a white background", "a large blue square on a black background")
CALL = {
    "height": 16,
    "width": 16,
    "use_resolution_binning": False,
    "clean_caption": False,
    "max_sequence_length": 20,
}
WORK = Workload(PROMPTS, seeds=(1, 2, 3, 4), steps=4, guidance_scale=4.5, batch=3, call=CALL)


class Texture:
    """Mean absolute difference of neighbouring pixels; remembers what it was asked."""

    name = "texture"
    fingerprint = "1"

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.asked.append(tuple(prompts))
        assert images.shape == (len(prompts), 3, 16, 16)
        assert images.min() >= 0
        assert images.max() <= 1
        return images.diff(dim=-1).abs().mean(dim=(1, 2, 3))


def _price(plan: Plan) -> int:
    return int(plan.mask().sum())


@pytest.fixture(scope="module")
def pipe():
    return pixart_pipeline(2)


@pytest.fixture
def archive(tmp_path: Path):
    with Archive(tmp_path / "archive.sqlite") as opened:
        yield opened


def _by_hand(pipe, steps: int) -> list[float]:
    """The workload's scores from plain calls of the untouched pipeline."""
    pictures = [(PROMPTS[0], 1), (PROMPTS[0], 2), (PROMPTS[1], 3), (PROMPTS[1], 4)]
    scores: list[float] = []
    for part in (pictures[:3], pictures[3:]):
        images = pipe(
            [prompt for prompt, _ in part],
            generator=[torch.Generator().manual_seed(seed) for _, seed in part],
            num_inference_steps=steps,
            guidance_scale=4.5,
            output_type="pt",
            **CALL,
        ).images
        scores += Texture()(images, [prompt for prompt, _ in part]).tolist()
    return scores


def test_scores_are_those_of_plain_calls_with_the_workloads_noise(pipe, archive: Archive) -> None:
    reward = Texture()
    evaluator = Evaluator(pipe, WORK, reward, archive, _price)
    uncached = evaluator.evaluate(Plan.computing_all("PixArtTransformer2DModel", fora(pipe, 4, 2).sites, 4))
    assert list(uncached.scores) == _by_hand(pipe, 4)
    assert reward.asked == [(PROMPTS[0], PROMPTS[0], PROMPTS[1]), (PROMPTS[1],)]
    assert (uncached.macs, uncached.images_per_prompt, uncached.peak_bytes) == (24, 2, 0)
    assert uncached.seconds > 0
    cached = evaluator.evaluate(fora(pipe, 4, 2))
    assert cached.scores != uncached.scores
    # Six sites hold (6 pictures with guidance, 16 tokens, 16 channels) of float32.
    assert cached.peak_bytes == 6 * 6 * 16 * 16 * 4
    assert cached.macs == 12


def test_untouched_sampler_at_other_step_counts_is_archived_apart(pipe, archive: Archive) -> None:
    reward = Texture()
    evaluator = Evaluator(pipe, WORK, reward, archive, _price)
    four, two = evaluator.untouched(4), evaluator.untouched(2)
    assert list(four.scores) == _by_hand(pipe, 4)
    assert list(two.scores) == _by_hand(pipe, 2)
    assert (four.macs, two.macs, two.steps, two.plan) == (24, 12, 2, None)
    evaluator.evaluate(fora(pipe, 4, 1))
    assert len(archive) == 3
    asked = len(reward.asked)
    assert (evaluator.untouched(4), evaluator.untouched(2)) == (four, two)
    assert len(reward.asked) == asked


def test_an_evaluation_is_made_once_whatever_the_plan_is_called(pipe, archive: Archive) -> None:
    reward = Texture()
    first = Evaluator(pipe, WORK, reward, archive, _price).evaluate(fora(pipe, 4, 3))
    renamed = replace(fora(pipe, 4, 3), method="other")
    again = Evaluator(pipe, WORK, reward, archive, _price).evaluate(renamed)
    assert len(reward.asked) == 2
    assert again.scores == first.scores
    assert again.plan == renamed


def test_the_pipeline_is_untouched_afterwards_and_after_a_failure(pipe, archive: Archive) -> None:
    class Broken(Texture):
        def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return torch.full((len(prompts),), float("nan"))

    before = dict(vars(pipe.transformer)), dict(vars(pipe.scheduler))
    with pytest.raises(FestinaError, match="one finite number each"):
        Evaluator(pipe, WORK, Broken(), archive, _price).evaluate(fora(pipe, 4, 2))
    assert len(archive) == 0
    assert set(vars(pipe.transformer)) == set(before[0])
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))


def test_plans_of_another_length_are_refused(pipe, archive: Archive) -> None:
    with pytest.raises(FestinaError, match=r"resample\(4\)"):
        Evaluator(pipe, WORK, Texture(), archive, _price).evaluate(fora(pipe, 5, 2))


def test_the_key_depends_on_everything_that_decides_the_scores() -> None:
    reward, other = Texture(), Texture()
    other.fingerprint = "2"
    works = [
        WORK,
        replace(WORK, prompts=PROMPTS[::-1]),
        replace(WORK, seeds=(1, 2, 3, 5)),
        replace(WORK, steps=5),
        replace(WORK, guidance_scale=1.0),
        replace(WORK, batch=4),
        replace(WORK, call={**CALL, "height": 24}),
    ]
    keys = [work.key("pipeline", reward).key for work in works]
    keys += [WORK.key("another", reward).key, WORK.key("pipeline", other).key]
    assert len(set(keys)) == len(keys)
    assert replace(WORK, call=dict(reversed(CALL.items()))).key("pipeline", reward).key == keys[0]


def test_fingerprint_sees_weights_and_scheduler() -> None:
    pipe = pixart_pipeline(2)
    same = pipeline_fingerprint(pixart_pipeline(2))
    assert pipeline_fingerprint(pipe) == same
    pipe.scheduler = DPMSolverMultistepScheduler(solver_order=1)
    assert pipeline_fingerprint(pipe) != same
    pipe = pixart_pipeline(2)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias[0] += 1e-6
    assert pipeline_fingerprint(pipe) != same


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": ()}, "one prompt or more"),
        ({"prompts": ("a", "a")}, "only once"),
        ({"seeds": (1, 2, 3)}, "3 seeds for 2 prompts"),
        ({"steps": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"call": {"prompt": "x"}}, "prompt"),
        ({"call": {"latents": torch.zeros(1)}}, "JSON"),
    ],
)
def test_workloads_that_cannot_be_run_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(FestinaError, match=words):
        replace(WORK, **change)


def test_search_end_to_end_on_a_pipeline(pipe, archive: Archive) -> None:
    reward = Texture()
    evaluator = Evaluator(pipe, replace(WORK, seeds=(1, 2), batch=2), reward, archive, _price)
    held_out = evaluator.on(replace(WORK, prompts=("a large red cross", "a small ring"), seeds=(8, 9), batch=2))
    genome = Genome.of(pipe.transformer, 4)
    settings = SearchSettings(population=6, generations=3)
    front = search(evaluator, held_out, genome, settings)
    assert front.points
    macs = [point.macs for point in front.points]
    rewards = [point.searched.reward for point in front.points]
    assert macs == sorted(macs)
    assert rewards == sorted(rewards)
    assert macs[-1] < front.uncached.macs == 24
    best = front.best(max_macs=macs[0])
    low, high = best.interval
    assert low <= best.reward <= high
    assert best.held_out.scores != best.searched.scores
    assert "2 prompts x 1 pictures" in best.plan.measured[0].conditions
    assert Plan.from_json(best.plan.to_json()) == best.plan
    asked, held = len(reward.asked), len(archive)
    assert held == asked
    assert search(evaluator, held_out, genome, settings) == front
    assert len(reward.asked) == asked
