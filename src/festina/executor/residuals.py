"""Value kind `residual`: out - in of a block or of a run of blocks, one tensor per stream, added to the current input.

A run of blocks holds one value. When it is served, its blocks pass their input on, and the last one returns what came
into the first one plus the stored change; whatever the model adds between the blocks is part of that change. Where a
gate lets each row of a batch decide for itself, the blocks compute for all if one row wants it, and each row takes what
it decided for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from festina.errors import FestinaError
from festina.executor.blending import read
from festina.executor.clock import StepClock
from festina.executor.gating import GateRun
from festina.executor.serving import Column
from festina.executor.store import Store
from festina.plan import COMPUTE, GATED, SKIP

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

    def __init__(
        self, modules: Sequence[nn.Module], column: Column, clock: StepClock, store: Store, gate: GateRun | None
    ) -> None:
        self.column, self.clock, self.store, self.gate = column, clock, store, gate
        self.originals = [module.forward for module in modules]
        self.parameters = [_positional(original) for original in self.originals]
        self.forms: dict[int, Form] = {}
        self.key = ""
        self.entered: Streams = {}
        self.change: Any = None
        self.rows: Tensor | None = None
        self.serving = False

    def forward(self, place: int) -> Callable[..., Any]:
        """The forward of the block at this place of the run."""
        last = place == len(self.originals) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.clock.passing:
                return self.originals[place](*args, **kwargs)
            streams = _tensors(self.parameters[place], args, kwargs)
            if place == 0:
                self._decide(streams, lambda: self.originals[0](*args, **kwargs))
            if self.serving:
                return self._leave(place, streams) if last else self._wrapped(place, streams)
            after = self.originals[place](*args, **kwargs)
            self.forms[place] = self._form(after, streams)
            return self._remember(after) if last else after

        return forward

    def _decide(self, streams: Streams, peek: Callable[[], Any]) -> None:
        column, clock = self.column, self.clock
        self.key, self.entered = column.visit(clock), streams
        action, entries = column.actions[clock.step], self.store.get(clock.branch, self.key)
        self.change, self.rows = None, None
        if self.gate is not None and action in COMPUTE + GATED:
            serve = self.gate.decide(_main(streams), peek, bool(entries), action == GATED)
            if serve is not False and entries:
                self.change = self.gate.read(entries)
                self.rows = serve if isinstance(serve, Tensor) else None
        elif action not in COMPUTE + SKIP:
            self.change = read(entries, action, clock.step, column.basis)
        left_out = action == SKIP and len(self.forms) == len(self.originals)
        self.serving = left_out or (self.change is not None and self.rows is None)
        if self.serving:
            column.served[clock.signature] += 1
        else:
            column.computed[clock.signature] += 1

    def _remember(self, after: Any) -> Any:
        """Keep the change that the blocks made; returns what the last of them shall return."""
        form, entered, self.entered = self.forms[len(self.originals) - 1], self.entered, {}
        step = self.clock.step
        if self.gate is not None and self.column.actions[step] == COMPUTE:
            self.gate.note_computed()
        held = self.column.held[step]
        if not held:
            # What a gate might have served is read no more.
            self.store.trim(self.clock.branch, self.key, 0)
            if self.rows is None:
                return after
        parts = (after,) if form.container is None else after
        change = [
            part - self._stream(entered, name, part) if name else part
            for part, name in zip(parts, form.streams, strict=True)
        ]
        if self.rows is not None:
            change = [self._chosen(old, new) for old, new in zip(self.change, change, strict=True)]
            served = self._added(entered, self.change, form)
            after = form.wrap([self._chosen(old, new) for old, new in zip(served, parts, strict=True)])
            self.change = self.rows = None
        if held:
            self.store.put(self.clock.branch, self.key, step, tuple(change), held)
        return after

    def _chosen(self, served: Any, computed: Any) -> Any:
        """Of each row what was decided for it."""
        if not isinstance(computed, Tensor):
            return computed
        assert self.rows is not None
        if len(computed) != len(self.rows):
            raise FestinaError(
                f"{self.column.site.name}: rows decide for themselves, but a tensor of {len(computed)} rows belongs to "
                f"a call of {len(self.rows)}. Use the gate's decider 'call' for this model."
            )
        return torch.where(self.rows.view(-1, *(1 for _ in computed.shape[1:])), served, computed)

    def _added(self, entered: Streams, change: Any, form: Form) -> list[Any]:
        return [entered[name] + part if name else part for part, name in zip(change, form.streams, strict=True)]

    def _leave(self, place: int, streams: Streams) -> Any:
        entered, change, self.entered, self.change = self.entered, self.change, {}, None
        self.store.trim(self.clock.branch, self.key, self.column.held[self.clock.step])
        if change is None:
            return self._wrapped(place, streams)
        return self.forms[place].wrap(self._added(entered, change, self.forms[place]))

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


def _main(streams: Streams) -> Tensor:
    """What a gate looks at: the picture's stream, which the classes of diffusers call `hidden_states` or name first."""
    return streams["hidden_states"] if "hidden_states" in streams else next(iter(streams.values()))
