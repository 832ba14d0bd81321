"""Leaving a branch of guidance out: one call, or half of a batched one, answers for both.

A pipeline combines what its denoiser says with the caption and without it. In a step whose plan leaves a branch out,
the denoiser runs for one of them and its answer stands for the other too, so that what the pipeline makes of both is
that answer. Nothing of the pipeline is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from festina.errors import FestinaError
from festina.executor.clock import StepClock
from festina.executor.store import Store
from festina.plan import ALL, MERGED

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

CONDITIONAL_FIRST = frozenset({"DiTPipeline"})
"""Pipelines that put the rows with a caption before those without; the others do it the other way round."""


class GuidanceRun:
    """Which branches of guidance run, in a run whose plan leaves some out.

    Args:
        clock, store: those of the run.
        conditional_first: whether the rows with a caption come first in a batched call.
    """

    def __init__(self, clock: StepClock, store: Store, conditional_first: bool) -> None:
        self.clock, self.store, self.conditional_first = clock, store, conditional_first
        self.restart()

    def restart(self) -> None:
        """Another run begins, or this one is over."""
        self._branches = ALL
        self._batched: bool | None = None
        self._answered: tuple[int, Any] = (-1, None)

    def run_all(self) -> None:
        """A call in a step in which all branches run: what was stored for fewer fits no more."""
        if self._branches != ALL:
            self.store.clear()
            self._branches = ALL

    def answer(
        self,
        branches: str,
        sample: Any,
        call: Callable[[tuple[Any, ...], dict[str, Any]], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: Set[str],
    ) -> Any:
        """Answer a call in a step in which not all branches run.

        Args:
            branches: which do, one of `festina.plan.BRANCHES`.
            sample: what is denoised.
            call: runs the denoiser on arguments.
            args, kwargs: the arguments of this call.
            names: the branches of this denoiser in separate calls.
        """
        if self._batched is None:
            self._batched = guides_in_one_call(sample)
        if self._batched:
            rows, half = len(sample), half_kept(branches, self.conditional_first)
            if self._goes_on(branches):
                self.store.change(self.clock.branch, kept_rows(branches, half))
            return doubled(call(*halved(args, kwargs, rows, half)), rows // 2)
        # In separate calls it is the first one of the step that runs; pipelines make it with the caption.
        if self._answered[0] == self.clock.step:
            return self._answered[1]
        if self._goes_on(branches):
            for other in sorted(names - {self.clock.branch}):
                if branches == MERGED:
                    self.store.merge(self.clock.branch, other)
                else:
                    self.store.drop_branch(other)
        self._answered = self.clock.step, call(args, kwargs)
        return self._answered[1]

    def _goes_on(self, branches: str) -> bool:
        """Whether what was stored for all branches is still to be fitted to fewer."""
        before, self._branches = self._branches, branches
        if before not in (ALL, branches):
            self.store.clear()
        return before == ALL


def guides_in_one_call(sample: Any) -> bool:
    """Whether the rows of a call are those of two branches: the pipeline gave the same latents twice.

    Looks at values, and so waits for the device; asked once per run, and only for plans that leave a branch out.
    """
    if not isinstance(sample, Tensor) or len(sample) % 2:
        return False
    first, second = sample.chunk(2)
    return torch.equal(first, second)


def half_kept(branches: str, conditional_first: bool) -> int:
    """Which half of a batched call runs: 0 or 1.

    With what was stored of both merged, T-GATE (arXiv 2404.02747, released code) runs the one without a caption.
    """
    conditional = 0 if conditional_first else 1
    return 1 - conditional if branches == MERGED else conditional


def halved(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, half: int) -> Arguments:
    """The arguments of a batched call for one half of its rows.

    Args:
        args, kwargs: the arguments.
        rows: rows of the whole call; tensors and lists of so many entries are cut, all else is for every row.
        half: 0 or 1.
    """

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.chunk(2)[half] if value.ndim and len(value) == rows else value
        if isinstance(value, Mapping):
            return {name: cut(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(cut(part) for part in value)
        return value

    return tuple(cut(value) for value in args), {name: cut(value) for name, value in kwargs.items()}


def doubled(output: Any, rows: int) -> Any:
    """What a denoiser returned for half of the rows, as the answer for all of them."""

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and len(value) == rows else value

    return tree_map(twice, output)


def kept_rows(branches: str, half: int) -> Callable[[Any], Any]:
    """What becomes of a stored value when a batched call goes on with half of its rows: that half of it, or, merged,
    the mean of both halves."""

    def keep(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if len(value) % 2:
            raise FestinaError(
                f"a stored tensor of shape {tuple(value.shape)} is not of two branches; this plan, which leaves one "
                f"out, cannot be run on this model."
            )
        first, second = value.chunk(2)
        return (first + second) / 2 if branches == MERGED else (first, second)[half].clone()

    return lambda value: tree_map(keep, value)
