"""Serving a site: the forwards that stand in for its modules' own and compute or serve as the plan says."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from festina.executor.blending import read
from festina.executor.calls import Signature
from festina.executor.clock import StepClock
from festina.executor.gating import GateRun
from festina.executor.store import Store
from festina.forecasts import NEWTON
from festina.names import OUTPUT, RESIDUAL
from festina.plan import COMPUTE, GATED, PARTIAL
from festina.sites import Site

if TYPE_CHECKING:
    from festina.executor.tokens import TokenRun

Forward = Callable[..., Any]


@dataclass
class Column:
    """What the plan says of one site, and what happened.

    Attributes:
        site: the site.
        actions: its action in each step.
        held: how many of its last computed values are still needed after each step.
        basis: how its forecasts extrapolate, see `festina.forecasts`.
        shares: what share of its tokens it computes in each step; () if it never computes for some of them.
        computed, served: how often it ran and how often it was served in the current run, by signature of the call.
        partial: how often it ran for some tokens.
        tokens, passed: for how many of each row it did in all of these, and how many it passed by.
    """

    site: Site
    actions: str
    held: tuple[int, ...]
    basis: str = NEWTON
    shares: tuple[float, ...] = ()
    computed: Counter[Signature] = field(default_factory=Counter)
    served: Counter[Signature] = field(default_factory=Counter)
    partial: Counter[Signature] = field(default_factory=Counter)
    tokens: Counter[Signature] = field(default_factory=Counter)
    passed: Counter[Signature] = field(default_factory=Counter)
    _pass: int = -1
    _visits: int = 0

    @property
    def always_computes(self) -> bool:
        return set(self.actions) == {COMPUTE}

    def restart(self) -> None:
        """Another run begins: nothing has happened yet."""
        for counted in (self.computed, self.served, self.partial, self.tokens, self.passed):
            counted.clear()
        self._pass, self._visits = -1, 0

    def visit(self, clock: StepClock) -> str:
        """Key of this visit in the store: some denoisers send a call through the same block several times."""
        self._visits = self._visits + 1 if self._pass == clock.passes else 0
        self._pass = clock.passes
        return f"{self.site.name}#{self._visits}" if self._visits else self.site.name


def serving_forwards(
    modules: Sequence[nn.Module],
    column: Column,
    clock: StepClock,
    store: Store,
    gate: GateRun | None,
    tokens: TokenRun | None,
) -> tuple[Forward, ...]:
    """The forwards to put in the place of those of a site's modules, in their order."""
    # These two know how blocks and regions pass values on; neither is needed for components.
    from festina.executor.features import FeatureRun
    from festina.executor.residuals import ResidualRun

    if column.site.kind == OUTPUT:
        return (_output_forward(modules[0], column, clock, store, tokens if column.shares else None),)
    run: ResidualRun | FeatureRun
    if column.site.kind == RESIDUAL:
        run = ResidualRun(modules, column, clock, store, gate if GATED in column.actions else None)
    else:
        run = FeatureRun(modules, column, clock, store)
    return tuple(functools.wraps(module.forward)(run.forward(place)) for place, module in enumerate(modules))


def _output_forward(
    module: nn.Module, column: Column, clock: StepClock, store: Store, tokens: TokenRun | None
) -> Forward:
    """Value kind `output`: the module's raw output, before gate and residual addition (ECAD, section 1.3)."""
    original, actions, held = module.forward, column.actions, column.held

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if clock.passing:
            return original(*args, **kwargs)
        step, branch, key = clock.step, clock.branch, column.visit(clock)
        # The first call of a branch finds nothing to serve and computes, whatever the plan says.
        compute = actions[step] == COMPUTE
        value = None if compute else read(store.get(branch, key), actions[step], step, column.basis)
        if value is not None and tokens is not None and actions[step] == PARTIAL:
            value = tokens.renewed(column, key, value, original, args, kwargs)
            if value is not None:
                store.renew(branch, key, value, held[step])
                return value
        if value is None:
            column.computed[clock.signature] += 1
            value = original(*args, **kwargs)
            if held[step]:
                store.put(branch, key, step, value, held[step])
            if tokens is not None:
                tokens.forget(key)
        else:
            column.served[clock.signature] += 1
            store.trim(branch, key, held[step])
        return value

    return forward
