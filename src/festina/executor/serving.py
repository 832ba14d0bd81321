"""Serving a site: the forward that stands in for a module's own and computes or reuses as the plan says."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from festina.errors import FestinaError
from festina.executor.clock import StepClock
from festina.executor.store import Store, Value
from festina.plan import COMPUTE, SKIP
from festina.sites import Site

Forward = Callable[..., Any]


@dataclass
class Column:
    """What the plan says of one site, and what happened.

    Attributes:
        site: the site.
        actions: its action in each step.
        keeps: whether its value is still needed after each step.
        computed, served: how often it ran and how often it was served in the current run.
    """

    site: Site
    actions: str
    keeps: tuple[bool, ...]
    computed: int = 0
    served: int = 0

    @property
    def always_computes(self) -> bool:
        return set(self.actions) == {COMPUTE}


def serving_forward(module: nn.Module, column: Column, clock: StepClock, store: Store) -> Forward:
    """The forward to put in the place of `module.forward`."""
    if column.site.component is None:
        return _residual_forward(module, column, clock, store)
    return _output_forward(module, column, clock, store)


def _output_forward(module: nn.Module, column: Column, clock: StepClock, store: Store) -> Forward:
    """Value kind `output`: the module's raw output, before gate and residual addition (ECAD, section 1.3)."""
    original, name, actions, keeps = module.forward, column.site.name, column.actions, column.keeps

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        step, branch = clock.step, clock.branch
        # The first call of a branch finds nothing to serve and computes, whatever the plan says.
        value = None if actions[step] == COMPUTE else store.get(branch, name)
        if value is None:
            column.computed += 1
            value = original(*args, **kwargs)
            if keeps[step]:
                store.put(branch, name, value)
        else:
            column.served += 1
            if not keeps[step]:
                store.drop(branch, name)
        return value

    return forward


def _residual_forward(module: nn.Module, column: Column, clock: StepClock, store: Store) -> Forward:
    """Value kind `residual`: out - in of a block, one tensor per stream, added to the current input when served."""
    original, name, actions, keeps = module.forward, column.site.name, column.actions, column.keeps
    streams, parameters = column.site.streams, list(inspect.signature(original).parameters)

    def inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        found = (kwargs[name] if name in kwargs else args[parameters.index(name)] for name in streams)
        return tuple(found)

    def shaped(values: tuple[Tensor, ...]) -> Value:
        return values if len(streams) > 1 else values[0]

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        step, branch = clock.step, clock.branch
        before = inputs(args, kwargs)
        if actions[step] == SKIP:
            column.served += 1
            return shaped(before)
        residual = None if actions[step] == COMPUTE else store.get(branch, name)
        if residual is None:
            column.computed += 1
            after = original(*args, **kwargs)
            if keeps[step]:
                outputs = after if isinstance(after, tuple) else (after,)
                if any(out is None for out in outputs):
                    raise FestinaError(
                        f"{name}: this block returns nothing for one of {streams}; leave it out of the plan."
                    )
                store.put(branch, name, tuple(out - into for out, into in zip(outputs, before, strict=True)))
            return after
        column.served += 1
        if not keeps[step]:
            store.drop(branch, name)
        return shaped(tuple(into + change for into, change in zip(before, residual, strict=True)))

    return forward
