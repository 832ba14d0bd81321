"""Leaving a branch of guidance out: one call, or half of a batched one, answers for both.

A pipeline combines what its denoiser says with the caption and without it. In a step whose plan leaves a branch out,
the denoiser runs for one of them and its answer stands for the other too, so that what the pipeline makes of both is
that answer; or the other is made of it and of the difference of an older step. Where both run, their difference may be
scaled. Of three branches, of a pipeline that guides by two conditions, the middle one may be left out. Nothing of the
pipeline is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from festina.errors import FestinaError
from festina.executor.calls import Arguments, Leaves, changed_arguments, same_values
from festina.executor.clock import StepClock
from festina.executor.conditions import kept_thirds
from festina.executor.difference import KEPT, Difference, check_rows, copied, half_of, joined, kept_of_parts
from festina.executor.gating import GateRun
from festina.executor.layout import Layout
from festina.executor.store import Store
from festina.plan import ALL, CONDITIONAL, MERGED, Plan
from festina.records import DIFFERENCE, JOINT, one_kind


@dataclass(frozen=True)
class _First:
    """The first call of a step that guides in separate calls.

    Attributes:
        branch: its name.
        sample: what it denoised.
        answer: what the denoiser said; for a step in which one answer stands for both, what the next calls are given.
            A copy in either case: a pipeline may change what it was given.
        alone: whether no other call of the step runs.
    """

    branch: str
    sample: Any
    answer: Any
    alone: bool


class GuidanceRun:
    """Which branches of guidance run in each step, and what becomes of their difference.

    Args:
        plan: the plan, in canonical form.
        clock, store: those of the run.
        layout: how the pipeline guides.
        gate: the plan's gate at work; None if it has none.
    """

    def __init__(self, plan: Plan, clock: StepClock, store: Store, layout: Layout, gate: GateRun | None = None) -> None:
        self.steps, self.clock, self.store, self.layout, self.gate = plan.steps, clock, store, layout, gate
        self.conditional_first = layout.conditional_first
        self.difference = Difference(plan, clock, store)
        self.restart()

    def restart(self) -> None:
        """Another run begins, or this one is over."""
        self._branches = ALL
        self.layout.restart()
        self._changed = self._alike = False
        self._step, self._calls = -1, 0
        self._first: _First | None = None

    def answer(
        self,
        call: Callable[[tuple[Any, ...], dict[str, Any]], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        leaves: Leaves,
        names: Set[str],
    ) -> Any:
        """Answer a call, as its step says.

        Args:
            call: runs the denoiser on arguments.
            args, kwargs: the arguments of this call.
            leaves: the same by path.
            names: the branches of this denoiser in separate calls.

        Raises:
            FestinaError: the plan changes guidance, and this pipeline does not guide by two rows or two calls.
        """
        step = self.clock.step
        # A first step of unknown place runs for all.
        branches = self.steps[step].branches if step < len(self.steps) else ALL
        self._count()
        if branches == ALL and not self.difference.changes_step:
            self._run_all()
            return call(args, kwargs)
        if branches == JOINT:
            return self._outer_thirds(call, args, kwargs, leaves)
        sample = leaves.get(self.layout.sample)
        if self.layout.batched(leaves, self.clock.context) and isinstance(sample, Tensor):
            self._changed = self._changed or branches != ALL or self.difference.factor() != 1
            return self._halves(branches, call, args, kwargs, len(sample))
        return self._calls_apart(branches, call, args, kwargs, sample, names)

    def stepped_on(self, sample: Any) -> None:
        """The sampler is given these latents in the first step: now it is known how many there are.

        Raises:
            FestinaError: in this step pictures of equal noise were taken for both branches, and changed.
        """
        if not self.layout.taken_back(sample):
            return
        if self._changed:
            raise FestinaError(
                f"the plan changes guidance in the first step, and this pipeline gave its denoiser the same latents "
                f"{self.layout.times} there. But its sampler steps on all {len(sample)} rows: they are pictures of "
                f"equal noise. Give each picture noise of its own, or use a plan that leaves guidance alone in the "
                f"first step."
            )
        self.store.trim(self.clock.branch, KEPT, 0)

    def _halves(self, branches: str, call: Callable[..., Any], args: Any, kwargs: Any, rows: int) -> Any:
        """Answer a batched call, of the rows of both branches."""
        branch, half = self.clock.branch, half_kept(branches, self.conditional_first)
        if self.difference.changes_guidance and self._calls > 1:
            raise FestinaError(
                "the plan changes guidance, but this pipeline calls its denoiser again in a step beside the call with "
                "both branches. Use a plan that leaves guidance alone on it."
            )
        if self._both_run(branches):
            self._run_all()
            answer = call(args, kwargs)
            conditional = half_of(answer, rows, half)
            other = self.difference.both(branch, conditional, half_of(answer, rows, 1 - half))
            return joined(conditional, other) if self.conditional_first else joined(other, conditional)
        if self._goes_on(branches):
            self._fit(kept_rows(branches, half))
        passes = self.clock.passes
        answer = call(*halved(args, kwargs, rows, half))
        check_rows(answer, rows // 2)
        if branches != DIFFERENCE:
            return joined(answer, answer)
        other = self.difference.again(branch, answer, self.clock.passes == passes)
        return joined(answer, other) if self.conditional_first else joined(other, answer)

    def _outer_thirds(self, call: Callable[..., Any], args: Any, kwargs: Any, leaves: Leaves) -> Any:
        """Answer a batched call, of three rows for each picture, by those with both conditions and with none."""
        thirds = self.layout.thirds(leaves)
        goes_on = self._goes_on(JOINT)
        if thirds is None:
            return call(args, kwargs)
        if self._calls > 1:
            raise FestinaError(
                "the plan leaves a branch of guidance out, but this pipeline calls its denoiser again in a step beside "
                "the call with all branches. Use a plan that leaves guidance alone on it."
            )
        self._changed = True
        if goes_on:
            self._fit(kept_thirds)
        both, bare = thirds.ends(call(*thirds.without_middle(args, kwargs)))
        return thirds.whole(both, self.difference.both(self.clock.branch, both, bare))

    def _calls_apart(
        self, branches: str, call: Callable[..., Any], args: Any, kwargs: Any, sample: Any, names: Set[str]
    ) -> Any:
        """Answer one of the separate calls of a step; pipelines make the first one with the caption."""
        first = self._first
        if first is None:
            return self._first_call(branches, call, args, kwargs, sample, names)
        if first.alone:
            return copied(first.answer)
        # Values are looked at once in a run.
        self._alike = self._alike or same_values(sample, first.sample)
        if self._calls > 2 or not self._alike:
            raise FestinaError(
                f"the plan changes guidance, but this pipeline calls its denoiser {self._calls} times or more in a "
                f"step, not twice with the same latents. Use a plan that leaves guidance alone on it."
            )
        return self.difference.both(first.branch, first.answer, call(args, kwargs))

    def _first_call(
        self, branches: str, call: Callable[..., Any], args: Any, kwargs: Any, sample: Any, names: Set[str]
    ) -> Any:
        branch = self.clock.branch
        told_apart = self.difference.changes_guidance or branches == CONDITIONAL
        if told_apart and (self.clock.context or "").removeprefix("pred_") == "uncond":
            raise FestinaError(
                "the plan changes guidance, but this pipeline calls its denoiser without the caption first, before "
                "what it says with it is known. Use a plan that leaves guidance alone on it."
            )
        if self._both_run(branches):
            self._run_all()
            answer = call(args, kwargs)
            self._first = _First(branch, sample, copied(answer), alone=False)
            return answer
        if self._goes_on(branches):
            for other in sorted(names - {branch}):
                if branches == MERGED:
                    self.store.merge(branch, other)
                else:
                    self.store.drop_branch(other)
        passes = self.clock.passes
        answer = call(args, kwargs)
        again = branches == DIFFERENCE
        stands_for = self.difference.again(branch, answer, self.clock.passes == passes) if again else copied(answer)
        self._first = _First(branch, sample, stands_for, alone=True)
        return answer

    def _fit(self, how: Callable[[Any], Any]) -> None:
        """What was kept of all rows of the present branch is fitted to some of them."""
        self.store.change(self.clock.branch, how, but=KEPT)
        if self.gate is not None:
            self.gate.fit(self.clock.branch, how)

    def _both_run(self, branches: str) -> bool:
        """Whether both branches of the present call run: as its step says, or as there is no difference to use yet."""
        return branches == ALL or (branches == DIFFERENCE and not self.difference.known(self.clock.branch))

    def _count(self) -> None:
        """Another call, perhaps of another step."""
        if self._step != self.clock.ended:
            self._step, self._calls, self._first = self.clock.ended, 0, None
        self._calls += 1

    def _run_all(self) -> None:
        """A call in a step in which all branches run: what was stored for fewer fits no more."""
        if self._branches != ALL:
            self.store.clear()
            self._branches = ALL

    def _goes_on(self, branches: str) -> bool:
        """Whether what was stored for all branches is still to be fitted to fewer."""
        before, self._branches = self._branches, one_kind(branches)
        if before not in (ALL, self._branches):
            self.store.clear()
        return before == ALL


def half_kept(branches: str, conditional_first: bool) -> int:
    """Which half of a batched call runs: 0 or 1.

    With what was stored of both merged, T-GATE (arXiv 2404.02747, released code) runs the one without a caption.
    """
    conditional = 0 if conditional_first else 1
    return 1 - conditional if branches == MERGED else conditional


def halved(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, half: int) -> Arguments:
    """The arguments of a batched call for one half of its rows.

    Args:
        args, kwargs: the arguments.
        rows: rows of the whole call; tensors of so many are cut, also within lists and mappings; all else is for every
            row. One that is for every row, and of this length by chance (positions of as many tokens), is cut too: it
            cannot be told from the others.
        half: 0 or 1.
    """

    def cut(path: str, value: Any) -> Any:
        return value.chunk(2)[half] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value

    return changed_arguments((), args, kwargs, cut)


def kept_rows(branches: str, half: int) -> Callable[[Any], Any]:
    """What becomes of a stored value when a batched call goes on with half of its rows: that half of it, or, merged,
    the mean of both halves."""
    if branches == MERGED:
        return kept_of_parts(2, lambda halves: (halves[0] + halves[1]) / 2)
    return kept_of_parts(2, lambda halves: halves[half].clone())
