"""A gate at work: it takes its signal before the gated blocks and decides whether they are served.

The signal is what a plan's gate says (`festina.gates.Gate`). Blocks that are computed for it run anyway, so nothing is
computed twice; for the signal "input" the first gated block is entered as far as the component in question and left
again, which costs a norm and a modulation. What a gate remembers lies in the run's store, per branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.executor.blending import blend, prolonged, read
from festina.executor.clock import StepClock
from festina.executor.store import Entry, Store
from festina.forecasts import weights
from festina.gates import Gate
from festina.plan import REUSE

_SIGNAL, _INPUT, _PROBE = "gate:signal", "gate:input", "gate:probe"

Decision = Tensor | bool
"""Whether to serve: for all rows, or for each (bool (rows,))."""


class _SeenError(Exception):
    """The component whose input was wanted has been reached."""


@dataclass
class _Tally:
    """What has added up since the last computed step: changes, and steps served, of all rows or of each."""

    changes: Tensor | float = 0.0
    served: Tensor | int = 0


class GateRun:
    """The gate of a run.

    Args:
        gate: the gate.
        basis: how forecasts extrapolate.
        clock, store: those of the run.

    Attributes:
        asked: how often it has decided in this run; each time the host waits for the device.
    """

    def __init__(self, gate: Gate, basis: str, clock: StepClock, store: Store) -> None:
        self.gate, self.basis, self.clock, self.store = gate, basis, clock, store
        self.asked = 0
        self._tallies: dict[str, _Tally] = {}
        self._decided: tuple[int, Decision] = (-1, False)
        self._decided_step: tuple[int, Decision] = (-1, False)
        self._entered: Tensor | None = None
        self._residual: Tensor | None = None
        self._component_input: Tensor | None = None
        self._peeking = False

    def restart(self) -> None:
        """Another run begins, or this one is over."""
        self.asked = 0
        self._tallies.clear()
        self._decided = self._decided_step = (-1, False)
        self._entered = self._residual = self._component_input = None

    def fit(self, branch: str, how: Callable[[Any], Any]) -> None:
        """A branch goes on with some of its rows: what added up for each of them becomes what its values become."""
        if (tally := self._tallies.get(branch)) is not None:
            tally.changes, tally.served = how(tally.changes), how(tally.served)

    def tapping_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of the probe's first module, or of the component whose input is the signal."""

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.clock.passing:
                entered = _first_tensor(args, kwargs)
                if self.gate.signal == "input":
                    self._component_input = entered
                    if self._peeking:
                        raise _SeenError
                else:
                    self._entered = entered
            return original(*args, **kwargs)

        return forward

    def decide(self, given: Tensor, peek: Callable[[], Any], ready: bool, asked: bool) -> Decision:
        """Whether the gated sites are served in the present call. All of them get the same answer.

        Args:
            given: what the first gated block was given.
            peek: runs that block, for the signal "input".
            ready: whether there is something to serve.
            asked: whether the plan leaves it to the gate; otherwise the sites compute, and the gate takes note.
        """
        if self._decided[0] == self.clock.calls:
            return self._decided[1]
        follows = self.gate.decider == "first-call" and self._decided_step[0] == self.clock.step
        serve: Decision = False
        if follows:
            serve = self._decided_step[1] if ready and asked else False
        elif asked or self.gate.signal != "input":
            serve = self._judge(self._signal(given, peek), given, ready and asked)
        self._entered = None
        self._decided = self.clock.calls, serve
        if not follows:
            self._decided_step = self.clock.step, serve
        return serve

    def note_computed(self) -> None:
        """The gated blocks have computed in a step that was not the gate's; the signal "input" is known only now."""
        if self.gate.signal == "input" and self._component_input is not None:
            self._remember(self._component_input, self._component_input, False)
            self._tallies[self.clock.branch] = _Tally()
            self._component_input = None

    def read(self, entries: tuple[Entry, ...]) -> Any:
        """What a gated site with these stored values is served."""
        if self.gate.stretch:
            return self._stretched(entries)
        order = str(self.gate.order) if self.gate.order else REUSE
        return read(entries, order, self.clock.step, self.basis)

    def _stretched(self, entries: tuple[Entry, ...]) -> Any:
        """The last value, prolonged by as much as the probe's residual has gone beyond its own (DiCache)."""
        probes = self.store.get(self.clock.branch, _PROBE)
        if len(entries) < 2 or len(probes) < 2 or self._residual is None:
            return entries[0].value
        latest, before = probes[0].value, probes[1].value
        least, largest = self.gate.stretch
        factor = _mean(self._residual - before) / _mean(latest - before)
        # Where the probe did not move at all, there is nothing to prolong.
        factor = torch.nan_to_num(factor, nan=1.0).clamp(least, largest)
        return prolonged(entries[0].value, entries[1].value, factor)

    def _signal(self, given: Tensor, peek: Callable[[], Any]) -> Tensor:
        gate = self.gate
        if gate.signal == "input":
            return self._peek(peek)
        if self._entered is None or self._entered.shape != given.shape:
            raise FestinaError(
                f"the gate's probe {gate.probe!r} did not run right before the gated blocks in this call, so there is "
                f"no signal. Give a run of blocks that ends where the gated ones begin."
            )
        self._residual = given - self._entered if gate.signal == "residual" or gate.stretch else None
        if gate.signal == "residual":
            assert self._residual is not None
            return self._residual
        return given

    def _peek(self, peek: Callable[[], Any]) -> Tensor:
        self._peeking = True
        try:
            peek()
        except _SeenError:
            pass
        finally:
            self._peeking = False
        if self._component_input is None:
            raise FestinaError(f"the gate's probe {self.gate.probe!r} is not called by the first gated block.")
        signal, self._component_input = self._component_input, None
        return signal

    def _judge(self, signal: Tensor, given: Tensor, asked: bool) -> Decision:
        gate, branch = self.gate, self.clock.branch
        tally = self._tallies.setdefault(branch, _Tally())
        before = self.store.get(branch, _SIGNAL)
        serve: Decision = False
        if asked and before and before[0].value.shape == signal.shape:
            self.asked += 1
            tally.changes = self._change(signal, before) + (tally.changes if gate.summed else 0.0)
            close = tally.changes < gate.threshold
            short = tally.served < gate.longest if gate.longest else True
            serve = self._answer(close & short)
        self._remember(signal, given, serve)
        computed = ~serve if isinstance(serve, Tensor) else not serve
        if isinstance(computed, Tensor):
            tally.changes = torch.where(computed, 0.0, torch.as_tensor(tally.changes))
            tally.served = torch.where(computed, 0, torch.as_tensor(tally.served) + 1)
        else:
            tally.changes = 0.0 if computed else tally.changes
            tally.served = 0 if computed else tally.served + 1
        return serve

    def _answer(self, close: Tensor | bool) -> Decision:
        if self.gate.decider != "row" or not isinstance(close, Tensor):
            return bool(close)
        # Rows are told apart only if they differ, so that nothing is mixed where nothing has to be.
        return bool(close[0]) if bool((close == close[0]).all()) else close

    def _change(self, signal: Tensor, before: tuple[Entry, ...]) -> Tensor:
        gate, rows = self.gate, self.gate.decider == "row"
        if gate.reference == "forecast":
            used = before[: gate.order + 1]
            steps = tuple(entry.step for entry in used)
            expected = blend([entry.value for entry in used], weights(self.basis, steps, self.clock.step))
            change = relative_change(self._part(signal), self._part(expected), rows)
        else:
            change = relative_change(self._part(before[0].value), self._part(signal), rows)
        if gate.beyond_input:
            (was,) = self.store.get(self.clock.branch, _INPUT)
            assert self._entered is not None
            change = (change - relative_change(self._part(was.value), self._part(self._entered), rows)).abs()
        if gate.curve:
            total = torch.zeros_like(change)
            for coefficient in gate.curve:
                total = total * change + coefficient
            change = total.clamp(min=0)
        return change

    def _part(self, signal: Tensor) -> Tensor:
        if self.gate.decider != "second-half":
            return signal
        if len(signal) % 2:
            raise FestinaError(
                f"the gate decides by the second half of the rows, and a call has {len(signal)}. Use the decider "
                f"'call', or a pipeline that guides in one call."
            )
        return signal[len(signal) // 2 :]

    def _remember(self, signal: Tensor, given: Tensor, serve: Decision) -> None:
        gate, branch, step = self.gate, self.clock.branch, self.clock.step
        if gate.reference == "previous":
            self.store.put(branch, _SIGNAL, step, signal)
        elif isinstance(serve, Tensor):
            (was,) = self.store.get(branch, _SIGNAL)
            kept = serve.view(-1, *(1 for _ in signal.shape[1:]))
            self.store.put(branch, _SIGNAL, step, torch.where(kept, was.value, signal))
        elif not serve:
            self.store.put(branch, _SIGNAL, step, signal, gate.order + 1)
        if gate.beyond_input:
            self.store.put(branch, _INPUT, step, self._entered)
        if gate.stretch and serve is False:
            self.store.put(branch, _PROBE, step, self._residual, 2)


def relative_change(reference: Tensor, value: Tensor, rows: bool) -> Tensor:
    """mean|value - reference| / mean|reference|: one number, or one per row. No change at all is 0, also from zero."""
    over = tuple(range(1, value.ndim)) if rows else tuple(range(value.ndim))
    moved = (value - reference).abs().float().mean(over)
    return torch.where(moved == 0, 0.0, moved / reference.abs().float().mean(over))


def _mean(tensor: Tensor) -> Tensor:
    return tensor.abs().float().mean()


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    given = kwargs.get("hidden_states")
    if isinstance(given, Tensor):
        return given
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
