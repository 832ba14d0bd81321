"""Where a calibration looks: the modules of a denoiser, and what goes in and out of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from festina.calibration.record import CHANGES, DISTANCES, LAG_ERRORS, MAGNITUDES, MEASURES
from festina.errors import FestinaError
from festina.sites import Site, component_sites, deep_regions, first_attention, resolve, site_tree, stack_runs


@dataclass(frozen=True)
class Places:
    """Where to look.

    Attributes:
        measures: what is measured there.
        components: the component sites.
        stack: the runs of a transformer's stack; () of a U-Net.
        cut: what is served of a U-Net; None of a transformer.
        signal: path of the attention that is given the first block's modulated input; "" if there is none.
    """

    measures: tuple[str, ...]
    components: tuple[Site, ...]
    stack: tuple[Site, ...]
    cut: Site | None
    signal: str

    @property
    def feature(self) -> tuple[str, ...]:
        """Names of the sites whose value is compared between any two steps."""
        return tuple(site.name for site in (*self.stack, *((self.cut,) if self.cut else ())))

    @property
    def in_turns(self) -> bool:
        """Whether the blocks of two lists take turns, so that the picture's stream changes its form between them."""
        return len({site.stack for site in self.stack}) < len(self.stack)


def places_of(denoiser: nn.Module, measures: Collection[str] | None) -> Places:
    """Where to look in a denoiser for these measures; for all that it has if None.

    Raises:
        FestinaError: it has no sites, or not what a measure needs.
    """
    stack: tuple[Site, ...] = ()
    cut: Site | None = None
    signal = ""
    if site_tree(denoiser).regions:
        (cut,) = resolve(denoiser, (deep_regions(denoiser),))
    else:
        stack = resolve(denoiser, stack_runs(denoiser))
        signal = _signal_of(denoiser)
    there = {LAG_ERRORS: True, MAGNITUDES: bool(stack), CHANGES: bool(signal), DISTANCES: True}
    wanted = {name for name in MEASURES if there[name]} if measures is None else set(measures)
    if not wanted or wanted - set(MEASURES):
        raise FestinaError(f"cannot measure {sorted(wanted)}; wanted some of {', '.join(MEASURES)}.")
    if missing := sorted(name for name in wanted if not there[name]):
        raise FestinaError(
            f"{type(denoiser).__name__} has no {', '.join(missing)} to measure: these are of a stack of blocks with an "
            f"attention. Leave them out; what it has is {', '.join(name for name in MEASURES if there[name])}."
        )
    return Places(tuple(name for name in MEASURES if name in wanted), component_sites(denoiser), stack, cut, signal)


class Observer(Protocol):
    """What is told of everything that goes by."""

    def component(self, site: str, output: Any) -> None:
        """A component has run."""

    def entered(self, run: int, given: Tensor) -> None:
        """A run of the stack begins with this stream of the picture."""

    def left(self, run: int, after: Tensor) -> None:
        """A run of the stack has ended with this stream of the picture."""

    def signal(self, given: Tensor) -> None:
        """The first block's attention is given this."""

    def feature(self, output: Tensor) -> None:
        """The last region of a U-Net's deep part has returned this."""

    def ended(self, outputs: Sequence[Tensor]) -> None:
        """A call of the denoiser has ended with this prediction."""


@contextmanager
def listening(denoiser: nn.Module, places: Places, observer: Observer) -> Iterator[None]:
    """Tell an observer of everything it measures, by hooks that are taken off on leaving."""
    handles: list[Any] = []

    def after(path: str, hook: Callable[..., None]) -> None:
        handles.append(denoiser.get_submodule(path).register_forward_hook(hook, with_kwargs=True))

    def before(path: str, hook: Callable[..., None]) -> None:
        handles.append(denoiser.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))

    try:
        if LAG_ERRORS in places.measures:
            for site in places.components:
                after(site.path, _telling_output(site.name, observer))
        if {MAGNITUDES, DISTANCES} & set(places.measures):
            for number, site in enumerate(places.stack):
                enter, leave = _telling_ends(number, site, denoiser, observer)
                before(site.paths[0], enter)
                after(site.paths[-1], leave)
            if places.cut is not None:
                after(places.cut.paths[-1], _telling_feature(observer))
        if CHANGES in places.measures:
            before(places.signal, lambda module, args, kwargs: observer.signal(_main(module, args, kwargs)[1]))
        after("", lambda module, args, kwargs, output: observer.ended(_prediction(output)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of numbers in a value."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _signal_of(denoiser: nn.Module) -> str:
    try:
        return first_attention(denoiser)
    except FestinaError:
        return ""


def _telling_output(name: str, observer: Observer) -> Callable[..., None]:
    return lambda module, args, kwargs, output: observer.component(name, output)


def _telling_feature(observer: Observer) -> Callable[..., None]:
    return lambda module, args, kwargs, output: observer.feature(tensors_of(output)[0])


def _telling_ends(
    number: int, site: Site, denoiser: nn.Module, observer: Observer
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks for where a run of blocks begins and for where it ends."""
    given: list[tuple[str, Tensor]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[:] = [_main(module, args, kwargs)]
        observer.entered(number, given[0][1])

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name, entered = given.pop()
        observer.left(number, _stream(site, name, entered, output, denoiser))

    return enter, leave


def _main(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Tensor]:
    """Name and value of the argument that is the picture's stream: `hidden_states`, or the first tensor."""
    names = list(inspect.signature(module.forward).parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    name = "hidden_states" if "hidden_states" in tensors else next(iter(tensors))
    return name, tensors[name]


def _stream(site: Site, name: str, entered: Tensor, output: Any, denoiser: nn.Module) -> Tensor:
    """Of what the last block of a run returns, the new value of the stream that came into the first one."""
    parts = list(output) if isinstance(output, tuple | list) else [output]
    told = len(site.streams) == len(parts) and name in site.streams
    candidates = [parts[site.streams.index(name)]] if told else parts
    for part in candidates:
        if isinstance(part, Tensor) and part.shape == entered.shape:
            return part
    raise FestinaError(
        f"{site.name} of this {type(denoiser).__name__} returns nothing of the shape {tuple(entered.shape)} of its "
        f"{name!r}, so it has no residual. Calibrate without the measures {MAGNITUDES!r} and {DISTANCES!r}."
    )


def _prediction(output: Any) -> list[Tensor]:
    """What a denoiser predicts: the first of what it returns."""
    return tensors_of(output if isinstance(output, Tensor) else output[0])
