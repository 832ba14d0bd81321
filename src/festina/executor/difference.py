"""The difference of guidance: what a denoiser says with the caption, less what it says without.

A pipeline of strength s makes of both answers u + s (c - u). Given c - k (c - u) in the place of u, it makes of them
what it would at the strength 1 + k (s - 1): nothing of the pipeline is changed. Where only the branch with the caption
ran, the difference is that of the last step in which both did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from festina.errors import FestinaError
from festina.executor.clock import StepClock
from festina.executor.store import Store
from festina.plan import Plan
from festina.records import difference_kept

KEPT = "guidance difference"
"""Under this name the store keeps what lay between the answers of both branches."""


class Difference:
    """The factors on a run's guidance, and the difference that is used again.

    Args:
        plan: the plan, in canonical form.
        clock, store: those of the run.
    """

    def __init__(self, plan: Plan, clock: StepClock, store: Store) -> None:
        self.steps = plan.steps
        self.clock, self.store = clock, store
        self._after = difference_kept(plan.steps)

    @property
    def changes_guidance(self) -> bool:
        """Whether the plan says anything of it, in any step."""
        return any(self._after) or any(step.guidance != 1 for step in self.steps)

    @property
    def changes_step(self) -> bool:
        """Whether the present step does, if both branches run in it."""
        return self.factor() != 1 or self._read_after(self.clock.step)

    def both(self, branch: str, conditional: Any, other: Any) -> Any:
        """Both branches have answered.

        Args:
            branch: under whose name their difference is kept.
            conditional: the answer with the caption.
            other: the one without, of the same structure.

        Returns:
            the answer without the caption that the pipeline is given.
        """
        step = self.clock.step
        replays = step < len(self.steps) and self.steps[step].replays
        if not self._read_after(step):
            self.store.trim(branch, KEPT, 0)
        # Two answers that are replayed, scaled, are no newer difference.
        elif not (replays and self.store.get(branch, KEPT)):
            self.store.put(branch, KEPT, step, _each(lambda mine, its: mine - its, conditional, other))
        factor = self.factor()
        # Exact at both ends: the answer without the caption at 1, the one with it at 0.
        return other if factor == 1 else _each(lambda mine, its: torch.lerp(mine, its, factor), conditional, other)

    def known(self, branch: str) -> bool:
        """Whether there is a difference to use again."""
        return bool(self.store.get(branch, KEPT))

    def again(self, branch: str, conditional: Any, replayed: bool) -> Any:
        """Only the branch with the caption has answered.

        Args:
            branch: under whose name the difference is kept.
            conditional: the answer.
            replayed: whether it is an older one, scaled.

        Returns:
            the answer without the caption that the pipeline is given.
        """
        step = self.clock.step
        (kept,) = self.store.get(branch, KEPT)
        scale = self.steps[step].replay if replayed else None
        factor = self.factor() * (1.0 if scale is None else scale)
        if not self._read_after(step):
            self.store.trim(branch, KEPT, 0)
        return _each(lambda mine, its: torch.sub(mine, its, alpha=factor), conditional, kept.value)

    def begun_at(self, step: int, branches: Iterable[str]) -> None:
        """A run is known now to have begun at this step; what no later step reads is kept no longer."""
        if not self._read_after(step):
            for branch in branches:
                self.store.trim(branch, KEPT, 0)

    def factor(self) -> float:
        """The present step's on the difference; in a first step of unknown place guidance is left alone."""
        return self.steps[self.clock.step].guidance if self.clock.step < len(self.steps) else 1.0

    def _read_after(self, step: int) -> bool:
        return self._after[step] if step < len(self._after) else any(self._after)


def kept_of_parts(parts: int, keep: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Any], Any]:
    """What becomes of a stored value when a call goes on with fewer rows.

    Args:
        parts: into how many equal parts its rows are cut.
        keep: makes of these parts what is kept.

    Returns:
        the new value of an old one; it raises a `FestinaError` on a tensor that cannot be cut so.
    """

    def kept(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        if len(leaf) % parts:
            raise FestinaError(
                f"a stored tensor of shape {tuple(leaf.shape)} is not of {parts} rows for each picture; this plan, "
                f"which leaves some out, cannot be run on this model."
            )
        return keep(leaf.chunk(parts))

    return lambda value: tree_map(kept, value)


def half_of(answer: Any, rows: int, half: int) -> Any:
    """One half of what a denoiser returned, where each tensor has so many rows; `half` is 0 or 1."""
    check_rows(answer, rows)
    return tree_map(lambda leaf: leaf.chunk(2)[half] if is_amount(leaf) else leaf, answer)


def check_rows(answer: Any, rows: int) -> None:
    """See that what a denoiser returned has as many rows as it was given.

    Raises:
        FestinaError: a tensor in it has another number of rows, or there is none.
    """
    odd = [leaf for leaf in tree_leaves(answer) if is_amount(leaf) and (not leaf.ndim or len(leaf) != rows)]
    if odd or not any(is_amount(leaf) for leaf in tree_leaves(answer)):
        found = f"a tensor of shape {tuple(odd[0].shape)}" if odd else "no tensor"
        raise FestinaError(
            f"the plan changes the guidance of {rows} rows, but in the denoiser's {type(answer).__name__} there is "
            f"{found}. Use a plan that leaves guidance alone on this pipeline."
        )


def joined(first: Any, second: Any) -> Any:
    """What a denoiser returned for each half of the rows, as its answer for all of them."""
    return _each(lambda one, other: torch.cat([one, other]), first, second)


def copied(answer: Any) -> Any:
    """A copy of what a denoiser returned: a pipeline may do with it what it likes."""
    return tree_map(lambda leaf: leaf.clone() if is_amount(leaf) else leaf, answer)


def _each(how: Callable[[Tensor, Tensor], Tensor], one: Any, other: Any) -> Any:
    """Two answers of one structure made into one, tensor by tensor; all else is that of the first."""
    return tree_map(lambda mine, its: how(mine, its) if is_amount(mine) else mine, one, other)


def is_amount(leaf: Any) -> bool:
    """Whether a part of what a denoiser returned can be multiplied: a tensor of real or complex numbers."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
