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
from festina.executor.conditions import Thirds, thirds_of

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
        self._thirds: Thirds | None = None

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

    def thirds(self, leaves: Leaves) -> Thirds | None:
        """The rows of a call in which the pipeline guides by two conditions; None if it says that it does not guide.

        Args:
            leaves: what the present call was given.

        Raises:
            FestinaError: the call is no such one.
        """
        if self._says_unguided():
            return None
        sample = leaves.get(self.sample)
        rows = len(sample) if isinstance(sample, Tensor) and sample.ndim else 0
        if self._thirds is None or self._thirds.rows != rows:
            self._thirds = thirds_of(self.sample, leaves)
            self._given = tuple(sample.shape) if isinstance(sample, Tensor) else ()
        if self._thirds is None or not self._thrice():
            raise FestinaError(
                f"the plan runs two of three branches of guidance, for both of two conditions and for none, but what "
                f"this pipeline gives its denoiser as {self.sample!r} is not three rows for each picture of which "
                f"these two can be told. Use a plan without the branches 'joint' on it."
            )
        return self._thirds

    @property
    def times(self) -> str:
        """How often a call of this run is taken to hold the same latents, in words."""
        return "twice" if self._thirds is None else "three times"

    def taken_back(self, sample: Any) -> bool:
        """Take note of the latents that the sampler steps on in the first step.

        Returns:
            whether that step's call was taken for one with several branches, and is none.
        """
        if isinstance(sample, Tensor) and not self._steps_on_both:
            self._stepped = tuple(sample.shape)
        if self._thirds is not None:
            return not self._thrice()
        wrong = bool(self._batched) and _as_many(self._given, self._stepped)
        self._batched = False if wrong else self._batched
        return wrong

    def _guides_apart(self, context: str | None) -> bool:
        """Whether the pipeline says that no call of it holds both branches."""
        if (context or "").removeprefix("pred_") in ("cond", "uncond"):
            return True
        return self._says_unguided()

    def _thrice(self) -> bool:
        """Whether the denoiser is given three rows for each one that the sampler steps on, as far as that is known."""
        known = len(self._stepped) == len(self._given)
        return not known or self._given[0] == 3 * self._stepped[0]

    def _says_unguided(self) -> bool:
        """Whether the pipeline says that it does not guide."""
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
        three = all(torch.equal(first, other) for other in others) or thirds_of(name, leaves) is not None
        found = "three times" if three else ""
    elif listed and not odd and all(map(same_values, listed[:middle], listed[middle:])):
        found = "twice in a list"
    if found:
        raise FestinaError(
            f"the plan changes guidance, but this pipeline gives its denoiser the same latents {found}, and not as two "
            f"halves of a batch or in two calls. Use a plan that leaves guidance alone on it."
        )
