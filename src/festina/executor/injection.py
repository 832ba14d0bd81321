"""Adding a little of the initial noise to the latents after a step, as Faster Diffusion does (arXiv 2312.09608)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from festina.errors import FestinaError


class Injection:
    """The initial latents of a run, and how much of them is added after each step.

    Args:
        shares: the factor for each step of the plan; 0 adds nothing.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares = tuple(shares)
        self._initial: Tensor | None = None

    @property
    def any(self) -> bool:
        """Whether there is a step after which something is added."""
        return any(self.shares)

    def begin(self, sample: Any) -> None:
        """The latents that a scheduler is given in the first step of a run."""
        self._initial = sample if self.any and isinstance(sample, Tensor) else None

    def clear(self) -> None:
        """The run is over."""
        self._initial = None

    def after(self, step: int, result: Any) -> Any:
        """What a scheduler's step returned, with noise added to its latents if the plan says so.

        Args:
            step: the step that was made.
            result: the scheduler's output, or a tuple with the latents first.

        Raises:
            FestinaError: the latents are not of the shape that the run began with.
        """
        share = self.shares[step] if step < len(self.shares) else 0.0
        if not share:
            return result
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        if self._initial is None or latents.shape != self._initial.shape:
            raise FestinaError(
                f"the plan adds the initial noise after step {step}, but the latents there, {tuple(latents.shape)}, "
                f"are not of the shape that the run began with. Use a plan without `injected` on this pipeline."
            )
        noisy = latents + share * self._initial.to(latents)
        if isinstance(result, tuple):
            return (noisy, *result[1:])
        result.prev_sample = noisy
        return result
