"""Value kind `residual`: out - in of a block or of a run of blocks, one tensor per stream, added to the current input.

A run of blocks holds one value. When it is served, its blocks pass their input on, and the last one returns what came
into the first one plus the stored change; whatever the model adds between the blocks is part of that change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from festina.errors import FestinaError
from festina.executor.clock import StepClock
from festina.executor.serving import Column
from festina.executor.store import Store
from festina.plan import COMPUTE, SKIP

Streams = dict[str, Tensor]
"""The tensors a block was given, by argument name."""


@dataclass(frozen=True)
class Form:
    """How a block returns its streams.

    Attributes:
        container: what it wraps them in: None for a bare tensor, else `tuple` or `list`.
        streams: argument name of each part; None for a part that is no tensor, such as a stream that ends here, and ""
            for one that is the new value of no argument and is kept as it is.
    """

    container: type | None
    streams: tuple[str | None, ...]

    def wrap(self, values: Sequence[Tensor | None]) -> Any:
        """The values as the block returns them."""
        return values[0] if self.container is None else self.container(values)


class ResidualRun:
    """Serves one block, or a run of consecutive ones."""

    def __init__(self, modules: Sequence[nn.Module], column: Column, clock: StepClock, store: Store) -> None:
        self.column, self.clock, self.store = column, clock, store
        self.originals = [module.forward for module in modules]
        self.parameters = [_positional(original) for original in self.originals]
        self.forms: dict[int, Form] = {}
        self.key = ""
        self.entered: Streams = {}
        self.change: Any = None
        self.serving = False

    def forward(self, place: int) -> Callable[..., Any]:
        """The forward of the block at this place of the run."""
        last = place == len(self.originals) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.clock.passing:
                return self.originals[place](*args, **kwargs)
            streams = _tensors(self.parameters[place], args, kwargs)
            if place == 0:
                self._decide(streams)
            if self.serving:
                return self._leave(place, streams) if last else self._wrapped(place, streams)
            after = self.originals[place](*args, **kwargs)
            self.forms[place] = self._form(after, streams)
            if last:
                self._remember(after)
            return after

        return forward

    def _decide(self, streams: Streams) -> None:
        column, step = self.column, self.clock.step
        self.key, self.entered = column.visit(self.clock), streams
        action = column.actions[step]
        self.change = None if action in (COMPUTE, SKIP) else self.store.get(self.clock.branch, self.key)
        self.serving = self.change is not None or (action == SKIP and len(self.forms) == len(self.originals))
        if self.serving:
            column.served[self.clock.signature] += 1
        else:
            column.computed[self.clock.signature] += 1

    def _remember(self, after: Any) -> None:
        form, entered, self.entered = self.forms[len(self.originals) - 1], self.entered, {}
        if not self.column.keeps[self.clock.step]:
            return
        parts = (after,) if form.container is None else after
        change = [
            part - self._stream(entered, name, part) if name else part
            for part, name in zip(parts, form.streams, strict=True)
        ]
        self.store.put(self.clock.branch, self.key, tuple(change))

    def _leave(self, place: int, streams: Streams) -> Any:
        entered, change, self.entered, self.change = self.entered, self.change, {}, None
        if not self.column.keeps[self.clock.step]:
            self.store.drop(self.clock.branch, self.key)
        if change is None:
            return self._wrapped(place, streams)
        form = self.forms[place]
        values = [entered[name] + part if name else part for part, name in zip(change, form.streams, strict=True)]
        return form.wrap(values)

    def _wrapped(self, place: int, streams: Streams) -> Any:
        """The input, as the block would return it."""
        form = self.forms[place]
        if "" in form.streams:
            raise FestinaError(
                f"{self.column.site.name}: one of these blocks returns something that it was not given, so it cannot "
                f"be passed over; take the blocks one by one, and only compute and reuse them."
            )
        return form.wrap([None if name is None else streams[name] for name in form.streams])

    def _form(self, after: Any, streams: Streams) -> Form:
        """Which argument each returned part is the new value of.

        Raises:
            FestinaError: neither the row nor the shapes tell.
        """
        container = type(after) if isinstance(after, tuple | list) else None
        parts = (after,) if container is None else tuple(after)
        told = self.column.site.streams
        tensors = [part for part in parts if isinstance(part, Tensor)]
        names: list[str | None] = []
        for index, part in enumerate(parts):
            if not isinstance(part, Tensor):
                names.append(None)
            elif len(told) == len(parts):
                names.append(told[index])
                if told[index]:
                    self._stream(streams, told[index], part)
            else:
                fitting = [name for name, tensor in streams.items() if tensor.shape == part.shape]
                if not fitting or (len(fitting) > 1 and len(tensors) > 1):
                    raise self._unclear(f"part {index} of what it returns", fitting)
                names.append(fitting[0])
        return Form(container, tuple(names))

    def _stream(self, streams: Streams, name: str, after: Tensor) -> Tensor:
        if name not in streams or streams[name].shape != after.shape:
            raise self._unclear(f"what it returns for {name!r}", list(streams))
        return streams[name]

    def _unclear(self, what: str, fitting: list[str]) -> FestinaError:
        site = self.column.site
        return FestinaError(
            f"{site.name} has no residual: {what} could be a new value of {', '.join(fitting) or 'none of its inputs'}."
            f" Leave the site out of the plan, or say which arguments the blocks change: "
            f"festina.sites.Stack({site.stack!r}, streams=(...)); see docs/adding_a_model.md."
        )


def _positional(forward: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, parameter in inspect.signature(forward).parameters.items() if parameter.kind in kinds)


def _tensors(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
    named = {**dict(zip(parameters, args, strict=False)), **kwargs}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}
