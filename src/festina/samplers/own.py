"""The sampler that a pipeline has already, as a table: what plans that change single steps of it begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from festina.errors import FestinaError
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.table import SolverTable

__all__ = ["own_table", "replica"]

_FIRST_ORDER = ("DDIMScheduler", "EDMEulerScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
_DPM_SOLVERS = ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")
_FORMS = {"dpmsolver++": "data", "dpmsolver": "noise"}
_USUAL = {"euler_at_final": False, "disable_corrector": [], "predict_x0": True}
"""Settings with which a solver is one of `festina.samplers.KINDS`."""

_LOWERED_BELOW = 15
"""Steps of a run from which on diffusers' schedulers keep the order of the last steps."""


def replica(scheduler: Any, steps: int) -> PlanScheduler:
    """A `PlanScheduler` with the grid and the solver of a scheduler of diffusers: it makes the same samples.

    Args:
        scheduler: of the DDIM, Euler, DPM-Solver, DEIS or UniPC kind; a `PlanScheduler` is given back as it is.
        steps: network calls of its runs.

    Raises:
        FestinaError: its solver is no table, or one that is not known here.
    """
    if isinstance(scheduler, PlanScheduler):
        return scheduler
    name, config = type(scheduler).__name__, scheduler.config
    if unlike := [setting for setting, usual in _USUAL.items() if config.get(setting, usual) != usual]:
        raise FestinaError(
            f"a {name} with {unlike[0]} {config[unlike[0]]!r} is not known as a table; wanted {_USUAL[unlike[0]]!r}."
        )
    lowered = bool(config.get("lower_order_final", True)) and steps < _LOWERED_BELOW
    if name in _FIRST_ORDER:
        return PlanScheduler.from_scheduler(scheduler, solver_order=1)
    if name in _DPM_SOLVERS and config.algorithm_type in _FORMS:
        # Of their second order, Heun's kind has the exact weights.
        exact = (config.solver_type == "heun" and config.solver_order == 2) or config.solver_order == 1
        solver = _FORMS[config.algorithm_type] + ("" if exact else "_released")
        return PlanScheduler.from_scheduler(scheduler, None, solver, config.solver_order, lower_order_final=lowered)
    if name == "DEISMultistepScheduler":
        return PlanScheduler.from_scheduler(scheduler, None, "noise", config.solver_order, lower_order_final=lowered)
    if name == "UniPCMultistepScheduler":
        return PlanScheduler.from_scheduler(
            scheduler, None, f"unipc_{config.solver_type}", config.solver_order, corrector=True
        )
    known = ", ".join((*_FIRST_ORDER, *_DPM_SOLVERS, "DEISMultistepScheduler", "UniPCMultistepScheduler"))
    raise FestinaError(
        f"the solver of a {name} with these settings is not known as a table. Known are {known}, without noise of "
        "their own. Use a table of festina.samplers.times.table_on instead."
    )


def own_table(pipe: Any, steps: int, draw: Callable[[], object]) -> SolverTable:
    """The steps of the pipeline's own sampler, levels after any shift, found in a run.

    The pipeline has another scheduler while it draws, and afterwards the very one that it had.

    Args:
        pipe: a diffusers pipeline with no plan applied.
        steps: network calls of its runs.
        draw: calls the pipeline with so many steps; one picture is enough.

    Raises:
        FestinaError: the solver is not known as a table, or `draw` made no run.
    """
    own = pipe.scheduler
    pipe.scheduler = scheduler = replica(own, steps)
    try:
        draw()
    finally:
        pipe.scheduler = own
    if scheduler.run_table is None:
        raise FestinaError("nothing was drawn with the pipeline's scheduler. Let `draw` call the pipeline.")
    return scheduler.run_table
