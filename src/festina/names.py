"""The grammar of site names, without any model: what a name stands for and which names lie within which.

PATH                    output of a component, as in `transformer_blocks.3.attn1`
PATH:residual           change that a block makes, as in `transformer_blocks.3:residual`
LIST.I..J:residual      change that the blocks I to J of a list make, as in `transformer_blocks.3..9:residual`
REGION:feature          what a region of a U-Net returns, as in `mid_block:feature`
REGION..REGION:feature  what a run of regions returns, as in `down_blocks.1..up_blocks.1:feature`
"""

from __future__ import annotations

from dataclasses import dataclass

from festina.errors import FestinaError

OUTPUT, RESIDUAL, FEATURE = "output", "residual", "feature"

_REGION_LISTS = {"down_blocks": 0, "up_blocks": 2}
_REGIONS_ALONE = {"down_block": 0, "mid_block": 1, "up_block": 2}


@dataclass(frozen=True)
class SiteName:
    """A site name, taken apart.

    Attributes:
        text: the name.
        kind: value kind, "output", "residual" or "feature".
        first, last: paths of the first and the last module of the run; the same for a single module.
    """

    text: str
    kind: str
    first: str
    last: str

    def encloses(self, other: SiteName) -> bool:
        """Whether serving this site leaves the other one unvisited: it lies within, and is not the same."""
        if (self.first, self.last) == (other.first, other.last):
            return False
        return self._holds(other.first) and self._holds(other.last)

    def overlaps(self, other: SiteName) -> bool:
        """Whether two runs share modules without one holding the other."""
        if self.encloses(other) or other.encloses(self):
            return False
        return self._holds(other.first) or self._holds(other.last)

    def _holds(self, path: str) -> bool:
        if self.first == self.last:
            return path == self.first or path.startswith(f"{self.first}.")
        start, end = _place(self.first, self.kind), _place(self.last, self.kind)
        assert start is not None
        assert end is not None
        # The module in question is the beginning of the path that is as long as the run's own paths, or shorter.
        parts = path.split(".")
        places = [_place(".".join(parts[:length]), self.kind) for length in range(1, len(parts) + 1)]
        return any(place is not None and place[0] == start[0] and start <= place <= end for place in places)


def parse(name: str) -> SiteName:
    """Take a site name apart.

    Raises:
        FestinaError: it is no site name.
    """
    path, colon, kind = name.partition(":")
    first, dots, last = path.partition("..")
    kind = kind if colon else OUTPUT
    if kind not in (OUTPUT, RESIDUAL, FEATURE) or (colon and kind == OUTPUT) or not first or (dots and not last):
        raise FestinaError(
            f"{name!r} is no site name; wanted PATH, PATH:residual, LIST.I..J:residual, REGION:feature or "
            f"REGION..REGION:feature."
        )
    if not dots:
        return SiteName(name, kind, first, first)
    if kind == RESIDUAL:
        last = f"{first.rpartition('.')[0]}.{last}"
    start, end = _place(first, kind), _place(last, kind)
    if start is None or end is None or start[0] != end[0] or not start < end:
        raise FestinaError(f"{name!r} is no site name: {first!r} to {last!r} is no run of blocks in order.")
    return SiteName(name, kind, first, last)


def _place(path: str, kind: str) -> tuple[str, int, int] | None:
    """Where a block or region stands: its list (all regions of a U-Net are one), the region's part and the index."""
    parent, _, index = path.rpartition(".")
    if kind == RESIDUAL:
        return (parent, 0, int(index)) if parent and index.isdigit() else None
    if kind == FEATURE and path in _REGIONS_ALONE:
        return "", _REGIONS_ALONE[path], 0
    if kind == FEATURE and parent in _REGION_LISTS and index.isdigit():
        return "", _REGION_LISTS[parent], int(index)
    return None
