"""Looking at the arguments of a denoiser call, without changing them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Leaves = Mapping[str, Any]
"""What a call was given: tensors and plain values by path, as in `added_cond_kwargs.text_embeds`."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""

Signature = tuple[tuple[int, ...], ...]
"""Shapes of all tensors of a call."""


def parameter_names(denoiser: nn.Module) -> list[str]:
    """Names of the parameters of a denoiser's forward, the denoised sample first."""
    module = getattr(denoiser, "_orig_mod", denoiser)
    return list(inspect.signature(type(module).forward).parameters)[1:]


def leaves_of(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All tensors and plain values among the arguments, by path.

    Args:
        names: names of the positional parameters.
        args, kwargs: the arguments.
    """
    found: dict[str, Any] = {}
    for place, value in enumerate(args):
        found.update(_leaves(names[place] if place < len(names) else f"argument {place}", value))
    for name, value in kwargs.items():
        found.update(_leaves(name, value))
    return found


def changed_arguments(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], how: Callable[[str, Any], Any]
) -> Arguments:
    """The arguments of a call with other tensors and plain values; mappings, lists and tuples keep their structure.

    Args:
        names: names of the positional parameters.
        args, kwargs: the arguments.
        how: makes the new value of the path and the old value, as `leaves_of` has them.
    """

    def change(path: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: change(f"{path}.{name}", part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(change(f"{path}.{place}", part) for place, part in enumerate(value))
        return how(path, value)

    named = [names[place] if place < len(names) else f"argument {place}" for place in range(len(args))]
    changed = tuple(change(name, value) for name, value in zip(named, args, strict=True))
    return changed, {name: change(name, value) for name, value in kwargs.items()}


def signature_of(leaves: Leaves) -> Signature:
    """Shapes of the tensors."""
    return tuple(tuple(leaf.shape) for leaf in leaves.values() if isinstance(leaf, Tensor))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}", part)
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            yield from _leaves(f"{path}.{place}", part)
    else:
        yield path, value


def identity(leaf: Any) -> Any:
    """What two leaves share that are the very same thing: a tensor's memory, a plain value itself.

    Sound only as long as the tensor of which it was taken is kept alive.
    """
    if isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.data_ptr():
        return (leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return (type(leaf), leaf)
    return id(leaf)


def is_setting(leaf: Any) -> bool:
    """Whether a leaf is a plain value that says how to compute, rather than a number that changes from step to step."""
    return leaf is None or isinstance(leaf, (bool, str))


def same_values(one: Any, other: Any) -> bool:
    """Whether two leaves are equal in value; on an accelerator this waits for the device."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return alike and torch.equal(one, other)
    return bool(identity(one) == identity(other))


def entry_given(schedule: Tensor, leaves: Iterable[Any]) -> int | None:
    """Which entry of a sampler's timesteps is among the leaves, seen by its place in memory; None if not just one is.

    Pipelines loop over the timesteps, so that what they hand on is a view of one entry. Nothing is read from it.
    """
    single = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel() and _is_one_number(leaf)]
    found = {_place_in(schedule, leaf) for leaf in single} - {None}
    return found.pop() if len(found) == 1 else None


def entry_of(schedule: Tensor, timestep: Any) -> int | None:
    """Which entry of a sampler's timesteps has this value; of equal ones the first. None if it is none of them."""
    if isinstance(timestep, Tensor):
        timestep = timestep.flatten()[0].item()
    places = (schedule == timestep).nonzero()
    return int(places[0, 0]) if len(places) else None


def _is_one_number(tensor: Tensor) -> bool:
    """Whether it is one number in memory, perhaps expanded."""
    if tensor.layout is not torch.strided:
        return False
    return all(stride == 0 for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def _place_in(schedule: Tensor, part: Tensor) -> int | None:
    if schedule.ndim != 1 or schedule.layout is not torch.strided or not len(schedule):
        return None
    same_kind = part.dtype == schedule.dtype and part.device == schedule.device
    if not same_kind or part.untyped_storage().data_ptr() != schedule.untyped_storage().data_ptr():
        return None
    place, left = divmod(int(part.storage_offset()) - int(schedule.storage_offset()), int(schedule.stride(0)))
    return place if not left and 0 <= place < len(schedule) else None
