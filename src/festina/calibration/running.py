"""Calibrating: drawing pictures with the untouched pipeline while everything is measured."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from festina.calibration.observing import RunObserver
from festina.calibration.places import Places, listening, places_of
from festina.calibration.record import BranchRecord, Calibration
from festina.errors import FestinaError
from festina.executor import Run, accelerate
from festina.executor.attach import denoisers_of
from festina.executor.compiled import is_compiled
from festina.plan import Plan
from festina.sites import component_sites, sampler_of

RESERVED = ("prompt", "class_labels", "generator", "guidance_scale")
"""Arguments of the pipeline's call that the other arguments of `calibrate` decide."""


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    steps: int,
    seeds: Sequence[int] | None = None,
    guidance: float | None = None,
    call: Mapping[str, Any] | None = None,
    measures: Collection[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Measure what calibrated methods need, in one run of the untouched pipeline per prompt.

    The pipeline computes everything and its pictures are not changed by a bit; hooks look on. Every prompt is a run of
    its own, so that no number depends on what is drawn together. With `out`, the file is written after each picture,
    and the same call goes on with those that are missing.

    Args:
        pipe: a diffusers pipeline that takes prompts, or class labels.
        prompts: what to draw, one picture each; numbers as texts where the pipeline takes class labels.
        steps: rows of the plans to be made: the entries of the scheduler's timesteps. Where a scheduler makes another
            number of them than `num_inference_steps`, put that one into `call`.
        seeds: seed of the noise of each picture; 0, 1, ... if not given.
        guidance: the call's `guidance_scale`; the pipeline's own if not given. Guidance by a second call
            (`true_cfg_scale`) is told in `call`.
        call: further arguments of the pipeline's call, JSON values by name; pictures end as latents unless they say
            otherwise.
        measures: what to measure, of `festina.calibration.record.MEASURES`; all that the denoiser has if not given.
            Lag errors keep the last 3 outputs of every component in the device's memory, distances the value that would
            be served of every step.
        out: a file to write, and to go on with if it is there.
        progress: told how many pictures are done, of how many, and of which file.

    Raises:
        FestinaError: the pipeline cannot be called so, its runs have another number of steps or begin midway, its
            denoiser is compiled or accelerated, or the file holds a calibration of something else.
    """
    if isinstance(pipe, nn.Module):
        raise FestinaError(f"a {type(pipe).__name__} alone draws nothing; give the pipeline it belongs to.")
    seeds = range(len(prompts)) if seeds is None else seeds
    if not prompts or len(seeds) != len(prompts):
        raise FestinaError(f"{len(prompts)} prompts and {len(seeds)} seeds; wanted at least one prompt, one seed each.")
    denoisers = denoisers_of(pipe)
    denoiser = denoisers[0][1]
    if any(is_compiled(module) for module in denoiser.modules()):
        raise FestinaError(f"this {type(denoiser).__name__} is compiled, and hooks see nothing; load it anew for this.")
    places = places_of(denoiser, measures)
    names = tuple(site.name for site in places.components)
    settings = Calibration(
        type(denoiser).__name__, names, places.feature, sampler_of(pipe), steps, guidance, call or {}, places.measures
    )
    pictures = [(str(prompt), int(seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
    arguments = [call_arguments(pipe, picture, steps, guidance, settings.call) for picture in pictures]
    done = settings if out is None else _so_far(Path(out), settings, pictures)
    for number in range(len(done.pictures), len(pictures)):
        done = done.with_picture(pictures[number], _measured(pipe, arguments[number], places, steps))
        if out is not None:
            done.save(out)
        if progress is not None:
            progress(number + 1, len(pictures), f"calibrating, {len(pictures)} pictures of {steps} steps")
    return done


def _measured(pipe: Any, arguments: Mapping[str, Any], places: Places, steps: int) -> dict[str, BranchRecord]:
    """The numbers of one picture."""
    denoisers = [denoiser for _, denoiser in denoisers_of(pipe)]
    names = tuple(site.name for site in places.components)
    uncached = Plan.computing_all(type(denoisers[0]).__name__, names, steps)
    with accelerate(pipe, uncached) as run, ExitStack() as hooks:
        observer = RunObserver(run.clock, places)
        for denoiser in denoisers:
            # Of two experts (Wan 2.2) both; a pipeline's other model of this class is no part of the plan.
            if tuple(site.name for site in component_sites(denoiser)) == names:
                hooks.enter_context(listening(denoiser, places, observer))
        pipe(**arguments)
        want_whole_run(run, steps)
        return observer.measured(steps)


def want_whole_run(run: Run, steps: int) -> None:
    """Raise a `FestinaError` unless the last run went through all of so many steps."""
    clock = run.clock
    if clock.first != 0 or clock.ended != steps:
        raise FestinaError(
            f"the pipeline made {clock.ended} steps, beginning at step {clock.first}; a calibration of {steps} steps "
            f"wants runs from noise to picture. Calibrate with calls that do not begin midway."
        )


def call_arguments(
    pipe: Any, picture: tuple[str, int], steps: int, guidance: float | None, call: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of the pipeline's call for one picture.

    Args:
        pipe: the pipeline.
        picture: what to draw, and the seed of its noise.
        steps, guidance, call: see `calibrate`.

    Raises:
        FestinaError: it does not take them.
    """
    (prompt, seed), name = picture, type(pipe).__name__
    if taken := sorted(set(call) & set(RESERVED)):
        raise FestinaError(f"prompts, seeds and guidance decide {taken}; leave it out of the call's further arguments.")
    accepted = inspect.signature(type(pipe).__call__).parameters
    arguments: dict[str, Any] = {"num_inference_steps": steps}
    if "prompt" in accepted or "class_labels" not in accepted:
        arguments["prompt"] = prompt
    elif prompt.isdecimal():
        arguments["class_labels"] = [int(prompt)]
    else:
        raise FestinaError(f"{name} takes class labels; {prompt!r:.40} is no number.")
    if guidance is not None:
        arguments["guidance_scale"] = guidance
    if "output_type" in accepted:
        arguments["output_type"] = "latent"
    arguments |= {**call, "generator": torch.Generator().manual_seed(seed)}
    if unknown := sorted(set(arguments) - set(accepted)):
        raise FestinaError(f"{name} cannot be calibrated so: its call takes no {', '.join(unknown)}.")
    return arguments


def _so_far(path: Path, settings: Calibration, pictures: Sequence[tuple[str, int]]) -> Calibration:
    """What a file holds of this calibration; nothing if there is none.

    Raises:
        FestinaError: it holds another one.
    """
    if not path.exists():
        return settings
    found = Calibration.load(path)
    here, there = vars(settings), vars(replace(found, pictures=(), branches={}))
    differing = [name for name in here if here[name] != there[name]]
    if tuple(pictures[: len(found.pictures)]) != found.pictures:
        differing.append("pictures")
    if differing:
        told = differing[0]
        wanted, holds = here[told], there[told]
        shown = f" ({holds!r:.60}, not {wanted!r:.60})" if told != "pictures" else " (other prompts or seeds, or more)"
        raise FestinaError(
            f"{path} holds a calibration that differs in {', '.join(differing)}{shown}; give another file."
        )
    return found
