"""Making the pictures of a workload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.search.workload import Workload


def generate_batch(pipe: Any, pictures: Sequence[tuple[str, int]], workload: Workload, steps: int) -> Tensor:
    """One call of a pipeline, with a CPU generator of its own for every picture.

    Args:
        pipe: a diffusers pipeline that takes prompts.
        pictures: prompt and seed of each picture.
        workload: guidance and further arguments of the call.
        steps: sampling steps.

    Returns:
        pictures (batch, 3, height, width) in [0, 1], on the CPU, so that all work on an accelerator has ended.

    Raises:
        FestinaError: the pipeline gave something else than one picture per prompt.
    """
    made = pipe(
        prompt=[prompt for prompt, _ in pictures],
        generator=[torch.Generator().manual_seed(seed) for _, seed in pictures],
        num_inference_steps=steps,
        guidance_scale=workload.guidance_scale,
        output_type="pt",
        **workload.call,
    )
    images: Tensor = made.images.float().cpu()
    if images.ndim != 4 or images.shape[:2] != (len(pictures), 3):
        raise FestinaError(
            f"{type(pipe).__name__} gave pictures of shape {tuple(images.shape)} for {len(pictures)} prompts; "
            f"wanted ({len(pictures)}, 3, height, width). Leave arguments such as num_images_per_prompt alone."
        )
    return images


def generate(pipe: Any, pictures: Sequence[tuple[str, int]], workload: Workload) -> Tensor:
    """Pictures (count, 3, height, width) of any number of prompts and seeds, in batches of the workload."""
    starts = range(0, len(pictures), workload.batch)
    parts = (pictures[start : start + workload.batch] for start in starts)
    return torch.cat([generate_batch(pipe, part, workload, workload.steps) for part in parts])
