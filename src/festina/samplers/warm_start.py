"""Warm starts: a run that begins at a middle noise level, from a picture that something cheaper made.

The picture (of a smaller or distilled model, of another network, or found) gets the noise of a level as in training,
and the model makes the rest of the steps. Published as drafting and polishing (AAMDM, 2401.06146), for virtual try-on
(CAT-DM, 2311.18405) and for super-resolution (ConsisSR, 2410.13807).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from festina.errors import FestinaError
from festina.samplers.frames import Frame
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.table import SolverStep, SolverTable, level_within

__all__ = ["encoded", "remaining", "started_at", "warm_start"]

_PACKED = ["latents", "batch_size", "num_channels_latents", "height", "width"]
"""Arguments of FLUX' packing of latents of pictures, and of those pipelines that pack as it does."""


def warm_start(
    model: Any,
    estimate: Tensor,
    level: float,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Latents at a noise level, made of an estimate of the clean ones: alpha * estimate + sigma * noise.

    A table begins there that has `start="given"` and the same first level (`started_at`, `remaining`).

    Args:
        model: a diffusers pipeline, or the `Frame` of its model.
        estimate: (batch, ...), clean latents as the pipeline ends with them (`output_type="latent"`), packed where it
            packs them; or pictures through `encoded`.
        level: as the scheduler counts it: sigma / alpha, flow models' sigma after any shift. Low enough to keep what is
            good in the estimate, high enough to cover what is not.
        generator: of the noise, one for all or one per sample.
        noise: in place of a generator, unit noise of the estimate's shape.

    Returns:
        the latents, in the estimate's dtype; computed in float32, in float64 for float64.

    Raises:
        FestinaError: a level or a scheduler that is not known, not exactly one of generator and noise, or noise of
            another shape.
    """
    frame = model if isinstance(model, Frame) else PlanScheduler.from_scheduler(model.scheduler).frame
    place = level_within(frame, level, "a warm start is to begin at")
    if (noise is None) == (generator is None):
        raise FestinaError("a warm start takes its noise from a generator, or is given it. Give one of both.")
    if noise is None:
        generators = generator if isinstance(generator, torch.Generator) else list(generator or ())
        noise = randn_tensor(estimate.shape, generators, estimate.device, estimate.dtype)
    if noise.shape != estimate.shape:
        raise FestinaError(
            f"the noise has the shape {tuple(noise.shape)}, the estimate {tuple(estimate.shape)}. Give noise of the "
            "estimate's shape."
        )
    exact = torch.float64 if estimate.dtype == torch.float64 else torch.float32
    return (place.alpha * estimate.to(exact) + place.sigma * noise.to(estimate.device, exact)).to(estimate.dtype)


def started_at(table: SolverTable, level: float) -> SolverTable:
    """The part of a table from a level on, for latents that lie there.

    The steps keep their levels down to the clean end: this is not the first steps of the whole table, nor a new grid.
    Where the level lies within a step, that step begins at it. Orders are lowered for outputs that are not there.

    Args:
        table: of a whole run, levels after any shift.
        level: to begin at, as the scheduler counts it.

    Raises:
        FestinaError: the table has no step from this level on; it is still to be shifted; it weighs the sample that the
            whole run starts from, or has weights of its own for the step that would be cut; or its first steps from
            there are extrapolations.
    """
    _want_levels(table)
    before = [place for place, step in enumerate(table.steps) if step.call == "network" and step.noise >= level]
    if not before or level <= table.final_noise:
        raise FestinaError(
            f"the table goes from the noise level {table.steps[0].noise:g} to {table.final_noise:g}, and {level:g} is "
            "none from which a step is left. Begin between them."
        )
    begun = table.steps[before[-1]]
    if begun.noise == level:
        return _given(table, table.steps[before[-1] :])
    if begun.linear is not None:
        raise FestinaError(
            f"the step from {begun.noise:g} on is given by its weights, which hold from there only. Begin at the level "
            "of a step."
        )
    later = [step for step in table.steps[before[-1] + 1 :] if step.noise < level]
    return _given(table, [replace(begun, noise=float(level), network_time=None), *later])


def remaining(table: SolverTable, share: float) -> SolverTable:
    """The last part of a table, for latents that lie at its first level.

    Args:
        table: of a whole run, levels after any shift.
        share: of the network calls to make, above 0, at most 1; rounded to whole calls, at least one. What diffusers'
            image-to-image pipelines call strength.

    Raises:
        FestinaError: a share out of range; for the others see `started_at`.
    """
    if not 0 < share <= 1:
        raise FestinaError(f"a share of {share:g} of the steps was asked for. Use a number above 0, at most 1.")
    _want_levels(table)
    calls = [place for place, step in enumerate(table.steps) if step.call == "network"]
    return _given(table, table.steps[calls[-max(1, round(share * len(calls)))] :])


def encoded(pipe: Any, pictures: Tensor) -> Tensor:
    """Pictures as clean latents of a pipeline: the mean that its autoencoder gives, shifted and scaled as it wants.

    Args:
        pipe: a diffusers pipeline with an `AutoencoderKL`. Latents are packed where it packs them as FLUX does.
        pictures: (batch, 3, height, width) in [0, 1].

    Raises:
        FestinaError: another autoencoder or packing, pictures of another shape, or latents that are not finite.
    """
    name, vae, pack = type(pipe).__name__, getattr(pipe, "vae", None), getattr(pipe, "_pack_latents", None)
    packed_alike = pack is None or list(inspect.signature(pack).parameters) == _PACKED
    if not isinstance(vae, AutoencoderKL) or not packed_alike:
        raise FestinaError(
            f"it is not known here how {name} makes latents of pictures. Give warm_start latents as the pipeline ends "
            'with them (output_type="latent").'
        )
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise FestinaError(f"pictures of shape {tuple(pictures.shape)} were given; wanted (batch, 3, height, width).")
    with torch.no_grad():
        latents: Tensor = vae.encode((2 * pictures - 1).to(vae.device, vae.dtype)).latent_dist.mean
    if not latents.isfinite().all():
        raise FestinaError(f"the autoencoder of {name} gives numbers that are not finite in {vae.dtype}. Use float32.")
    latents = _scaled(latents, vae.config)
    if pack is None:
        return latents
    if any(size % 2 for size in latents.shape[2:]):
        raise FestinaError(f"{name} packs latents two by two; found {tuple(latents.shape[2:])}. Use even sizes.")
    packed: Tensor = pack(latents, *latents.shape)
    return packed


def _scaled(latents: Tensor, config: Any) -> Tensor:
    """What the autoencoder gives, with the mean and deviation that the denoiser was trained for."""
    if config.latents_mean is not None and config.latents_std is not None:
        mean, deviation = (latents.new_tensor(list(part)) for part in (config.latents_mean, config.latents_std))
    else:
        mean, deviation = (latents.new_full((1,), number) for number in (config.shift_factor or 0.0, 1.0))
    scale = float(config.scaling_factor)
    return (latents - mean[:, None, None]) * scale / deviation[:, None, None]


def _want_levels(table: SolverTable) -> None:
    """Raise a `FestinaError` unless a table can be cut: its levels are known, and nothing looks back to its start."""
    if table.before_shift:
        raise FestinaError(
            "the table's levels are before the shift, and latents lie at levels after it. Use the run_table of a "
            "PlanScheduler after set_timesteps."
        )
    if any(step.linear is not None and step.linear.anchor != 0 for step in table.steps):
        raise FestinaError(
            "the table weighs the sample that the whole run starts from, so no part of it can be begun at. Use a table "
            "without an anchor."
        )


def _given(table: SolverTable, steps: Sequence[SolverStep]) -> SolverTable:
    return SolverTable(tuple(steps), table.final_noise, start="given")
