"""A plan attached to a denoiser: its clock, its store, and the report of what ran."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from festina.cost import mac_table
from festina.executor.clock import StepClock
from festina.executor.serving import Column
from festina.executor.store import Store
from festina.layers import Shape
from festina.plan import Plan


@dataclass(frozen=True)
class RunReport:
    """What happened in the last run.

    Attributes:
        steps: steps that ended.
        calls: calls of the denoiser.
        seconds: wall seconds from the start of the run to the end of its last step.
        computed, served: how often each site ran and how often it was served, by site name.
        peak_bytes: most bytes the store held at once.
        macs: multiply-accumulates of the denoiser, attention products included.
        macs_uncached: what the same calls cost with everything computed.
        shapes: how many calls had which batch and numbers of tokens.
    """

    steps: int
    calls: int
    seconds: float
    computed: Mapping[str, int]
    served: Mapping[str, int]
    peak_bytes: int
    macs: int
    macs_uncached: int
    shapes: Mapping[Shape, int]


class Run:
    """A plan at work on one denoiser. Made by `apply`; also the explicit clock of a denoiser without a pipeline.

    Attributes:
        plan: the plan, in canonical form.
        clock: the step clock.
        store: what is kept between steps; empty between runs.
    """

    def __init__(self, plan: Plan, denoiser: nn.Module, columns: tuple[Column, ...]) -> None:
        self.plan = plan
        self.columns = columns
        self.clock = StepClock(len(plan.steps))
        self.store = Store()
        self._denoiser = denoiser
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._priced: dict[Shape, int] = {}
        self._began = self._seconds = 0.0
        self._steps_done = 0

    def start(self, steps: int) -> None:
        """Begin a run of `steps` steps with an empty store.

        Raises:
            FestinaError: the plan has another number of steps.
        """
        self.abort()
        self.clock.start(steps)
        self.store.clear_peak()
        self._priced.clear()
        self._steps_done = 0
        for column in self.columns:
            column.computed = column.served = 0
        self._began = time.perf_counter()

    def next_step(self) -> None:
        """End the current step; after the last one the run is over and the store empty."""
        if not self.clock.running:
            return
        self._steps_done += 1
        finished = self.clock.next_step()
        self._seconds = time.perf_counter() - self._began
        if finished:
            self.abort()

    def abort(self) -> None:
        """End the run wherever it is and empty the store."""
        self.clock.stop()
        self.store.clear()
        self._shapes.clear()

    def begin_call(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> None:
        """Take note of a call of the denoiser with these inputs; they decide its branch and its price.

        Raises:
            FestinaError: no run is under way.
        """
        branch = self.clock.begin_call()
        shape = tuple(hidden_states.shape)
        if self._shapes.setdefault(branch, shape) != shape:
            # Another batch or resolution in the middle of a run: what was stored for it fits no more.
            self.store.drop_branch(branch)
            self._shapes[branch] = shape
        priced = call_shape(self._denoiser, hidden_states, encoder_hidden_states)
        self._priced[priced] = self._priced.get(priced, 0) + 1

    def report(self) -> RunReport:
        """What the last run did; during a run, what it did so far."""
        calls = self.clock.calls
        computed = {column.site.name: column.computed for column in self.columns}
        for column in self.columns:
            if column.always_computes:
                computed[column.site.name] = calls
        served = {column.site.name: column.served for column in self.columns}
        uncached = saved = 0
        for shape, count in self._priced.items():
            table = mac_table(self._denoiser, shape)
            uncached += count * table.full.total
            saved += sum(table.sites[name].total * served[name] for name in served) * count // calls
        return RunReport(
            self._steps_done,
            calls,
            self._seconds,
            computed,
            served,
            self.store.peak_bytes,
            uncached - saved,
            uncached,
            dict(self._priced),
        )

    def summary(self) -> str:
        """The report in a few lines."""
        report = self.report()
        computed, served = sum(report.computed.values()), sum(report.served.values())
        share = computed / max(1, computed + served)
        ratio = report.macs_uncached / max(1, report.macs)
        return (
            f"plan {self.plan.method!r}: {report.steps} steps, {report.calls} calls of the denoiser in "
            f"{report.seconds:.2f} s\n"
            f"{computed} site calls computed, {served} served ({share:.0%} computed)\n"
            f"{report.macs / 1e9:.2f} GMACs of {report.macs_uncached / 1e9:.2f} uncached ({ratio:.2f} times fewer)\n"
            f"{report.peak_bytes / 2**20:.2f} MiB held at most between steps"
        )


def call_shape(denoiser: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> Shape:
    """Tokens of a denoiser call: an image latent (batch, channels, height, width) is cut into patches, a sequence
    (batch, tokens, channels) counts as it is."""
    if hidden_states.ndim == 4:
        config: Any = denoiser.config
        image = hidden_states.shape[-2] * hidden_states.shape[-1] // config.patch_size**2
    else:
        image = hidden_states.shape[1]
    text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
    return Shape(hidden_states.shape[0], image, text)
