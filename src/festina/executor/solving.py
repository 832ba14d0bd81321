"""The scheduler that runs a plan's solver, in the place of the pipeline's own."""

from __future__ import annotations

import copy
from typing import Any

from festina.errors import FestinaError
from festina.plan import Plan

_COPIER = "__deepcopy__"


def solving(own: Any, plan: Plan) -> Any:
    """The scheduler that a pipeline runs a plan with: its own, unless the plan has a solver.

    Args:
        own: the pipeline's scheduler; None where there is none.
        plan: the plan, in canonical form.

    Raises:
        FestinaError: there is no scheduler whose place the plan's solver could take, or it cannot run the table.
    """
    if plan.solver is None:
        return own
    if own is None:
        raise FestinaError(
            "the plan has a solver, and there is no scheduler in whose place it could be put. Apply the plan to a "
            "pipeline with a scheduler, not to a bare denoiser."
        )
    # diffusers takes seconds to import, and most plans leave the solver to the pipeline.
    from festina.samplers.compiling import compile_table
    from festina.samplers.scheduler import PlanScheduler

    scheduler = PlanScheduler.from_scheduler(own, plan.solver)
    compile_table(plan.solver, scheduler.frame)
    return scheduler


class Exchange:
    """A pipeline's scheduler that another one stands in for.

    A pipeline that is saved or copied meanwhile is so with its own: what saves it finds that one's settings.

    Args:
        pipe: the pipeline.
        own: its scheduler.
        scheduler: the other one.
    """

    def __init__(self, pipe: Any, own: Any, scheduler: Any) -> None:
        self.pipe, self.own, self.scheduler = pipe, own, scheduler
        self._recorded = _record(pipe)

    def put(self) -> None:
        """Put the other one in its place."""
        self.scheduler.save_pretrained = self.own.save_pretrained
        vars(self.scheduler)[_COPIER] = _Copier(self)
        vars(self.pipe)["scheduler"] = self.scheduler

    def check(self) -> None:
        """See that it is still there, or that the pipeline's own is.

        Raises:
            FestinaError: another one is.
        """
        found = self.pipe.scheduler
        if found is not self.scheduler and found is not self.own:
            raise FestinaError(
                f"the pipeline's scheduler was replaced by a {type(found).__name__} after a plan with a solver was "
                f"applied. Put the scheduler back that was there before, then call festina.remove."
            )

    def take_back(self) -> None:
        """Put the pipeline's own back."""
        vars(self.pipe)["scheduler"] = self.own
        if _record(self.pipe) != self._recorded:
            # Somebody set it as an attribute meanwhile, which a pipeline takes note of.
            self.pipe.scheduler = self.own


class _Copier:
    """How the other one is copied: as the pipeline's own with the whole pipeline, whose copy runs by itself, and alone
    as what it is, since several pipelines drive a copy of their scheduler."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def __call__(self, memo: dict[int, Any]) -> Any:
        held = self.exchange
        if id(held.pipe) in memo:
            return copy.deepcopy(held.own, memo)
        made = memo[id(held.scheduler)] = object.__new__(type(held.scheduler))
        kept = {name: value for name, value in vars(held.scheduler).items() if name != _COPIER}
        vars(made).update(copy.deepcopy(kept, memo))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> _Copier:
        return self


def _record(pipe: Any) -> Any:
    """What a pipeline notes of its scheduler's class."""
    config = getattr(pipe, "config", None) or {}
    return config.get("scheduler")
