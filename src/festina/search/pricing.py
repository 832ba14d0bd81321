"""The price of a plan on a pipeline: multiply-accumulates per picture, from the calls of one short probing run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from festina.cost import CallTrace, MacTable, held_bytes, mac_table, plan_macs, trace
from festina.errors import FestinaError
from festina.executor import accelerate
from festina.plan import Plan
from festina.search.generation import generate_batch
from festina.search.workload import Workload
from festina.sites import component_sites, find_denoiser

PROBE_STEPS = 2


def probe(pipe: Any, workload: Workload) -> tuple[tuple[CallTrace, int], ...]:
    """The denoiser's calls in one step for one picture: a trace of each kind, and how many there are of it.

    Makes the workload's first picture in two sampling steps.

    Raises:
        FestinaError: the pipeline cannot be called with this workload's arguments, or its denoiser cannot be priced.
    """
    denoiser = find_denoiser(pipe)
    names = [site.name for site in component_sites(denoiser)]
    with accelerate(pipe, Plan.computing_all(type(denoiser).__name__, names, PROBE_STEPS)) as run:
        try:
            generate_batch(pipe, workload.pictures()[:1], workload, PROBE_STEPS)
        except TypeError as error:
            raise FestinaError(f"{type(pipe).__name__} cannot be called for this search: {error}.") from None
        calls = [(record.call, record.count // PROBE_STEPS) for record in run.calls.values()]
    return tuple((trace(denoiser, call), count) for call, count in calls)


def pricing(pipe: Any, workload: Workload) -> Callable[[Plan], int]:
    """A function from a plan to its MACs per picture, attention products included. Raises like `probe`."""
    denoiser = find_denoiser(pipe)
    traced = probe(pipe, workload)
    known: dict[tuple[str, ...], list[tuple[MacTable, int]]]
    known = {(): [(mac_table(denoiser, call), count) for call, count in traced]}

    def tables(plan: Plan) -> list[tuple[MacTable, int]]:
        found = known[()]
        if all(site in found[0][0].sites for site in plan.sites):
            return found
        if plan.sites not in known:
            known[plan.sites] = [(mac_table(denoiser, call, plan.sites), count) for call, count in traced]
        return known[plan.sites]

    def price(plan: Plan) -> int:
        return sum(plan_macs(plan, table).total * calls for table, calls in tables(plan))

    return price


def holding(pipe: Any, workload: Workload) -> Callable[[Plan], int]:
    """A function from a plan to the bytes it holds at most, per picture. Raises like `probe`."""
    denoiser = find_denoiser(pipe)
    traced = probe(pipe, workload)
    itemsize = next(denoiser.parameters()).element_size()

    def hold(plan: Plan) -> int:
        return max(held_bytes(plan, denoiser, call, itemsize, branches=calls) for call, calls in traced)

    return hold
