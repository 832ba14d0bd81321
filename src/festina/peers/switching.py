"""Running a pipeline by a peer, and taking the peer off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from festina.errors import FestinaError
from festina.executor.attach import denoisers_of
from festina.executor.scheduler import MARK
from festina.peers import hooks, others
from festina.peers.peer import Knobs, Method, Peer, PeerError, SwitchOff
from festina.peers.snapshot import Snapshot

METHODS = (*hooks.METHODS, *others.METHODS)


class Running:
    """A peer at work.

    Attributes:
        peer: the peer.
        attached: paths of the modules whose `forward` it replaced.
        left_behind: after it was taken off: what it had left on the pipeline that could change later pictures, and was
            put back here; with a note where switching it off failed.
    """

    def __init__(self, peer: Peer, attached: tuple[str, ...]) -> None:
        self.peer, self.attached = peer, attached
        self.left_behind: tuple[str, ...] = ()


def peers_for(pipe: Any, steps: int) -> tuple[Peer, ...]:
    """The peers that are installed and made for a pipeline of this kind, each with a small range of its knobs.

    Args:
        pipe: a diffusers pipeline.
        steps: how many steps it will make.

    Raises:
        FestinaError: `steps` is less than 1, or there is no denoiser in it.
    """
    if steps < 1:
        raise FestinaError(f"{steps} steps; wanted at least 1.")
    denoisers_of(pipe)
    installed = [method for method in METHODS if find_spec(method.module.partition(".")[0]) is not None]
    return tuple(_peer(method, knobs) for method in installed for knobs in method.settings(pipe, steps))


def peer_named(name: str, knobs: Knobs) -> Peer:
    """A peer by its name, with knobs under the peer's own names.

    Raises:
        FestinaError: no peer has this name, or it is not installed.
    """
    method = _method(name)
    if find_spec(method.module.partition(".")[0]) is None:
        raise FestinaError(f"{name} is not installed; pip install {method.package}.")
    return _peer(method, knobs)


@contextmanager
def running(pipe: Any, peer: Peer) -> Iterator[Running]:
    """Switch a peer on by its public interface, and off on exit, also after an exception.

    Whatever the peer leaves behind on the pipeline, on its class or on the modules of its denoisers is put back.

    Args:
        pipe: a diffusers pipeline.
        peer: one of `peers_for`, or made by `peer_named`.

    Raises:
        PeerError: the peer could not be switched on or attached to nothing, or something other than a `FestinaError`
            was raised while it was on.
        FestinaError: the pipeline runs by a plan or a cache already.
    """
    method, before = _method(peer.name), Snapshot(pipe)
    _check_free(before)
    state, touched = Running(peer, ()), set()
    off: SwitchOff | None = None
    try:
        off = _switched_on(pipe, peer, method)
        touched, state.attached = before.touched(), before.replaced()
        if not state.attached:
            raise PeerError(peer, f"attached to nothing in this {type(before.denoisers[0][1]).__name__}.")
        yield state
    except FestinaError:
        raise
    except Exception as error:
        raise PeerError(peer, f"broke during a run: {type(error).__name__}: {error}") from error
    finally:
        notes = _switched_off(off)
        state.left_behind = (*notes, *before.restore(touched or before.touched()))


def calibrated(pipe: Any, peer: Peer, render: Callable[[], object]) -> Peer:
    """The peer with what it has to measure on the pipeline first: the magnitude ratios of MagCache.

    MagCache prints its ratios at the end of a run in which it calibrates, and forgets them. They are read from its
    state after each call instead, and it is told of one step more, so that nothing is printed.

    Args:
        pipe: a diffusers pipeline.
        peer: any peer; those that measure nothing are returned as they are.
        render: makes one run of the pipeline, with as many steps as the peer is set to.

    Raises:
        PeerError: it broke, or measured another number of steps.
    """
    if peer.name != "MagCache" or peer.knobs.get("mag_ratios") is not None:
        return peer
    steps = peer.knobs["num_inference_steps"]
    measuring = _peer(_method(peer.name), {**peer.knobs, "calibrate": True, "num_inference_steps": steps + 1})
    with running(pipe, measuring):
        ratios = hooks.magnitude_ratios(pipe, render)
    if len(ratios) != steps:
        raise PeerError(peer, f"measured {len(ratios)} steps in a run that was to have {steps}.")
    return _peer(_method(peer.name), {**peer.knobs, "mag_ratios": ratios})


def _method(name: str) -> Method:
    for method in METHODS:
        if method.name == name:
            return method
    raise FestinaError(f"no peer {name!r}; there are {', '.join(method.name for method in METHODS)}.")


def _peer(method: Method, knobs: Knobs) -> Peer:
    return Peer(method.name, dict(knobs), method.package, version(method.package))


def _check_free(before: Snapshot) -> None:
    for _, denoiser in before.denoisers:
        if vars(denoiser).get(MARK) is not None:
            raise FestinaError("a plan is applied to this pipeline; call festina.remove first.")
        if getattr(denoiser, "is_cache_enabled", False):
            raise FestinaError("this denoiser runs with diffusers' own cache; call disable_cache() on it first.")


def _switched_on(pipe: Any, peer: Peer, method: Method) -> SwitchOff:
    try:
        return method.attach(pipe, peer.knobs)
    except Exception as error:
        raise PeerError(peer, f"could not be switched on: {type(error).__name__}: {error}") from error


def _switched_off(off: SwitchOff | None) -> tuple[str, ...]:
    """Switch off; a failure is told, not raised, for everything is put back anyway."""
    if off is None:
        return ()
    try:
        off()
    except Exception as error:
        return (f"switching it off failed ({type(error).__name__}: {error})",)
    return ()
