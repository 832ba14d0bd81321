"""How a pipeline guides: the rows of both branches in one call, or a call for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.executor.calls import Leaves, same_values

CONDITIONAL_FIRST = frozenset(
    {
        "AceStepPipeline",
        "DiTPipeline",
        "LuminaPipeline",
        "LuminaText2ImgPipeline",
        "OmniGenPipeline",
        "StableCascadeDecoderPipeline",
        "StableCascadePriorPipeline",
        "WuerstchenDecoderPipeline",
        "WuerstchenPriorPipeline",
    }
)
"""Pipelines that put the rows with a caption before those without; the others do it the other way round."""


def guides_in_one_call(sample: Any) -> bool:
    """Whether the rows of a call are those of two branches: the pipeline gave the same latents twice.

    Looks at values, and so waits for the device; asked once per run, and only for plans that leave a branch out.
    """
    if not isinstance(sample, Tensor) or len(sample) % 2:
        return False
    first, second = sample.chunk(2)
    return torch.equal(first, second)


def check_layout(name: str, leaves: Leaves) -> None:
    """See that a pipeline does not guide in a way in which what guides it cannot be found.

    Args:
        name: name of the argument that is denoised.
        leaves: what a call was given.

    Raises:
        FestinaError: the same latents come three times in one tensor, or twice in a list.
    """
    sample = leaves.get(name)
    listed = [leaf for path, leaf in leaves.items() if path.startswith(f"{name}.")]
    middle, odd = divmod(len(listed), 2)
    found = ""
    if isinstance(sample, Tensor) and sample.ndim and len(sample) % 3 == 0 and not guides_in_one_call(sample):
        first, *others = sample.chunk(3)
        found = "three times" if all(torch.equal(first, other) for other in others) else ""
    elif listed and not odd and all(map(same_values, listed[:middle], listed[middle:])):
        found = "twice in a list"
    if found:
        raise FestinaError(
            f"the plan changes guidance, but this pipeline gives its denoiser the same latents {found}, and not as two "
            f"halves of a batch or in two calls. Use a plan that leaves guidance alone on it."
        )
