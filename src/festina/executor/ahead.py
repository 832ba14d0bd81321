"""Answering for several steps in one denoiser call: the parallel decoder of Faster Diffusion (arXiv 2312.09608).

Where a U-Net is served all that it makes of the latents, what it answers depends on the time alone, and is known before
the latents are. At a step that answers m steps ahead the call of that step runs as always. A second one, of m times as
many rows, runs for the steps that follow, on what is stored; its answers are kept, and given out in these steps. The
paper's code runs the way up once for all m + 1 of them. A denoiser that is called as it is would run the way down for
all of them too, so that here the step which computes it keeps a call of its own.

What is asked in a later step is compared with what was answered; only the latents may be others, scaled or not, as
they do not enter. A step that finds no answer (the run began after the step that would have given it) makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from festina.errors import FestinaError
from festina.executor.calls import (
    Arguments,
    Leaves,
    changed_arguments,
    entry_given,
    identity,
    leaves_of,
    same_values,
)
from festina.executor.clock import StepClock
from festina.executor.features import Placeholder
from festina.executor.serving import Column
from festina.executor.store import Store, Value
from festina.names import FEATURE
from festina.plan import COMPUTE, REUSE, Plan
from festina.sites import entry_site, region_sites

ANSWERS = "answers"
"""Under this name the store keeps what is given out in later steps."""

_TIME = "timestep"
"""Name of the argument that says the time, the same in all U-Nets that `check_ahead` lets through."""


class Ahead:
    """Answers for later steps, in a run whose plan wants them.

    Args:
        plan: the plan, in canonical form.
        columns: its columns.
        names: names of the denoiser's parameters, the denoised sample first.
        clock, store: those of the run.
    """

    def __init__(
        self, plan: Plan, columns: Sequence[Column], names: Sequence[str], clock: StepClock, store: Store
    ) -> None:
        self.lengths = tuple(step.ahead for step in plan.steps)
        self.columns, self.names, self.clock, self.store = columns, names, clock, store
        self._schedule: Tensor | None = None
        self._given: dict[str, Leaves] = {}

    def begin(self, schedule: Tensor | None) -> None:
        """Another run begins, with these timesteps, one per step of the plan; None if they are not known."""
        self._schedule = schedule
        self._given.clear()

    def answer(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call: by what was answered ahead, or by running the denoiser, perhaps for later steps too.

        Args:
            run: runs the denoiser, given its positional and its keyword arguments.
            args, kwargs: the arguments of this call.

        Raises:
            FestinaError: the timesteps of later steps are not known, tensors cannot be repeated for them, or the call
                is not the one that was answered.
        """
        if not any(self.lengths):
            return run(args, kwargs)
        step, branch = self.clock.step, self.clock.branch
        kept = self.store.get(branch, ANSWERS)
        for entry in kept:
            if entry.step == step:
                self._check_same(leaves_of(self.names, args, kwargs))
                self.store.trim(branch, ANSWERS, sum(other.step > step for other in kept))
                return entry.value
        ahead = self.lengths[step] if step < len(self.lengths) else 0
        if not ahead:
            return run(args, kwargs)
        given = leaves_of(self.names, args, kwargs)
        sample = given.pop(self.names[0], None)
        if not isinstance(sample, Tensor) or not sample.ndim:
            raise FestinaError(
                f"the plan answers ahead in step {step}, but what this denoiser is given as {self.names[0]!r} has no "
                f"rows. Use a plan without `ahead`."
            )
        # Before the present call: some models take entries off the lists that they are given.
        times = self._times(given.get(_TIME), ahead).to(sample.device).repeat(len(sample))
        repeated = repeated_arguments(self.names, args, kwargs, sample, times)
        answer = run(args, kwargs)
        self._given[branch] = given
        self._look_ahead(run, repeated, len(sample), ahead)
        return answer

    def _look_ahead(self, run: Callable[..., Any], arguments: Arguments, rows: int, ahead: int) -> None:
        """Run the denoiser for the next steps and keep its answers."""
        step, branch = self.clock.step, self.clock.branch
        # They all do the same at every site.
        self.clock.step = step + 1
        try:
            with self.store.seen_as(lambda value: repeated_rows(value, rows, ahead)):
                answers = run(*arguments)
        finally:
            self.clock.step = step
        for column in self.columns:
            self.store.trim_visits(branch, column.site.name, column.held[step + ahead])
        for place in range(ahead):
            self.store.put(branch, ANSWERS, step + 1 + place, rows_of(answers, rows, ahead, place), ahead)

    def _times(self, given: Any, ahead: int) -> Tensor:
        """The timesteps of the next steps, of the dtype of the present one."""
        step, schedule = self.clock.step, self._schedule
        if schedule is None:
            raise FestinaError(
                f"the plan answers ahead in step {step}, but the timesteps of the next steps are not known. Run it on "
                f"a pipeline, or hand the sampler's timesteps to run.start as `schedule`."
            )
        if not is_entry(schedule, step, given):
            raise FestinaError(
                f"the plan answers ahead in step {step}, but there the denoiser is given another timestep than the "
                f"scheduler's {schedule[step].item():g}, so that those of the next steps are not known. Use a plan "
                f"without `ahead` on this pipeline."
            )
        times = schedule[step + 1 : step + 1 + ahead]
        return times.to(given.dtype) if isinstance(given, Tensor) else times

    def _check_same(self, given: Leaves) -> None:
        """See that a call is the one that was answered ahead."""
        before = self._given[self.clock.branch]
        for path in sorted((before.keys() | given.keys()) - {self.names[0]}):
            if path == _TIME:
                assert self._schedule is not None
                same = is_entry(self._schedule, self.clock.step, given.get(path))
            else:
                one, other = before.get(path, self), given.get(path, self)
                same = bool(identity(one) == identity(other)) or same_values(one, other)
            if not same:
                raise FestinaError(
                    f"the plan answers step {self.clock.step} ahead, but there {path!r} is not what it was answered "
                    f"for: this pipeline makes it anew from step to step. Use a plan without `ahead` on it."
                )


def is_entry(schedule: Tensor, step: int, given: Any) -> bool:
    """Whether a timestep is this entry of a schedule: by its place in memory, else by value, in its own precision."""
    if isinstance(given, Tensor):
        if entry_given(schedule, [given]) == step:
            return True
        return bool((given == schedule[step].to(given.device, given.dtype)).all())
    return isinstance(given, int | float) and given == schedule[step].item()


def repeated_arguments(
    names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], sample: Tensor, times: Tensor
) -> Arguments:
    """The arguments of a call, repeated for several times.

    Args:
        names: names of the positional parameters.
        args, kwargs: the arguments. Tensors with as many rows as the sample are repeated, as are those with one for
            each frame of a sample (rows, channels, frames, height, width); all else is for every row.
        sample: what is denoised.
        times: timestep of each row: all of the first row of the sample, then all of the second, ...
    """
    rows, ahead = len(sample), len(times) // len(sample)
    sizes = {rows, rows * sample.shape[2]} if sample.ndim == 5 else {rows}

    def repeat(path: str, value: Any) -> Any:
        if path == _TIME:
            return times
        of_rows = isinstance(value, Tensor) and value.ndim and len(value) in sizes
        return repeated_rows(value, rows, ahead) if of_rows else value

    return changed_arguments(names, args, kwargs, repeat)


def repeated_rows(value: Value, rows: int, times: int) -> Value:
    """A value of so many rows, each repeated `times` times, all of one row together.

    So whatever splits the rows into halves, as guidance within a model does, finds the same branches there. A tensor
    may hold several entries for each row, such as frames; these stay together.

    Raises:
        FestinaError: a tensor is not of so many rows, or of a multiple.
    """

    def repeat(leaf: Any) -> Any:
        if isinstance(leaf, Placeholder):
            return replace(leaf, shape=(*(size * times for size in leaf.shape[:1]), *leaf.shape[1:]))
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        if len(leaf) % rows:
            raise FestinaError(
                f"a tensor of shape {tuple(leaf.shape)} is not of the {rows} rows of the call; this plan, which "
                f"answers ahead, cannot be run on this model."
            )
        return leaf.unflatten(0, (rows, -1)).repeat_interleave(times, 0).flatten(0, 1)

    return tree_map(repeat, value)


def rows_of(answers: Any, rows: int, times: int, place: int) -> Any:
    """What a denoiser returned for `repeated_rows`, at one of the times: a copy, so that the others can be freed.

    Raises:
        FestinaError: a tensor in it has another number of rows.
    """
    if any(leaf.shape[:1] != (rows * times,) for leaf in tree_leaves(answers) if isinstance(leaf, Tensor)):
        raise FestinaError(
            f"what this denoiser returns has not the {rows * times} rows that it was given; a plan that answers ahead "
            f"cannot be run on it."
        )
    return tree_map(lambda leaf: leaf[place::times].clone() if isinstance(leaf, Tensor) else leaf, answers)


def check_ahead(denoiser: nn.Module, plan: Plan, columns: Sequence[Column]) -> None:
    """See that steps which are answered ahead are served all that depends on the latents, and leave nothing behind.

    Args:
        denoiser: the denoiser.
        plan: the plan, in canonical form.
        columns: its columns.

    Raises:
        FestinaError: they are not, or do.
    """
    answering = [(step, record.ahead) for step, record in enumerate(plan.steps) if record.ahead]
    if not answering:
        return
    if plan.gate is not None or plan.tokens is not None:
        raise FestinaError(
            "a gate, and a choice of tokens, look at each step by itself, so that none can be answered ahead."
        )
    entry = entry_site(denoiser).path
    way_down = [site.path for site in region_sites(denoiser) if not site.path.startswith("up_block")]
    for step, ahead in answering:
        now = [(column, column.actions[step + 1]) for column in columns]
        where = f"the plan answers the {ahead} steps after step {step} ahead, but there"
        if odd := next((column for column, action in now if action not in COMPUTE + REUSE), None):
            raise FestinaError(f"{where} {odd.site.name!r} neither computes nor reuses. Let it, or leave `ahead` out.")
        if late := next((column for column, action in now if action == COMPUTE and column.held[step + ahead]), None):
            raise FestinaError(
                f"{where} {late.site.name!r} computes what is read after them. Let it compute in step "
                f"{step + ahead + 1}, or leave `ahead` out."
            )
        served = {
            path
            for column, action in now
            if action == REUSE and column.site.kind == FEATURE
            for path in column.site.paths
        }
        if missing := [path for path in (entry, *way_down) if path not in served]:
            raise FestinaError(
                f"{where} {missing[0]!r} is not served, and it depends on the latents. Let feature sites with "
                f"{entry!r} and all of {way_down[0]!r} to {way_down[-1]!r} reuse in these steps, or leave `ahead` out."
            )
