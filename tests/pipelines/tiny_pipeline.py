"""What a fixture of a pipeline is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TinyPipeline:
    """A tiny pipeline of one diffusers family.

    Attributes:
        build: makes it, seeded, random weights with noise on every parameter of the denoiser (no zero gates), eval,
            progress bar off.
        call: keyword arguments of a run: takes (steps, batch) and gives everything but num_inference_steps is included
            too; the caller may override single arguments. A fixed generator (torch.Generator, seed 0) is included
            where accepted.
        output: takes the pipeline's result and gives one float tensor to compare (latents or pictures).
        denoisers: attribute names of the denoisers, in the order in which they run ("transformer", "transformer_2",
            "unet").
        calls_per_step: denoiser calls in each step of the default call (2 where guidance makes separate calls).
        rows: batch rows of one denoiser call for batch 1 (2 where guidance is batched).
    """

    build: Callable[[], Any]
    call: Callable[[int, int], dict[str, Any]]
    output: Callable[[Any], Any]
    denoisers: tuple[str, ...] = ("transformer",)
    calls_per_step: int = 1
    rows: int = 1
