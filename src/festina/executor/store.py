"""The store: the tensors a run keeps between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Value = Any
"""What a site stores: a tensor, or a structure of tensors as torch's pytrees know them."""


def value_bytes(value: Value) -> int:
    """Bytes of a stored value; a tensor that occurs twice counts once."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True)
class Entry:
    """A computed value.

    Attributes:
        step: the step that computed it.
        value: the value.
        bytes: what it holds.
    """

    step: int
    value: Value
    bytes: int


class Store:
    """The last computed values by (branch, site), with the bytes they hold.

    Attributes:
        bytes: bytes held now.
        peak_bytes: most bytes held at once since `clear_peak`.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], tuple[Entry, ...]] = {}
        self._seen: Callable[[Value], Value] | None = None
        self.bytes = 0
        self.peak_bytes = 0

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._values.values())

    def put(self, branch: str, site: str, step: int, value: Value, most: int = 1) -> None:
        """Keep a value, before the last ones of this site, of which so many stay that there are at most `most`.

        Nothing is kept while values are `seen_as` something else.
        """
        if self._seen is not None:
            return
        # First room, then the new value: what is dropped for it was not held at the same time.
        self.trim(branch, site, most - 1)
        entry = Entry(step, value, value_bytes(value))
        self._values[branch, site] = (entry, *self._values.get((branch, site), ()))
        self.bytes += entry.bytes
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def renew(self, branch: str, site: str, value: Value, most: int) -> None:
        """Put another value of the same size in the place of a site's latest one, as of the same step; at most `most`
        stay."""
        self.trim(branch, site, most)
        if most:
            latest, *others = self._values[branch, site]
            self._values[branch, site] = (replace(latest, value=value), *others)

    def get(self, branch: str, site: str) -> tuple[Entry, ...]:
        """The values of a site, the latest first; () if it has none."""
        entries, seen = self._values.get((branch, site), ()), self._seen
        return entries if seen is None else tuple(replace(entry, value=seen(entry.value)) for entry in entries)

    @contextmanager
    def seen_as(self, how: Callable[[Value], Value]) -> Iterator[None]:
        """Meanwhile every value is read as what becomes of it, which does not count as held."""
        self._seen = how
        try:
            yield
        finally:
            self._seen = None

    def trim(self, branch: str, site: str, most: int) -> None:
        """Forget all but the latest `most` values of a site."""
        entries = self._values.get((branch, site), ())
        if len(entries) > most:
            self.bytes -= sum(entry.bytes for entry in entries[most:])
            if most:
                self._values[branch, site] = entries[:most]
            else:
                del self._values[branch, site]

    def trim_visits(self, branch: str, site: str, most: int) -> None:
        """`trim` for all visits of a site (see `festina.executor.serving.Column.visit`)."""
        for visit in self._sites(branch):
            if visit.partition("#")[0] == site:
                self.trim(branch, visit, most)

    def renumber(self, step: int, now: int) -> None:
        """Values that were computed in a step of unknown place were so in this one."""
        for slot, entries in self._values.items():
            renamed = (replace(entry, step=now) if entry.step == step else entry for entry in entries)
            self._values[slot] = tuple(renamed)

    def change(self, branch: str, how: Callable[[Value], Value], but: str = "") -> None:
        """Replace every value of a branch, but those of one site, by what becomes of it."""
        for site in self._sites(branch):
            if site == but:
                continue
            changed = []
            for entry in self._values[branch, site]:
                value = how(entry.value)
                changed.append(Entry(entry.step, value, value_bytes(value)))
                self.bytes += changed[-1].bytes - entry.bytes
            self._values[branch, site] = tuple(changed)

    def merge(self, branch: str, other: str) -> None:
        """Replace every value of a branch by the mean of it and of what another branch stored in the same step; that of
        the other one is forgotten."""
        for site in self._sites(branch):
            theirs = {entry.step: entry.value for entry in self.get(other, site)}
            self._values[branch, site] = tuple(
                replace(entry, value=_mean(entry.value, theirs[entry.step])) if entry.step in theirs else entry
                for entry in self._values[branch, site]
            )
        self.drop_branch(other)

    def drop_branch(self, branch: str) -> None:
        """Forget all values of a branch."""
        for site in self._sites(branch):
            self.trim(branch, site, 0)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self.bytes = 0

    def clear_peak(self) -> None:
        """Start a new measurement of the peak."""
        self.peak_bytes = self.bytes

    def _sites(self, branch: str) -> list[str]:
        return [site for held, site in self._values if held == branch]


def _mean(one: Value, other: Value) -> Value:
    return tree_map(lambda mine, its: (mine + its) / 2 if isinstance(mine, Tensor) else mine, one, other)
