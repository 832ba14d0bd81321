"""Gaussian teleportation: the first steps of a sampler left out (Wang and Vastola, arXiv 2311.10892, 2412.09726)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from festina.errors import FestinaError
from festina.methods.columns import want_whole
from festina.methods.solver import solver
from festina.plan import Plan

if TYPE_CHECKING:
    from festina.samplers.table import SolverTable


def teleportation(pipe: Any, table: SolverTable, left_out: int, plan: Plan | None = None) -> Plan:
    """A sampler without its first steps: the noise is carried to where it begins as if all pictures were Gaussian.

    The plan is run by `festina.accelerate(pipe, plan, statistics=...)`; `festina.calibration.gaussian` measures
    statistics. Theirs is the closed form of `festina.samplers.teleportation`.

    Args:
        pipe: a diffusers pipeline.
        table: the whole sampler, such as `festina.samplers.own.own_table` finds it.
        left_out: its first steps that are left out, at least 1 and fewer than it has.
        plan: a plan of another method to run with it, see `festina.methods.solver`.

    Raises:
        FestinaError: a number of steps out of range, a table that does not begin with noise or looks back to its start,
            or see `festina.methods.solver`.
    """
    want_whole("the number of steps left out", left_out, 1, len(table.steps) - 1)
    if table.start == "given":
        raise FestinaError("this table's runs begin with samples of yours; wanted one that begins with noise.")
    if any(step.linear is not None and step.linear.anchor != 0 for step in table.steps):
        raise FestinaError(
            "the table weighs the sample that the whole run starts from, which a run that begins later does not have. "
            "Use a table without an anchor."
        )
    changed = replace(table, steps=table.steps[left_out:], start="gaussian")
    made = solver(pipe, changed, plan)
    return replace(made, method="teleportation", settings={"left_out": left_out, **made.settings})
