"""Serving a site: the forwards that stand in for its modules' own and compute or reuse as the plan says."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from festina.executor.calls import Signature
from festina.executor.clock import StepClock
from festina.executor.store import Store
from festina.names import OUTPUT, RESIDUAL
from festina.plan import COMPUTE
from festina.sites import Site

Forward = Callable[..., Any]


@dataclass
class Column:
    """What the plan says of one site, and what happened.

    Attributes:
        site: the site.
        actions: its action in each step.
        keeps: whether its value is still needed after each step.
        computed, served: how often it ran and how often it was served in the current run, by signature of the call.
    """

    site: Site
    actions: str
    keeps: tuple[bool, ...]
    computed: Counter[Signature] = field(default_factory=Counter)
    served: Counter[Signature] = field(default_factory=Counter)
    _call: int = -1
    _visits: int = 0

    @property
    def always_computes(self) -> bool:
        return set(self.actions) == {COMPUTE}

    def restart(self) -> None:
        """Another run begins: nothing has happened yet."""
        self.computed.clear()
        self.served.clear()
        self._call, self._visits = -1, 0

    def visit(self, clock: StepClock) -> str:
        """Key of this visit in the store: some denoisers send a call through the same block several times."""
        self._visits = self._visits + 1 if self._call == clock.calls else 0
        self._call = clock.calls
        return f"{self.site.name}#{self._visits}" if self._visits else self.site.name


def serving_forwards(
    modules: Sequence[nn.Module], column: Column, clock: StepClock, store: Store
) -> tuple[Forward, ...]:
    """The forwards to put in the place of those of a site's modules, in their order."""
    # These two know how blocks and regions pass values on; neither is needed for components.
    from festina.executor.features import FeatureRun
    from festina.executor.residuals import ResidualRun

    if column.site.kind == OUTPUT:
        return (_output_forward(modules[0], column, clock, store),)
    run = (ResidualRun if column.site.kind == RESIDUAL else FeatureRun)(modules, column, clock, store)
    return tuple(functools.wraps(module.forward)(run.forward(place)) for place, module in enumerate(modules))


def _output_forward(module: nn.Module, column: Column, clock: StepClock, store: Store) -> Forward:
    """Value kind `output`: the module's raw output, before gate and residual addition (ECAD, section 1.3)."""
    original, actions, keeps = module.forward, column.actions, column.keeps

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if clock.passing:
            return original(*args, **kwargs)
        step, branch, key = clock.step, clock.branch, column.visit(clock)
        # The first call of a branch finds nothing to serve and computes, whatever the plan says.
        value = None if actions[step] == COMPUTE else store.get(branch, key)
        if value is None:
            column.computed[clock.signature] += 1
            value = original(*args, **kwargs)
            if keeps[step]:
                store.put(branch, key, value)
        else:
            column.served[clock.signature] += 1
            if not keeps[step]:
                store.drop(branch, key)
        return value

    return forward
