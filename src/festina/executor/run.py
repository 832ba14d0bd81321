"""A plan attached to a denoiser: its clock, its store, and the report of what ran."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from festina.errors import FestinaError
from festina.executor.ahead import Ahead
from festina.executor.branches import Branch, Branches, Denoisers
from festina.executor.calls import Leaves, Signature, entry_given, leaves_of, parameter_names
from festina.executor.clock import StepClock
from festina.executor.compiled import uncompiled
from festina.executor.gating import GateRun
from festina.executor.guidance import GuidanceRun
from festina.executor.injection import Injection
from festina.executor.layout import Layout
from festina.executor.replay import Replay
from festina.executor.report import CallRecord, RunReport, price, price_of_others, told
from festina.executor.serving import Column
from festina.executor.store import Store
from festina.executor.tokens import TokenRun
from festina.plan import COMPUTE, SKIP, Plan
from festina.trace import Call

if TYPE_CHECKING:
    from festina.executor.teleporting import Teleport


class Run:
    """A plan at work on one denoiser, or on the several of one pipeline. Made by `apply`; also the explicit clock of a
    denoiser without a pipeline.

    Attributes:
        plan: the plan, in canonical form.
        clock: the step clock.
        store: what is kept between steps; empty between runs.
        gate: the plan's gate at work; None if it has none.
        tokens: the plan's choice of tokens at work; None if it has none.
        injection: adds initial noise to the latents where the plan says so.
        calls: the first call with tensors of certain shapes, by these shapes, of the current or the last run.
        before_start: called before each run: whether everything is still in its place.
        revise: makes of the guided output that a scheduler is given in a step what it steps with; None leaves it. For
            calibrations.
        teleport: carries the first sample to the level at which the plan's solver begins; None leaves it.
    """

    def __init__(
        self,
        plan: Plan,
        denoiser: nn.Module,
        columns: tuple[Column, ...],
        pipeline: Any = None,
        models: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        self.plan = plan
        self.columns = columns
        self.clock = StepClock(len(plan.steps))
        self.store = Store()
        self.gate = None if plan.gate is None else GateRun(plan.gate, plan.basis, self.clock, self.store)
        self.tokens: TokenRun | None = None
        if plan.tokens is not None:
            self.tokens = TokenRun(plan, uncompiled(denoiser), columns, self.clock, self.store)
        self.injection = Injection([step.injected for step in plan.steps])
        self.calls: dict[Signature, CallRecord] = {}
        self.before_start: Callable[[], None] = lambda: None
        self.revise: Callable[[Any], Any] | None = None
        self.teleport: Teleport | None = None
        self._denoiser, self._models = denoiser, models
        self._others: dict[str, dict[Signature, CallRecord]] = {}
        self._names = parameter_names(denoiser)
        self._guidance = GuidanceRun(plan, self.clock, self.store, Layout(pipeline, self._names[0]), self.gate)
        self._ahead = Ahead(plan, columns, self._names, self.clock, self.store)
        self._replay = Replay(plan, self.clock, self.store)
        self._branches = Branches()
        self._used = Denoisers()
        self._schedule: Tensor | None = None
        self._began = self._seconds = 0.0
        self._steps_done = 0

    def start(self, steps: int, made_by: str = "", schedule: Tensor | None = None) -> None:
        """Begin a run with an empty store.

        Args:
            steps: steps it makes from pure noise to the picture.
            made_by: where this number comes from, in words.
            schedule: the sampler's timesteps, if it is not sure that the run begins with their first.

        Raises:
            FestinaError: the plan has another number of steps, or a part of the denoiser was exchanged or compiled in
                a way that the plan cannot follow.
        """
        self.abort()
        self.before_start()
        self.clock.start(steps, made_by)
        self.store.clear_peak()
        self.calls.clear()
        self._others.clear()
        self._steps_done = 0
        for column in (*self.columns, *(self.tokens.maps if self.tokens else ())):
            column.restart()
        self._schedule = schedule
        self._ahead.begin(schedule)
        if schedule is not None:
            # Nothing is known of where it begins: the step behind the plan's last computes and keeps everything.
            self.clock.first, self.clock.step = None, steps
        self._began = time.perf_counter()

    def begin_at(self, step: int) -> None:
        """Say that the run begins at this step of the plan; not once the denoiser has been called.

        Raises:
            FestinaError: the plan has no such step.
        """
        if not self.clock.running or self.clock.calls:
            return
        if not 0 <= step < self.clock.steps:
            raise FestinaError(f"a run that begins at step {step}; the plan has the steps 0 to {self.clock.steps - 1}.")
        # A site that is left out in this step computes all the same: the first step of a run computes everything.
        skips = step > 0 and any(column.actions[step] == SKIP for column in self.columns)
        self.clock.first, self.clock.step = step, self.clock.steps if skips else step

    def stepped_on(self, sample: Any) -> None:
        """Say which latents the sampler is given in the first step of a run; before that step ends.

        Raises:
            FestinaError: guidance was changed in a step in which there was none (see
                `festina.executor.guidance.GuidanceRun.stepped_on`).
        """
        self.injection.begin(sample)
        self._guidance.stepped_on(sample)

    def next_step(self, step: int = 0, result: Any = None) -> Any:
        """End the current step; after the last one the run is over and the store empty.

        Args:
            step: which step of the plan it was, where the run could not know before it ended.
            result: what the scheduler returned for it.

        Returns:
            what the scheduler shall return.
        """
        if not self.clock.running:
            return result
        if self.clock.step == self.clock.steps:
            self.clock.first = step if self.clock.first is None else self.clock.first
            self.clock.step = self.clock.first
            self.store.renumber(self.clock.steps, self.clock.first)
            self._drop_unread(self.clock.first)
        result = self.injection.after(self.clock.step, result)
        if self.tokens is not None:
            self.tokens.end_step(self._branches.names())
        self._steps_done += 1
        finished = self.clock.next_step()
        self._branches.end_step()
        self._used.end_step()
        self._seconds = time.perf_counter() - self._began
        if finished:
            self.abort()
        return result

    def abort(self) -> None:
        """End the run wherever it is and empty the store."""
        self.clock.stop()
        self.store.clear()
        self._branches.clear()
        self._used.clear()
        if self.gate is not None:
            self.gate.restart()
        self._guidance.restart()
        self.injection.clear()
        self._ahead.begin(None)
        self._schedule = None

    def release(self) -> None:
        """End the run and let go of the tensors it was given, but for what a report needs."""
        self.abort()
        for records in (self.calls, *self._others.values()):
            for record in records.values():
                record.lighten()

    def call(
        self,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        denoiser: int = 0,
        name: str = "",
    ) -> Any:
        """Answer a call of the denoiser with these arguments; they decide its branch and its price.

        Args:
            original: the denoiser's own forward.
            args, kwargs: the arguments.
            denoiser: which of the pipeline's denoisers it is.
            name: name of that denoiser, "" for the first.

        Raises:
            FestinaError: no run is under way.
        """
        leaves = leaves_of(self._names, args, kwargs)
        self._begin_call(leaves, denoiser, name)
        if self.teleport is not None and self.teleport.due(self.clock):
            args, kwargs = self.teleport.of_call(self._names, args, kwargs)
            leaves = leaves_of(self._names, args, kwargs)
        self._record(Call(args, kwargs)).asked += 1

        def compute(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = Call(args, kwargs)
            self.clock.signature = run.signature
            self.clock.passes += 1
            if model := self._model():
                self._others.setdefault(model, {}).setdefault(run.signature, CallRecord(run)).count += 1
                return self._models[model](*args, **kwargs)
            self._record(run).count += 1
            return original(*args, **kwargs)

        def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._replay.answer(functools.partial(self._ahead.answer, compute), args, kwargs)

        return self._guidance.answer(answer, args, kwargs, leaves, self._used.of(denoiser))

    def _model(self) -> str:
        """Name of the denoiser that is called in the present step, "" for the pipeline's own: that one too where it is
        not known yet in which step a run began."""
        return self.plan.steps[self.clock.step].model if self.clock.step < len(self.plan.steps) else ""

    def _begin_call(self, leaves: Leaves, denoiser: int, name: str) -> None:
        self._find_place(leaves)
        self.clock.begin_call()
        for left in self._used.call(denoiser):
            self.store.drop_branch(left)
        group, context, step = f"{name}/" if name else "", self.clock.context, self.clock.step
        branch = self._branches.of_call(
            f"{group}{context or 'call'}", context is not None, self._names[0], leaves, step
        )
        self._used.add(denoiser, branch.name)
        if branch.stale:
            # Another batch, resolution or conditioning in the middle of a run: what was stored for it fits no more.
            self.store.drop_branch(branch.name)
            branch.stale = False
        else:
            self._drop_overtaken(branch, step)
        branch.last_step = step
        self.clock.branch = branch.name

    def _find_place(self, leaves: Leaves) -> None:
        """See by the timestep that a call is given in which step it is made, if that can be seen."""
        if self._schedule is None or not self.clock.running or self._used.any_now():
            return
        entry = entry_given(self._schedule, leaves.values())
        if entry is None:
            return
        if not self.clock.calls and self.clock.first is None:
            self.begin_at(entry)
        elif self.clock.ended and entry == self.clock.step - 1:
            raise FestinaError(
                f"the denoiser is called for step {entry}, which the scheduler has ended: this pipeline makes a step "
                f"for each part of a picture by itself. No plan can be run on it; call festina.remove."
            )

    def _record(self, call: Call) -> CallRecord:
        return self.calls.setdefault(call.signature, CallRecord(call))

    def _drop_overtaken(self, branch: Branch, step: int) -> None:
        """Forget what a branch would have computed anew in the steps in which it was not called."""
        last = self.clock.first if branch.last_step == self.clock.steps else branch.last_step
        if last is None or step - last < 2 or step == self.clock.steps:
            return
        called = [place for place in range(last + 1, step) if self.plan.steps[place].visits]
        for column in self.columns:
            if any(column.actions[place] == COMPUTE for place in called):
                self.store.trim_visits(branch.name, column.site.name, 0)

    def _drop_unread(self, step: int) -> None:
        """Forget what no step after this one reads."""
        for column in self.columns:
            for branch in self._branches.names():
                self.store.trim_visits(branch, column.site.name, column.held[step])
        self._replay.begun_at(step, self._branches.names())
        self._guidance.difference.begun_at(step, self._branches.names())

    def report(self) -> RunReport:
        """What the last run did; during a run, what it did so far. Traces one call of each shape for its price.

        Raises:
            FestinaError: a call cannot be priced.
        """
        self.clock.passing = True
        try:
            spent = price(self._denoiser, self.calls, self.columns, self.tokens.maps if self.tokens else ())
            others = sum(price_of_others(self._models[name], records) for name, records in self._others.items())
        finally:
            self.clock.passing = False
        # A site that always computes is not wrapped, so nobody counted it.
        computed = {
            column.site.name: spent.visits[column.site.name] if column.always_computes else column.computed.total()
            for column in self.columns
        }
        return RunReport(
            self._steps_done,
            self.clock.calls,
            self._seconds,
            computed,
            {column.site.name: column.served.total() for column in self.columns},
            self.store.peak_bytes,
            spent.macs + others,
            spent.macs_uncached,
            {shapes: record.count for shapes, record in self.calls.items() if record.count},
            {column.site.name: column.partial.total() for column in self.columns if column.shares},
            {column.site.name: column.tokens.total() for column in self.columns if column.shares},
            {name: sum(record.count for record in records.values()) for name, records in self._others.items()},
        )

    def summary(self) -> str:
        """The report in a few lines."""
        return told(self.plan.method, self.report())
