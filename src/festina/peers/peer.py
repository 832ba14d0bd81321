"""What a peer is: another library's acceleration with its knobs, and how it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from festina.errors import FestinaError

Knobs = Mapping[str, Any]
"""Settings of a peer under the peer's own names: numbers, texts, None, and sequences of these."""

SwitchOff = Callable[[], None]


@dataclass(frozen=True)
class Peer:
    """Another library's acceleration, with the settings of one run.

    Attributes:
        name: the peer's own name for it, e.g. "FirstBlockCache".
        knobs: its settings, under its own names.
        package: the distribution it comes in.
        version: of that distribution.
    """

    name: str
    knobs: Knobs
    package: str
    version: str

    @property
    def label(self) -> str:
        """Name and settings in one line, for tables: short sequences are shown, of long ones the length."""
        return " ".join([self.name, *(f"{name}={_shown(value)}" for name, value in self.knobs.items())])


class PeerError(FestinaError):
    """A peer could not be switched on, attached to nothing, or broke during a run; the message ends with its own.

    Attributes:
        peer: the peer.
    """

    def __init__(self, peer: Peer, what: str) -> None:
        super().__init__(f"{peer.name} ({peer.package} {peer.version}) {what}")
        self.peer = peer


@dataclass(frozen=True)
class Method:
    """How a peer is used.

    Attributes:
        name: see `Peer.name`.
        package: the distribution it comes in.
        module: what is imported from it; the peer is installed if that can be.
        settings: knobs worth a row in a table, for a pipeline and a number of steps; none where the peer is not made
            for the pipeline.
        attach: switches it on by its public interface; returns what switches it off.
    """

    name: str
    package: str
    module: str
    settings: Callable[[Any, int], Iterable[Knobs]]
    attach: Callable[[Any, Knobs], SwitchOff]


def _shown(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return str(value)
    if all(item in (0, 1) for item in value):
        return "".join(str(int(item)) for item in value)
    return ",".join(map(str, value)) if len(value) <= 3 else f"({len(value)} values)"
