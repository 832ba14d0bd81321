"""Reading stored values: the last one as it is, or a weighted sum of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from festina.executor.store import Entry, Value
from festina.forecasts import weights
from festina.plan import FORECASTS


def read(entries: Sequence[Entry], action: str, step: int, basis: str) -> Value | None:
    """What a site is served by an action that is neither compute nor skip.

    Args:
        entries: its stored values, the latest first.
        action: reuse, or a forecast: of a lower order if fewer values are stored than it needs.
        step: the present step.
        basis: see `festina.forecasts`.

    Returns:
        the value; None if nothing is stored.
    """
    order = int(action) if action in FORECASTS else 0
    used = entries[: order + 1]
    if not used:
        return None
    return blend([entry.value for entry in used], weights(basis, tuple(entry.step for entry in used), step))


def blend(values: Sequence[Value], shares: Sequence[float]) -> Value:
    """The weighted sum of values of one structure, tensor by tensor; what is no number is taken from the first.

    Two values take one pass over memory, more take one each. Sums are formed in single precision or better.
    """
    if len(values) == 1:
        return values[0]
    leaves, form = tree_flatten(values[0])
    others = [tree_flatten(value)[0] for value in values[1:]]
    return tree_unflatten([_blended([leaf, *rest], shares) for leaf, *rest in zip(leaves, *others, strict=True)], form)


def prolonged(latest: Value, before: Value, factor: Tensor) -> Value:
    """before + factor (latest - before), for a factor that only the device knows."""
    leaves, form = tree_flatten(latest)
    pairs = zip(leaves, tree_flatten(before)[0], strict=True)
    return tree_unflatten([_prolonged(leaf, old, factor) for leaf, old in pairs], form)


def _prolonged(latest: Any, before: Any, factor: Tensor) -> Any:
    if not isinstance(latest, Tensor) or not latest.is_floating_point():
        return latest
    return torch.lerp(before, latest, factor.to(latest.dtype))


def _blended(leaves: Sequence[Any], shares: Sequence[float]) -> Any:
    first = leaves[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return first
    if len(leaves) == 2:
        return torch.lerp(leaves[1], first, shares[0])
    total = first.to(torch.promote_types(first.dtype, torch.float32)) * shares[0]
    for leaf, share in zip(leaves[1:], shares[1:], strict=True):
        total.add_(leaf, alpha=share)
    return total.to(first.dtype)
