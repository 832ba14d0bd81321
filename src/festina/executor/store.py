"""The store: the tensors a run keeps between steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

Value = Any
"""What a site stores: a tensor, or a structure of tensors as torch's pytrees know them."""


def value_bytes(value: Value) -> int:
    """Bytes of a stored value; a tensor that occurs twice counts once."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class Store:
    """Values by (branch, site), with the bytes they hold.

    Attributes:
        bytes: bytes held now.
        peak_bytes: most bytes held at once since `clear_peak`.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], tuple[Value, int]] = {}
        self.bytes = 0
        self.peak_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def put(self, branch: str, site: str, value: Value) -> None:
        """Keep a value, in the place of the last one."""
        self.drop(branch, site)
        size = value_bytes(value)
        self._values[branch, site] = value, size
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def get(self, branch: str, site: str) -> Value | None:
        """The value of a site, None if it has none."""
        held = self._values.get((branch, site))
        return None if held is None else held[0]

    def drop(self, branch: str, site: str) -> None:
        """Forget the value of a site, if it has one."""
        held = self._values.pop((branch, site), None)
        if held is not None:
            self.bytes -= held[1]

    def drop_visits(self, branch: str, site: str) -> None:
        """Forget the values of all visits of a site (see `festina.executor.serving.Column.visit`)."""
        for held, visit in [slot for slot in self._values if slot[0] == branch]:
            if visit.partition("#")[0] == site:
                self.drop(held, visit)

    def drop_branch(self, branch: str) -> None:
        """Forget all values of a branch."""
        for held, site in [slot for slot in self._values if slot[0] == branch]:
            self.drop(held, site)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self.bytes = 0

    def clear_peak(self) -> None:
        """Start a new measurement of the peak."""
        self.peak_bytes = self.bytes
