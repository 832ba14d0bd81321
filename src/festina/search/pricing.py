"""The price of a plan on a pipeline: multiply-accumulates and bytes per picture, from the calls of short probing runs.

What a picture costs can depend on what it is drawn with: of one prompt alone Latte's pipeline cuts the padding off, of
several it does not. So every batch of the workload is probed, and prices are those that a run of the workload reports.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from festina.cost import Call, CallTrace, MacTable, held_bytes, mac_table, plan_macs, trace
from festina.errors import FestinaError
from festina.executor import accelerate
from festina.plan import Plan
from festina.search.generation import generate_batch
from festina.search.workload import Workload
from festina.sites import component_sites, find_denoiser

PROBE_STEPS = 2


@dataclass(frozen=True)
class Probed:
    """Denoiser calls of one kind that a workload makes.

    Attributes:
        traced: one of them.
        pictures: how many pictures are drawn in one batch with it.
        calls: how many a batch makes of them in one step.
        batches: how many batches make them.
    """

    traced: CallTrace
    pictures: int
    calls: int
    batches: int


def probe(pipe: Any, workload: Workload) -> tuple[Probed, ...]:
    """The denoiser calls that a workload makes. Draws all of its pictures in two sampling steps each.

    Raises:
        FestinaError: the pipeline cannot be called with this workload's arguments, or its denoiser cannot be priced.
    """
    denoiser, pictures = find_denoiser(pipe), workload.pictures()
    names = [site.name for site in component_sites(denoiser)]
    batches: Counter[tuple[Any, int, int]] = Counter()
    calls: dict[Any, Call] = {}
    with accelerate(pipe, Plan.computing_all(type(denoiser).__name__, names, PROBE_STEPS)) as run:
        for start in range(0, len(pictures), workload.batch):
            part = pictures[start : start + workload.batch]
            try:
                generate_batch(pipe, part, workload, PROBE_STEPS)
            except TypeError as error:
                raise FestinaError(f"{type(pipe).__name__} cannot be called for this search: {error}.") from None
            for shapes, record in run.calls.items():
                calls.setdefault(shapes, record.call)
                batches[shapes, len(part), record.count // PROBE_STEPS] += 1
    traces = {shapes: trace(denoiser, call) for shapes, call in calls.items()}
    return tuple(Probed(traces[shapes], size, count, times) for (shapes, size, count), times in batches.items())


def pricing(pipe: Any, workload: Workload) -> Callable[[Plan], int]:
    """A function from a plan to its MACs per picture, attention products included: what a run of the workload by it
    reports, where no gate decides. Raises like `probe`."""
    denoiser, pictures = find_denoiser(pipe), len(workload.pictures())
    probed = probe(pipe, workload)
    known: dict[tuple[str, ...], list[MacTable]] = {(): [mac_table(denoiser, each.traced) for each in probed]}

    def tables(plan: Plan) -> list[MacTable]:
        found = known[()]
        if all(site in found[0].sites for site in plan.sites):
            return found
        if plan.sites not in known:
            known[plan.sites] = [mac_table(denoiser, each.traced, plan.sites) for each in probed]
        return known[plan.sites]

    def price(plan: Plan) -> int:
        priced = zip(probed, tables(plan), strict=True)
        total = sum(plan_macs(plan, table).total * each.calls * each.batches for each, table in priced)
        return round(total / pictures)

    return price


def holding(pipe: Any, workload: Workload) -> Callable[[Plan], int]:
    """A function from a plan to the bytes it holds at most, per picture. Raises like `probe`."""
    denoiser = find_denoiser(pipe)
    probed = probe(pipe, workload)
    itemsize = next(denoiser.parameters()).element_size()

    def hold(plan: Plan) -> int:
        return max(
            math.ceil(held_bytes(plan, denoiser, each.traced, itemsize, branches=each.calls) / each.pictures)
            for each in probed
        )

    return hold
