"""The scheduler that runs a plan's solver, in the place of the pipeline's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from festina.errors import FestinaError
from festina.plan import Plan


def solving(own: Any, plan: Plan) -> Any:
    """The scheduler that a pipeline runs a plan with: its own, unless the plan has a solver.

    Args:
        own: the pipeline's scheduler; None where there is none.
        plan: the plan, in canonical form.

    Raises:
        FestinaError: there is no scheduler whose place the plan's solver could take.
    """
    if plan.solver is None:
        return own
    if own is None:
        raise FestinaError(
            "the plan has a solver, and there is no scheduler in whose place it could be put. Apply the plan to a "
            "pipeline with a scheduler, not to a bare denoiser."
        )
    # diffusers takes seconds to import, and most plans leave the solver to the pipeline.
    from festina.samplers.scheduler import PlanScheduler

    return PlanScheduler.from_scheduler(own, plan.solver)


@dataclass(frozen=True)
class Exchange:
    """A pipeline's scheduler that another one stands in for; the pipeline's record of its parts stays as it is."""

    pipe: Any
    own: Any
    scheduler: Any

    def put(self) -> None:
        """Put the other one in its place."""
        vars(self.pipe)["scheduler"] = self.scheduler

    def check(self) -> None:
        """See that it is still there.

        Raises:
            FestinaError: it is not.
        """
        if self.pipe.scheduler is not self.scheduler:
            raise FestinaError(
                f"the pipeline's scheduler was replaced by a {type(self.pipe.scheduler).__name__} after a plan with a "
                f"solver was applied. Put {type(self.scheduler).__name__} back, then call festina.remove."
            )

    def take_back(self) -> None:
        """Put the pipeline's own back."""
        vars(self.pipe)["scheduler"] = self.own
