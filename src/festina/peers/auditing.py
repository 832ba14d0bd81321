"""What a peer does to a pipeline, found out by running it: whether it saves anything, repeats itself and goes away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from festina.executor.attach import denoisers_of
from festina.peers.peer import Peer
from festina.peers.switching import running


@dataclass(frozen=True)
class Audit:
    """What was seen in four runs from the same noise: without the peer, twice with it, and without it again.

    Attributes:
        attached: modules whose `forward` the peer replaced.
        calls_plain: calls of modules without children in the denoisers, in a run without the peer.
        calls: the same, in the first run with it.
        changes: whether the peer changes the result.
        repeats: whether the second run with it gives the same bits as the first.
        restores: whether the last run gives the same bits as the one before the peer.
        left_behind: see `festina.peers.Running`.
    """

    attached: int
    calls_plain: int
    calls: int
    changes: bool
    repeats: bool
    restores: bool
    left_behind: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a table should say about the peer, in sentences; () if all is as it should be."""
        left = ", ".join(self.left_behind)
        return tuple(
            note
            for holds, note in (
                (self.calls >= self.calls_plain, "left nothing out"),
                (not self.changes, "changed nothing"),
                (not self.repeats, "the second run differs from the first"),
                (bool(left), f"left behind: {left}"),
                (not self.restores, "the pipeline gives another result afterwards"),
            )
            if holds
        )


def audit(pipe: Any, peer: Peer, render: Callable[[], Tensor]) -> Audit:
    """Run a pipeline with and without a peer and compare.

    Args:
        pipe: a diffusers pipeline.
        peer: the peer, with everything it needs (see `festina.peers.calibrated`).
        render: makes one run of the pipeline from fixed noise; the same bits each time.

    Raises:
        PeerError: as `festina.peers.running`.
        FestinaError: the pipeline runs by a plan or a cache already.
    """
    plain, calls_plain = _counted(pipe, render)
    with running(pipe, peer) as state:
        first, calls = _counted(pipe, render)
        second = render()
    return Audit(
        len(state.attached),
        calls_plain,
        calls,
        not torch.equal(first, plain),
        torch.equal(second, first),
        torch.equal(render(), plain),
        state.left_behind,
    )


def _counted(pipe: Any, render: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What `render` gives, and how often modules without children were called in the denoisers."""
    count = 0

    def counting(*_: Any) -> None:
        nonlocal count
        count += 1

    leaves = [
        module for _, part in denoisers_of(pipe) for module in part.modules() if next(module.children(), None) is None
    ]
    handles = [leaf.register_forward_pre_hook(counting) for leaf in leaves]
    try:
        return render().clone(), count
    finally:
        for handle in handles:
            handle.remove()
