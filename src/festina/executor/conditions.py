"""Rows of a call in which a pipeline guides by two conditions: with both, with one of them, and with none.

Pipelines that change a picture by a text give their denoiser three rows per picture: with text and picture, with the
picture, and with neither; or in the opposite order. Which is which is read off what the rows are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from festina.executor.calls import Arguments, Leaves, changed_arguments
from festina.executor.difference import half_of, joined, kept_of_parts


@dataclass(frozen=True)
class Thirds:
    """The rows of a call with two conditions.

    Attributes:
        rows: how many there are, three per picture.
        bare: which third of them has no condition: 0 or 2; the other end has both, and the middle one of them.
    """

    rows: int
    bare: int

    def without_middle(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """The arguments of the call for the outer thirds of its rows.

        Every tensor of so many rows is cut, also within lists and mappings, as `festina.executor.guidance.halved` does.
        """

        def cut(path: str, value: Any) -> Any:
            return _outer(value) if isinstance(value, Tensor) and value.ndim and len(value) == self.rows else value

        return changed_arguments((), args, kwargs, cut)

    def ends(self, answer: Any) -> tuple[Any, Any]:
        """What the denoiser returned for the outer thirds: with both conditions, and without any."""
        halves = [half_of(answer, 2 * self.rows // 3, half) for half in (0, 1)]
        return (halves[0], halves[1]) if self.bare else (halves[1], halves[0])

    def whole(self, both: Any, bare: Any) -> Any:
        """An answer for all rows, in which the middle third says what the one without conditions does.

        A pipeline that adds s_1 (both - middle) + s_2 (middle - bare) to bare then adds s_1 (both - bare).
        """
        return joined(joined(both, bare), bare) if self.bare else joined(joined(bare, bare), both)


kept_thirds = kept_of_parts(3, lambda thirds: torch.cat([thirds[0], thirds[2]]))
"""What becomes of a stored value when a call goes on without the middle third of its rows."""


def thirds_of(name: str, leaves: Leaves) -> Thirds | None:
    """The rows of a call, if it is one with two conditions. Looks at values, and so waits for the device.

    The latents have to be three times the same, alone or before something else along one dimension. What else differs
    between the thirds, of arguments with as many rows and of what is put behind the latents, has to be one of two
    things, and both have to occur: the same in the first two thirds, or the same in the last two. So each end has a
    condition that the middle lacks, or lacks one that the middle has. The end that has none is the one that is given
    zeros where the other two thirds are given something.

    Args:
        name: name of the argument that is denoised.
        leaves: what the call was given.

    Returns:
        None if it is no such call, or if it cannot be told which end is which.
    """
    sample = leaves.get(name)
    if not isinstance(sample, Tensor) or sample.ndim < 2 or not len(sample) or len(sample) % 3:
        return None
    beside = _beside_latents(sample)
    if beside is None:
        return None
    rows = len(sample)
    others = [leaf for path, leaf in leaves.items() if path != name and isinstance(leaf, Tensor)]
    alone, empty = set(), set()
    for value in [*beside, *(leaf for leaf in others if leaf.ndim and len(leaf) == rows)]:
        thirds = value.chunk(3)
        alike = [torch.equal(thirds[0], thirds[1]), torch.equal(thirds[1], thirds[2])]
        if all(alike):
            continue
        if not any(alike):
            return None
        differs = 2 if alike[0] else 0
        alone.add(differs)
        if value.is_floating_point() and not thirds[differs].any():
            empty.add(differs)
    return Thirds(rows, empty.pop()) if alone == {0, 2} and len(empty) == 1 else None


def _beside_latents(sample: Tensor) -> list[Tensor] | None:
    """What is put behind latents that are three times the same: none or one tensor; None if there are no such."""
    first, second, third = sample.chunk(3)
    same = (first == second) & (second == third)
    if bool(same.all()):
        return []
    for dimension in range(1, sample.ndim):
        flags = same.movedim(dimension, 0).flatten(1).all(1).tolist()
        shared = flags.index(False)
        if shared and not any(flags[shared:]):
            return [sample.narrow(dimension, shared, len(flags) - shared)]
    return None


def _outer(value: Tensor) -> Tensor:
    first, _, last = value.chunk(3)
    return torch.cat([first, last])
