"""How a pipeline guides: the rows of both branches in one call, or a call for each."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
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


STEP_ON_BOTH = frozenset({"DiTPipeline"})
"""Pipelines whose sampler steps on the rows of both branches, and not on those of the pictures."""


class Layout:
    """How the pipeline at hand guides in a run.

    Whether a call holds both branches is asked once in a run, and only if a plan changes guidance: the latents have to
    be twice the same. So may be those of pictures of equal noise. They are told apart by what else is known: diffusers'
    cache context (`cond` and `uncond` are calls of their own), the pipeline's own word that it does not guide, and,
    once the first step has ended, how many latents its sampler steps on. Of a bare denoiser nothing else is known.

    Args:
        pipe: the pipeline; None for a bare denoiser.
        sample: name of the argument that is denoised.

    Attributes:
        conditional_first: whether the rows with a caption come first in a batched call.
    """

    def __init__(self, pipe: Any, sample: str) -> None:
        kind = type(pipe).__name__
        self.sample, self.conditional_first = sample, kind in CONDITIONAL_FIRST
        self._steps_on_both = kind in STEP_ON_BOTH
        self._pipe = None if pipe is None else weakref.ref(pipe)
        self.restart()

    def restart(self) -> None:
        """Another run begins, or this one is over."""
        self._batched: bool | None = None
        self._given: tuple[int, ...] = ()
        self._stepped: tuple[int, ...] = ()

    def batched(self, leaves: Leaves, context: str | None) -> bool:
        """Whether the calls of this run hold the rows of both branches.

        Args:
            leaves: what the present call was given.
            context: its cache context, if there is one.

        Raises:
            FestinaError: the pipeline guides in a way in which what guides it cannot be found.
        """
        if self._batched is None:
            sample = leaves.get(self.sample)
            self._given = tuple(sample.shape) if isinstance(sample, Tensor) else ()
            self._batched = False
            if not self._guides_apart(context) and not _as_many(self._given, self._stepped):
                check_layout(self.sample, leaves)
                self._batched = guides_in_one_call(sample)
        return self._batched

    def taken_back(self, sample: Any) -> bool:
        """Take note of the latents that the sampler steps on in the first step.

        Returns:
            whether that step's call was taken for one with both branches, and is none.
        """
        if isinstance(sample, Tensor) and not self._steps_on_both:
            self._stepped = tuple(sample.shape)
        wrong = bool(self._batched) and _as_many(self._given, self._stepped)
        self._batched = False if wrong else self._batched
        return wrong

    def _guides_apart(self, context: str | None) -> bool:
        """Whether the pipeline says that no call of it holds both branches."""
        if (context or "").removeprefix("pred_") in ("cond", "uncond"):
            return True
        guides = getattr(self._pipe and self._pipe(), "do_classifier_free_guidance", None)
        return guides is not None and not guides


def _as_many(given: Sequence[int], stepped: Sequence[int]) -> bool:
    """Whether a sampler steps on as many latents as the denoiser was given, by their shapes; () for one not known."""
    if not given or not stepped:
        return False
    # Some pipelines give their sampler each frame as a row.
    return given[0] == stepped[0] if len(given) == len(stepped) else math.prod(given) == math.prod(stepped)


def guides_in_one_call(sample: Any) -> bool:
    """Whether the rows of a call may be those of two branches: the same latents twice.

    Looks at values, and so waits for the device.
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
