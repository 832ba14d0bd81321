"""What a plan costs, before any run: multiply-accumulates in closed form, and the bytes its store holds.

Both follow from one trace of a denoiser call (`festina.trace`). Without the attention products the counts are those of
ECAD (arXiv 2506.15682, released schedules); the products QK^T and AV are counted apart, as ECAD leaves them out.
Biases, norms, activations, softmax and table look-ups count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from torch import nn

from festina.errors import FestinaError
from festina.names import FEATURE
from festina.plan import ALL, COMPUTE, FORECASTS, GATED, PARTIAL, SKIP, Plan, Step, enclosing_sites
from festina.records import JOINT, difference_kept, one_kind
from festina.sites import Site, block_sites, component_sites, region_sites, resolve
from festina.sites.regions import kept_leaves
from festina.token_cost import TokenPrice, maps_of, partial_sites, side_tensors, token_prices
from festina.trace import Call as Call
from festina.trace import CallTrace as CallTrace
from festina.trace import Macs as Macs
from festina.trace import Returned
from festina.trace import trace as trace


@dataclass(frozen=True)
class MacTable:
    """Price of one denoiser call.

    Attributes:
        fixed: everything that is in no component.
        sites: what serving a site saves, by name.
        full: a call in which everything computes.
        tokens: price by token of the components that can be computed for some of them, by name.
    """

    fixed: Macs
    sites: Mapping[str, Macs]
    full: Macs
    tokens: Mapping[str, TokenPrice]


def mac_table(denoiser: nn.Module, traced: CallTrace, names: tuple[str, ...] = ()) -> MacTable:
    """Price the sites of a denoiser.

    Args:
        denoiser: a denoiser.
        traced: a call of it (`festina.trace.trace`).
        names: sites to price beside the components, blocks and regions, such as runs of blocks.

    Raises:
        FestinaError: the denoiser has no sites, or not one of these names.
    """
    components = component_sites(denoiser)
    prices = {site.name: _within(site, traced) for site in components}
    fixed = traced.macs - sum(prices.values(), Macs(0, 0))
    for site in (*block_sites(denoiser), *region_sites(denoiser), *resolve(denoiser, names)):
        prices.setdefault(site.name, _within(site, traced))
    return MacTable(fixed, prices, traced.macs, token_prices(denoiser, traced))


def _within(site: Site, traced: CallTrace) -> Macs:
    return sum((traced.within.get(path, Macs(0, 0)) for path in site.paths), Macs(0, 0))


def plan_macs(plan: Plan, table: MacTable, models: Mapping[str, Macs] = MappingProxyType({})) -> Macs:
    """MACs of a run by the plan, at one denoiser call per step; several calls of a step cost the same each.

    Sites the plan does not name compute in every step. Serving a value costs nothing, and a step that replays the last
    answer costs nothing at all. Where a gate decides, this is the price if it never serves; what a run cost says
    `festina.RunReport`. A step that runs for one of two branches of guidance costs half, one that runs for two of three
    two thirds: the price is that of a guided run. Maps of attention by which tokens are chosen are counted.

    Args:
        plan: the plan.
        table: prices of the denoiser.
        models: a call of each denoiser that is called in its place, by name.

    Raises:
        FestinaError: the plan names a site that is not in the table, one that has no price by token where it wants
            one, or a model without a price.
    """
    if missing := [name for name in plan.sites if name not in table.sites]:
        raise FestinaError(f"{len(missing)} sites without a price, as {missing[0]!r}; wanted a plan for this model.")
    plan = plan.canonical()
    if unknown := plan.models - set(models):
        raise FestinaError(f"the plan calls the models {sorted(unknown)}; wanted the price of a call of each.")
    served = _visited(plan) & ~np.isin(plan.table(), [COMPUTE, GATED, PARTIAL])
    each = [0 if step.replays else _sixths(step) for step in plan.steps]
    others = [models[step.model] * part for step, part in zip(plan.steps, each, strict=True) if step.model]
    parts = np.array([part if step.visits else 0 for step, part in zip(plan.steps, each, strict=True)])
    full = sum(others, table.full * int(parts.sum()))
    linear, attention = full.linear, full.attention
    for name, times in zip(plan.sites, (parts @ served).tolist(), strict=True):
        linear -= times * table.sites[name].linear
        attention -= times * table.sites[name].attention
    less = _by_token(plan, table, parts.tolist())
    return Macs((linear - less.linear) // _WHOLE, (attention - less.attention) // _WHOLE)


_WHOLE = 6
"""A step is priced in sixths: one for one of two branches is half of it, one for two of three branches two thirds."""


def _sixths(step: Step) -> int:
    """What a step that calls a denoiser runs of a guided call's rows."""
    return {ALL: _WHOLE, JOINT: 4}.get(step.branches, 3)


def _by_token(plan: Plan, table: MacTable, parts: Sequence[int]) -> Macs:
    """What a canonical plan saves by computing for some tokens only, less the maps it chooses them by; in sixths."""
    partial, less = partial_sites(plan), Macs(0, 0)
    if missing := [name for name in partial if name not in table.tokens]:
        raise FestinaError(f"{missing[0]!r} has no price by token; wanted a feed-forward or a cross-attention.")
    for name in partial:
        index = plan.sites.index(name)
        for step, part in zip(plan.steps, parts, strict=True):
            if step.actions[index] == PARTIAL:
                less += table.tokens[name].passed_by(step.shares[index]) * part
    for name, (computes, kept) in maps_of(plan, {name: table.tokens[name].attention for name in partial}).items():
        taken = sum(part for part, *both in zip(parts, computes, kept, strict=True) if all(both))
        less -= Macs(0, table.sites[name].attention // 2) * taken
    return less


def values_held(plan: Plan) -> NDArray[np.int_]:
    """How many computed values each site holds after each step, int (steps, sites).

    A value is held from the step that computes it to the last step that reads it. Reuse reads the last computed
    value, and so does computing for some tokens, which renews it; a forecast of order k reads the last k + 1, a skip
    none; a site within a served block is not visited and reads none, and neither does any where the last answer is
    replayed. A plan of computing and reusing holds at most one value per site. Where a gate decides, it is the most
    that may be held. Where a step begins anew for other branches of guidance the store is emptied, and nothing of
    before is left.
    """
    plan = plan.canonical()
    table, visited = plan.table(), _visited(plan)
    # Within what a gate may serve, a value may be computed or not.
    certain = (table == COMPUTE) & _visited(plan, certainly=True)
    reads = np.zeros(table.shape, dtype=np.int_)
    for step, site in zip(*np.nonzero(visited & (table != COMPUTE) & (table != SKIP)), strict=True):
        action = table[step, site]
        gated = plan.gate.depth if action == GATED and plan.gate is not None else 1
        reads[step, site] = int(action) + 1 if action in FORECASTS else gated
    held = np.zeros(table.shape, dtype=np.int_)
    wanted = np.zeros(len(plan.sites), dtype=np.int_)
    kinds = [one_kind(step.branches) for step in plan.steps]
    emptied = [False] + [before not in (ALL, now) for before, now in pairwise(kinds)]
    for step in range(len(plan.steps) - 1, -1, -1):
        held[step] = wanted
        # What was stored for other branches is read no more.
        wanted = np.zeros_like(wanted) if emptied[step] else np.maximum(wanted - certain[step], reads[step])
    made, available = visited & ((table == COMPUTE) | (table == GATED)), np.zeros(len(plan.sites), dtype=np.int_)
    for step, row in enumerate(made):
        available = (np.zeros_like(available) if emptied[step] else available) + row
        held[step] = np.minimum(held[step], available)
    return held


def held_bytes(plan: Plan, denoiser: nn.Module, traced: CallTrace, itemsize: int, branches: int = 1) -> int:
    """Most bytes the store holds at once in a run by the plan.

    Sites are visited in execution order, in one call per branch and step. A value is stored where it is computed and
    freed right after its last read (`values_held`). In a step for one branch of guidance half is kept, in one for two
    of three two thirds: of a guided run.
    What a step answers ahead is kept too, from that step until it is given out, and so is what is replayed, and the
    difference of guidance from the step that makes it to the last one that uses it again.

    Args:
        plan: the plan.
        denoiser: the denoiser it runs on; may be on the meta device.
        traced: one call of it.
        itemsize: bytes per number of the activations, e.g. 2 for bfloat16.
        branches: separate denoiser calls per step, each with a store of its own.

    Raises:
        FestinaError: the plan is for another denoiser.
    """
    during, held, numbers = _kept(plan, denoiser, traced, itemsize)
    steps, answer = plan.canonical().steps, traced.answer * itemsize
    before, total, most, kind, answered = np.zeros_like(numbers), 0, 0, ALL, 0
    difference, wanted = 0, difference_kept(steps)
    for place, (step, after) in enumerate(zip(steps, held, strict=True)):
        all_run, part = step.branches == ALL, _sixths(step)
        replayed_next = place + 1 < len(steps) and steps[place + 1].replays
        last = answer if all_run else branches * answer * part // _WHOLE
        newest = branches * answer // 2 if all_run and not step.replays else difference
        if step.model:
            # Nothing that was stored is read again.
            before, total = np.zeros_like(before), last * (branches if all_run else 1) * replayed_next
            difference = newest if wanted[place] else 0
            most, kind = max(most, total + difference), one_kind(step.branches)
            continue
        if answered or step.replays:
            # Answers that are given out, and freed unless the next step replays them.
            total -= 0 if replayed_next else last * (branches if all_run else 1)
            answered = max(0, answered - 1)
            difference = newest if wanted[place] else 0
            most = max(most, total + difference)
            continue
        if kind == ALL and not all_run:
            # What was stored for all branches is fitted to fewer before its first site is visited.
            total = total * part // _WHOLE
        elif one_kind(step.branches) != kind:
            before, total = np.zeros_like(before), 0
        each = [numbers] * branches if all_run else [numbers * branches * part // _WHOLE]
        for size in each:
            course = total + ((during[place] - before) * size).cumsum()
            most = max(most, difference + int(course.max(initial=0)))
            total = int(course[-1]) if len(course) else total
            if step.ahead:
                # All these steps have read what they read, and their answers are kept.
                total += int(((held[place + step.ahead] - after) * size).sum())
            total += (step.ahead + replayed_next) * last
            most = max(most, total + difference)
        difference = newest if wanted[place] else 0
        most = max(most, total + difference)
        total -= sum(int(((during[place] - after) * size).sum()) for size in each)
        before, kind, answered = held[place + step.ahead], one_kind(step.branches), step.ahead
    return most


def _kept(
    plan: Plan, denoiser: nn.Module, traced: CallTrace, itemsize: int
) -> tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.int64]]:
    """What may be kept, in the order in which it is made in a call.

    Returns:
        how many of it there are when it has been visited in each step, and how many after the step, int (steps, kept);
        and the bytes of one, int (kept,).
    """
    sites = resolve(denoiser, plan.sites)
    # A site that a call visits several times stores a value for each visit.
    events = sorted((place, index) for index, site in enumerate(sites) for place in _places(site, traced))
    order = [index for _, index in events]
    seen: dict[int, int] = {}
    sizes = []
    for index in order:
        seen[index] = seen.get(index, -1) + 1
        sizes.append(stored_numbers(sites[index], traced, seen[index]) * itemsize)
    values, sides = values_held(plan)[:, order], list(side_tensors(plan.canonical(), denoiser, traced))
    when = np.argsort([place for place, _ in events] + [side.place for side in sides], kind="stable")
    during, after = (
        np.column_stack([values, *columns])[:, when]
        for columns in ([side.during for side in sides], [side.after for side in sides])
    )
    return during, after, np.array(sizes + [side.bytes for side in sides], dtype=np.int64)[when]


def _places(site: Site, traced: CallTrace) -> list[int]:
    """When a site's visits end, as places in the order of all modules' ends."""
    return [place for place, path in enumerate(traced.visits) if path == site.paths[-1]]


def stored_numbers(site: Site, traced: CallTrace, visit: int = 0) -> int:
    """Numbers in the value a site stores for one of its visits in a call; 0 if it does not run.

    A component stores what it returns, a run of blocks what its last block returns (a change per stream), a run of
    regions what is read outside of it (`festina.sites.regions.kept_leaves`).
    """
    if not all(path in traced.returned for path in site.paths):
        return 0
    returned = [traced.returned[path][visit] for path in site.paths]
    if site.kind != FEATURE:
        return _numbers(returned[-1], range(len(returned[-1])))
    kept = kept_leaves([len(each) for each in returned], [traced.skips.get(path, 0) for path in site.paths])
    return sum(_numbers(each, wanted) for each, wanted in zip(returned, kept, strict=True))


def _numbers(returned: Sequence[Returned], wanted: Iterable[int]) -> int:
    """Numbers in these of the returned tensors; one that occurs twice counts once."""
    return sum(returned[place].numbers for place in {returned[index].same_as for index in wanted})


def _visited(plan: Plan, certainly: bool = False) -> NDArray[np.bool_]:
    """Which sites a canonical plan comes to in each step: all but those within a served one, and none in a step that
    replays the last answer or calls another model; bool (steps, sites).

    What lies within a gated one counts unless `certainly`.
    """
    table = plan.table()
    mask = (table == COMPUTE) if certainly else (table == COMPUTE) | (table == GATED)
    visited = [mask[:, parents].all(axis=1) for parents in enclosing_sites(plan.sites)]
    called = np.array([step.visits for step in plan.steps])
    reached: NDArray[np.bool_] = np.stack(visited, axis=1) & called[:, None]
    return reached
