"""Measuring ways to run one model side by side: the same prompts, the same noise, interleaved timing."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from festina.executor import Run, accelerate
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.reward import Reward, scores_of
from festina.plan import Plan
from festina.report.points import Kind, Point
from festina.report.rounds import over_rounds, timed_round
from festina.search.engine import Progress, silent
from festina.search.front import confidence_interval
from festina.search.generation import generate
from festina.search.workload import Workload

FRAMES_PER_SECOND = 8
"""How fast an animation plays."""


@dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: shown on the page.
        kind: what it is, see `Point`.
        plan: the plan it runs; None for the untouched sampler.
        steps: sampling steps.
    """

    name: str
    kind: Kind
    plan: Plan | None
    steps: int

    def running(self, pipe: Any) -> AbstractContextManager[Run | None]:
        """A context in which the pipeline runs this way.

        Raises:
            FestinaError: the plan does not fit the pipeline.
        """
        return nullcontext() if self.plan is None else accelerate(pipe, self.plan)


@dataclass(frozen=True)
class Fidelity:
    """What a Frechet distance is taken with: features of pictures or videos, and the features of real ones."""

    features: Callable[[Tensor], Tensor]
    reference: Tensor


def compare(
    pipe: Any,
    variants: Sequence[Variant],
    workload: Workload,
    reward: Reward,
    price: Callable[[Plan], int],
    hold: Callable[[Plan], int],
    uncached: Plan,
    fidelity: Fidelity | None = None,
    shown: int = 8,
    rounds: int = 5,
    progress: Progress = silent,
) -> tuple[Point, ...]:
    """Measure variants on one workload, of a pipeline that draws pictures or videos.

    Args:
        pipe: the pipeline, untouched.
        variants: what to measure; exactly one of kind "uncached".
        workload: prompts and noise, shared by all; its `steps` is replaced by each variant's.
        reward: judges the pictures.
        price: MACs of a plan per picture.
        hold: bytes a plan holds per picture.
        uncached: the plan that computes everything, for the price of fewer steps.
        fidelity: for the Frechet distance; left out if None.
        shown: how many pictures of each variant are kept.
        rounds: timed rounds, see `festina.report.rounds`.
        progress: told after every variant and round.

    Returns:
        one point per variant, in their order; seconds and ratio as `festina.report.rounds.over_rounds` gives them.
    """
    total = len(variants) + rounds
    untouched = next(variant for variant in variants if variant.kind == "uncached")
    reference = _generate(pipe, untouched, workload)
    looked_at = []
    for number, variant in enumerate(variants, start=1):
        # Pictures of one variant at a time: at full resolution those of all would not fit into memory.
        images = reference if variant is untouched else _generate(pipe, variant, workload)
        looked_at.append(_look_at(images, reference, workload, reward, fidelity, shown))
        progress(number, total, f"pictures: {variant.name}")
    timed = []
    for number in range(1, rounds + 1):
        timed.append(timed_round(pipe, variants, workload, untouched))
        progress(len(variants) + number, total, "timing")
    batch, ratios = over_rounds(timed, untouched.name)
    points = []
    for variant, looks in zip(variants, looked_at, strict=True):
        plan = variant.plan
        low, high = confidence_interval(looks.scores, workload.images_per_prompt)
        priced = plan or Plan.computing_all(uncached.denoiser, uncached.sites, variant.steps)
        points.append(
            Point(
                name=variant.name,
                kind=variant.kind,
                steps=variant.steps,
                macs=price(priced),
                seconds=batch[variant.name] / min(workload.batch, len(workload.pictures())),
                seconds_ratio=ratios[variant.name],
                reward=math.fsum(looks.scores) / len(looks.scores),
                reward_low=low,
                reward_high=high,
                frechet=looks.frechet,
                psnr=looks.psnr,
                held_bytes=0 if plan is None else hold(plan),
                plan=plan,
                pictures=looks.pictures,
            )
        )
    return tuple(points)


@dataclass(frozen=True)
class _Looks:
    """What the pictures of one variant show."""

    scores: tuple[float, ...]
    frechet: float | None
    psnr: float
    pictures: tuple[bytes, ...]


def _look_at(
    images: Tensor, reference: Tensor, workload: Workload, reward: Reward, fidelity: Fidelity | None, shown: int
) -> _Looks:
    frechet = None if fidelity is None else frechet_distance(fidelity.features(images), fidelity.reference)
    pictures = tuple(png(image) for image in images[:shown])
    scores = scores_of(reward, images, [prompt for prompt, _ in workload.pictures()], workload.batch)
    return _Looks(scores, frechet, float(psnr(images, reference).mean()), pictures)


def strip(image: Tensor) -> Tensor:
    """A picture as it is, a video (frames, 3, height, width) as one picture of its frames side by side."""
    return image if image.ndim == 3 else torch.cat(list(image), dim=2)


def png(image: Tensor) -> bytes:
    """A picture (3, height, width) in [0, 1] as a PNG file; of a video (frames, ...), its frames side by side."""
    stream = io.BytesIO()
    _drawn(strip(image)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def animation(video: Tensor) -> bytes:
    """A video (frames, 3, height, width) in [0, 1] as an animated PNG file, played over and over."""
    first, *rest = (_drawn(frame) for frame in video)
    stream = io.BytesIO()
    first.save(stream, "PNG", save_all=True, append_images=rest, duration=1000 // FRAMES_PER_SECOND, loop=0)
    return stream.getvalue()


def _drawn(image: Tensor) -> Image.Image:
    return Image.fromarray(image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _generate(pipe: Any, variant: Variant, workload: Workload) -> Tensor:
    with variant.running(pipe):
        return generate(pipe, workload.pictures(), replace(workload, steps=variant.steps))
