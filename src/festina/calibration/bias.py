"""One number that is added to all factors of a plan that replays, found on whole pictures (LTC-Accel's bias search)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from festina.calibration.running import call_arguments
from festina.errors import FestinaError
from festina.executor import accelerate
from festina.metrics.distances import psnr
from festina.plan import Plan
from festina.strict import is_number

if TYPE_CHECKING:
    from festina.samplers.teleportation import GaussianStatistics

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Biased:
    """What a search for a bias found.

    Attributes:
        plan: the plan with its factors moved.
        bias: by how much.
        psnr: mean PSNR of its pictures to those of the untouched pipeline, in dB.
        psnr_before: that of the plan as it was.
    """

    plan: Plan
    bias: float
    psnr: float
    psnr_before: float


def search_bias(
    pipe: Any,
    plan: Plan,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    guidance: float | None = None,
    call: Mapping[str, Any] | None = None,
    widest: float = 0.1,
    probes: int = 10,
    models: Mapping[str, nn.Module] = MappingProxyType({}),
    statistics: GaussianStatistics | str | PathLike[str] | None = None,
) -> Biased:
    """Find the bias whose pictures are closest to those of the untouched pipeline.

    That it is added, the range and the golden-section search are our choice; of the paper (arXiv 2503.09675) only the
    objective, PSNR of whole pictures, and a search by bisection are known here.

    Args:
        pipe: a diffusers pipeline.
        plan: a plan that replays.
        prompts: what to draw, one picture each; each probe draws all of them.
        seeds, guidance, call: see `festina.calibration.calibrate`; pictures are arrays unless they say otherwise.
        widest: largest bias that is tried, up and down.
        probes: how many are tried beside 0, at least 2.
        models, statistics: what the plan calls and starts with beside the pipeline; see `festina.accelerate`.

    Raises:
        FestinaError: the plan replays nothing or does not fit the pipeline, models or statistics are missing or not
            used, or the pipeline cannot be called so.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    if not any(step.replays for step in plan.steps):
        raise FestinaError("the plan replays nothing, so that there is no factor to move.")
    if type(probes) is not int or probes < 2 or not is_number(widest) or not widest > 0:
        raise FestinaError(
            f"{probes!r:.40} probes up to {widest!r:.40}; wanted a whole number of at least 2, and a range above 0."
        )
    if not prompts or len(seeds) != len(prompts):
        raise FestinaError(
            f"{len(prompts)} prompts, {len(seeds)} seeds; wanted one seed for each prompt, and at least one prompt."
        )
    pictures = [(str(prompt), int(seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
    told = {"output_type": "np", **(call or {})}

    def drawn() -> list[Tensor]:
        arguments = (call_arguments(pipe, picture, len(plan.steps), guidance, told) for picture in pictures)
        return [torch.as_tensor(pipe(**each)[0]) for each in arguments]

    wanted = drawn()

    def score(bias: float) -> float:
        with accelerate(pipe, biased(plan, bias), models, statistics):
            found = drawn()
        each = [psnr(one, other) for one, other in zip(found, wanted, strict=True)]
        return float(torch.cat(each).mean())

    before = score(0.0)
    bias, best = highest(score, -widest, widest, probes)
    if best <= before:
        bias, best = 0.0, before
    moved = biased(plan, bias)
    return Biased(replace(moved, settings={**plan.settings, "bias": bias}), bias, best, before)


def biased(plan: Plan, bias: float) -> Plan:
    """A plan with the same number added to every factor of what it replays."""
    return plan.replaying(
        {place: step.replay + bias for place, step in enumerate(plan.steps) if place and step.replay is not None}
    )


def highest(score: Callable[[float], float], least: float, most: float, probes: int) -> tuple[float, float]:
    """Where a function with one peak is highest, by golden-section search, and how high; of the places that were tried.

    Args:
        score: the function.
        least, most: where to look.
        probes: how often it is asked, at least 2. Each further one leaves 0.618 of what is left.
    """
    places = [most - _GOLDEN * (most - least), least + _GOLDEN * (most - least)]
    heights = [score(place) for place in places]
    tried = list(zip(heights, places, strict=True))
    for _ in range(probes - 2):
        if heights[0] >= heights[1]:
            most = places[1]
            places = [most - _GOLDEN * (most - least), places[0]]
            heights = [score(places[0]), heights[0]]
            tried.append((heights[0], places[0]))
        else:
            least = places[0]
            places = [places[1], least + _GOLDEN * (most - least)]
            heights = [heights[1], score(places[1])]
            tried.append((heights[1], places[1]))
    height, place = max(tried)
    return place, height
