"""The store: the tensors a run keeps between steps."""

from __future__ import annotations

from torch import Tensor

Value = Tensor | tuple[Tensor, ...]
"""What a site stores: the module's output, or one residual per stream."""


def value_bytes(value: Value) -> int:
    """Bytes of a stored value."""
    tensors = (value,) if isinstance(value, Tensor) else value
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Store:
    """Values by (branch, site), with the bytes they hold.

    Attributes:
        bytes: bytes held now.
        peak_bytes: most bytes held at once since `clear_peak`.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Value] = {}
        self.bytes = 0
        self.peak_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def put(self, branch: str, site: str, value: Value) -> None:
        """Keep a value, in the place of the last one."""
        self.drop(branch, site)
        self._values[branch, site] = value
        self.bytes += value_bytes(value)
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def get(self, branch: str, site: str) -> Value | None:
        """The value of a site, None if it has none."""
        return self._values.get((branch, site))

    def drop(self, branch: str, site: str) -> None:
        """Forget the value of a site, if it has one."""
        value = self._values.pop((branch, site), None)
        if value is not None:
            self.bytes -= value_bytes(value)

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
