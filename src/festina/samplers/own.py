"""The sampler that a pipeline has already, as a table: what plans that change single steps of it begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from festina.errors import FestinaError
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.table import SolverTable

__all__ = ["own_table", "replica"]

_DDIM = ("CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler")
_FIRST_ORDER = (*_DDIM, "EDMEulerScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
_DPM_SOLVERS = ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")
_FORMS = {"dpmsolver++": "data", "dpmsolver": "noise"}
_USUAL = {"euler_at_final": False, "disable_corrector": [], "predict_x0": True}
"""Settings with which a solver is one of `festina.samplers.KINDS`."""

_LOWERED_BELOW = 15
"""Steps of a run from which on diffusers' DPM-Solver and DEIS keep the order of the last steps."""


def replica(scheduler: Any, steps: int) -> PlanScheduler:
    """A new `PlanScheduler` with the grid and the solver of a scheduler of diffusers: it makes the same samples.

    Of Euler's kind it begins with noise of unit variance, where some settings of that begin with up to 0.3 % less.

    Args:
        scheduler: of the DDIM, Euler, DPM-Solver, DEIS or UniPC kind, or a `PlanScheduler`.
        steps: network calls of its runs.

    Raises:
        FestinaError: its solver is no table, or one that is not known here.
    """
    if isinstance(scheduler, PlanScheduler):
        made: PlanScheduler = PlanScheduler.from_config(scheduler.config)
        return made
    name, config = type(scheduler).__name__, scheduler.config
    _want_usual(name, config, steps)
    kept = config.get("lower_order_final", True)
    if name in _FIRST_ORDER:
        return PlanScheduler.from_scheduler(scheduler, solver_order=1)
    if name == "UniPCMultistepScheduler":
        solver, order = f"unipc_{config.solver_type}", config.solver_order
        return PlanScheduler.from_scheduler(scheduler, None, solver, order, corrector=True, lower_order_final=kept)
    lowered = bool(kept) and steps < _LOWERED_BELOW
    if name in _DPM_SOLVERS and config.algorithm_type in _FORMS:
        # Of the second order, Heun's kind has the exact weights.
        exact = config.solver_order == 1 or config.solver_type == "heun"
        solver = _FORMS[config.algorithm_type] + ("" if exact else "_released")
        return PlanScheduler.from_scheduler(scheduler, None, solver, config.solver_order, lower_order_final=lowered)
    if name == "DEISMultistepScheduler":
        return PlanScheduler.from_scheduler(scheduler, None, "noise", config.solver_order, lower_order_final=lowered)
    known = ", ".join((*_FIRST_ORDER, *_DPM_SOLVERS, "DEISMultistepScheduler", "UniPCMultistepScheduler"))
    raise FestinaError(
        f"the solver of a {name} with these settings is not known as a table. Known are {known}, without noise of "
        "their own. Use a table of festina.samplers.times.table_on instead."
    )


def _want_usual(name: str, config: Any, steps: int) -> None:
    """Raise a `FestinaError` for settings with which a scheduler does what no table here does."""
    if unlike := [setting for setting, usual in _USUAL.items() if config.get(setting, usual) != usual]:
        raise FestinaError(
            f"a {name} with {unlike[0]} {config[unlike[0]]!r} is not known as a table; wanted {_USUAL[unlike[0]]!r}."
        )
    if name in _DPM_SOLVERS and config.solver_order == 3 and config.solver_type == "heun":
        raise FestinaError(
            f"a {name} of order 3 mixes two second-order solvers if its solver_type is 'heun', which is not known as a "
            "table; wanted 'midpoint'."
        )
    spacing = config.get("timestep_spacing", "leading")
    uneven = spacing == "linspace" or (spacing == "trailing" and config.num_train_timesteps % steps)
    if name in _DDIM and uneven:
        raise FestinaError(
            f"a {name} with the timestep_spacing {spacing!r} does not step to its next time in a run of {steps} "
            "steps; wanted 'leading', or 'trailing' with a number of steps that divides its training steps."
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
    table = scheduler.run_table
    if table is None:
        raise FestinaError("nothing was drawn with the pipeline's scheduler. Let `draw` call the pipeline.")
    if table.calls != steps:
        raise FestinaError(f"`draw` made a run of {table.calls} network calls; wanted {steps}. Let it ask for so many.")
    return table
