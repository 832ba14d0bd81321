"""How the regions of a U-Net pass skip connections on, read off what they take and return.

A region on the way down returns its output and, in a tuple, the skip connections; a region on the way up takes skip
connections in a tuple and returns its output alone. Skip connections are a stack: the last ones put on are taken first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def skips_taken(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many skip connections a region was given: tensors in a tuple among its arguments."""
    given = (*args, *kwargs.values())
    return sum(len(each) for each in given if isinstance(each, tuple) and all(isinstance(x, Tensor) for x in each))


def kept_leaves(returned: Sequence[int], taken: Sequence[int]) -> tuple[frozenset[int], ...]:
    """Which returned tensors of a run of regions are read outside of it.

    Args:
        returned: number of tensors that each region returns; more than one means skip connections behind the first.
        taken: number of skip connections that each region takes.

    Returns:
        for each region the indices of its tensors that somebody outside the run reads.
    """
    skips = [(place, index) for place, count in enumerate(returned) for index in range(1, count)]
    left = skips[: max(0, len(skips) - sum(taken))]
    # Regions that return no skip connections on the way down may be read by the model itself.
    plain = not skips and not any(taken)
    last = len(returned) - 1
    return tuple(
        frozenset(index for index in range(count) if plain or (place == last and index == 0) or (place, index) in left)
        for place, count in enumerate(returned)
    )
