"""Making the pictures or videos of a workload."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.search.workload import Workload
from festina.sites import find_denoiser

NEGATIVE_PROMPTS = ("negative_prompt", "negative_prompt_2", "negative_prompt_3", "negative_prompt_4")
"""Arguments of pipeline calls that say what to guide away from, one per text encoder."""


def call_of(pipe: Any, workload: Workload, prompts: Sequence[str]) -> dict[str, Any]:
    """The arguments of a pipeline's call that say what to draw: prompts, guidance and the workload's further ones.

    The workload has one strength of guidance, pipelines may have two. `guidance_scale` is the strength of
    classifier-free guidance in most, but in FluxPipeline and its like it is the number that a guidance-distilled
    denoiser is told, and `true_cfg_scale` is the strength of classifier-free guidance by a second call, which takes
    place only if a negative prompt is given. So where the call takes `true_cfg_scale`, the denoiser has no embedding
    for guidance, and the workload's further arguments hold a negative prompt (and no `true_cfg_scale`), the workload's
    guidance is `true_cfg_scale`; everywhere else it is `guidance_scale`.

    A negative prompt that is a single text holds for every prompt; it is repeated, as some pipelines do not do so.

    Raises:
        FestinaError: the pipeline takes no prompts.
    """
    if "prompt" not in _accepted(pipe):
        raise FestinaError(
            f"{type(pipe).__name__} takes no prompts. Only pipelines that are told what to draw can be used here; call "
            "another one yourself."
        )
    call = dict(workload.call)
    for name in NEGATIVE_PROMPTS:
        if isinstance(call.get(name), str):
            call[name] = [call[name]] * len(prompts)
    scale = "true_cfg_scale" if _guides_by_second_call(pipe, workload) else "guidance_scale"
    return {"prompt": list(prompts), scale: workload.guidance_scale, **call}


def strength_and_call(pipe: Any, workload: Workload, prompts: Sequence[str]) -> tuple[float | None, dict[str, Any]]:
    """The strength of guidance as `guidance_scale`, None where the pipeline has another name for it, and all else that
    a call for one prompt at a time wants: what `festina.calibration` takes as `guidance` and `call`."""
    # The strength under the name that this pipeline has for it; the rest as it was said.
    call = {**call_of(pipe, workload, prompts[:1]), **workload.call}
    strength = call.pop("guidance_scale", None)
    return strength, {name: value for name, value in call.items() if name != "prompt"}


def generate_batch(pipe: Any, pictures: Sequence[tuple[str, int]], workload: Workload, steps: int) -> Tensor:
    """One call of a pipeline, with a CPU generator of its own for every picture; for its arguments see `call_of`.

    Args:
        pipe: a diffusers pipeline that takes prompts.
        pictures: prompt and seed of each picture.
        workload: guidance and further arguments of the call.
        steps: sampling steps.

    Returns:
        pictures (batch, 3, height, width), or of a pipeline that draws videos (batch, frames, 3, height, width), in
        [0, 1], on the CPU, so that all work on an accelerator has ended.

    Raises:
        FestinaError: the pipeline gave something else than one picture or video per prompt.
    """
    made = pipe(
        **call_of(pipe, workload, [prompt for prompt, _ in pictures]),
        generator=[torch.Generator().manual_seed(seed) for _, seed in pictures],
        num_inference_steps=steps,
        output_type="pt",
    )
    name = type(pipe).__name__
    found = made.frames if hasattr(made, "frames") else getattr(made, "images", None)
    if found is None:
        raise FestinaError(f"{name} gave neither images nor frames; only pipelines that draw either can be used.")
    images: Tensor = (torch.stack(list(found)) if isinstance(found, list | tuple) else found).float().cpu()
    wanted = "(count, frames, 3, height, width)" if hasattr(made, "frames") else "(count, 3, height, width)"
    if images.ndim != wanted.count(",") + 1 or len(images) != len(pictures) or images.shape[-3] != 3:
        raise FestinaError(
            f"{name} gave pictures of shape {tuple(images.shape)} for {len(pictures)} prompts; wanted {wanted}. Leave "
            f"arguments such as num_images_per_prompt alone."
        )
    return images


def generate(pipe: Any, pictures: Sequence[tuple[str, int]], workload: Workload) -> Tensor:
    """Pictures (count, 3, height, width) or videos (count, frames, 3, height, width) of any number of prompts and
    seeds, in batches of the workload."""
    starts = range(0, len(pictures), workload.batch)
    parts = (pictures[start : start + workload.batch] for start in starts)
    return torch.cat([generate_batch(pipe, part, workload, workload.steps) for part in parts])


def draws_videos(pipe: Any) -> bool:
    """Whether a pipeline draws videos, going by the arguments of its call."""
    return not {"num_frames", "video_length"}.isdisjoint(_accepted(pipe))


def _accepted(pipe: Any) -> Mapping[str, Any]:
    return inspect.signature(type(pipe).__call__).parameters


def _guides_by_second_call(pipe: Any, workload: Workload) -> bool:
    if "true_cfg_scale" in workload.call or "true_cfg_scale" not in _accepted(pipe):
        return False
    distilled = getattr(find_denoiser(pipe).config, "guidance_embeds", False)
    return not distilled and any(workload.call.get(name) is not None for name in NEGATIVE_PROMPTS)
