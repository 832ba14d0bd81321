"""The one normal form of a plan: two plans with the same run identically. No torch.

What it does is told at `festina.plan.Plan.canonical`, and in the pages on the plan file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from festina.answering import cut_ahead
from festina.forecasts import NEWTON, TAYLOR
from festina.records import (
    ALL,
    COMPUTE,
    CONDITIONAL,
    DIFFERENCE,
    FORECASTS,
    GATED,
    JOINT,
    PARTIAL,
    REUSE,
    Step,
    enclosing_sites,
    one_kind,
)

if TYPE_CHECKING:
    from festina.plan import Plan


def canonical(plan: Plan) -> Plan:
    """The plan in its normal form."""
    steps = canonical_steps(plan.sites, plan.steps)
    used = set().union(*(step.actions for step in steps))
    gate, tokens = plan.gate if GATED in used else None, plan.tokens if PARTIAL in used else None
    # A line through two values is one line, whether written by Newton or by Taylor.
    order = max([int(action) for action in used & set(FORECASTS)] + [gate.order if gate else 0])
    plain_basis = order == 0 or (order == 1 and plan.basis == TAYLOR)
    basis = NEWTON if plain_basis else plan.basis
    solver = plan.solver
    if solver is not None:
        # Most plans leave the solver to the pipeline's scheduler, and want nothing of torch.
        from festina.samplers.composing import composed

        solver = composed(solver, steps)
    return replace(plan, steps=steps, gate=gate, tokens=tokens, basis=basis, solver=solver)


def canonical_steps(sites: Sequence[str], steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of a plan in their normal form.

    Args:
        sites: names of the plan's sites.
        steps: its steps.
    """
    parents = enclosing_sites(sites)
    outermost_first = sorted(range(len(sites)), key=lambda site: len(parents[site]))
    computed = [0] * len(sites)
    rows: list[Step] = []
    for index, (step, branches) in enumerate(zip(steps, _canonical_branches(steps), strict=True)):
        # One answer that stands for both is the same at any strength.
        guidance = float(step.guidance) + 0.0 if branches in (ALL, DIFFERENCE, JOINT) else 1.0
        if step.replays and index:
            # Whatever it says of sites or branches, the denoiser is not called; it is as the step before left it.
            actions = REUSE * len(sites)
            made = replace(step, actions=actions, branches=branches, ahead=0, shares=(), guidance=guidance)
            rows.append(replace(made, model=""))
            continue
        before = one_kind(rows[-1].branches if rows else branches)
        if step.model:
            # The pipeline's own denoiser is not called, and goes on with nothing that was stored before.
            actions, computed = REUSE * len(sites), [0] * len(sites)
            made = replace(step, actions=actions, branches=branches, ahead=0, shares=(), replay=None)
            rows.append(replace(made, guidance=guidance))
            continue
        anew = index == 0 or bool(_last_called(rows).model) or (one_kind(branches) != before and before != ALL)
        # Then what was stored before is forgotten, and no forecast can read it.
        computed = [0] * len(sites) if anew else computed
        row = [COMPUTE] * len(sites) if anew else list(step.actions)
        for site in outermost_first:
            row[site] = _canonical_action(row, site, parents[site], computed[site], step)
            certain = all(row[parent] == COMPUTE for parent in parents[site])
            computed[site] += row[site] == COMPUTE and certain
        # A step without `T` has no shares.
        kept = [share if action == PARTIAL else 0.0 for action, share in zip(row, step.shares, strict=False)]
        shares = tuple(kept) if PARTIAL in row else ()
        ahead = 0 if branches in (DIFFERENCE, JOINT) else step.ahead
        made = replace(step, actions="".join(row), shares=shares, replay=None, branches=branches, guidance=guidance)
        rows.append(replace(made, ahead=ahead))
    return tuple(cut_ahead(sites, rows))


def _last_called(steps: Sequence[Step]) -> Step:
    """The last of some steps in which a denoiser is called, which their first is."""
    return next(step for step in reversed(steps) if not step.replays)


def _canonical_branches(steps: Sequence[Step]) -> list[str]:
    """The branches of each step: those of the step before where one replays, and all where a difference is to be used
    again, but there is none, or what was stored with it is forgotten since."""
    found: list[str] = []
    known = False
    for index, step in enumerate(steps):
        if step.replays and index:
            found.append(found[-1])
            continue
        # A difference that is multiplied with 0 is none.
        branches = CONDITIONAL if step.branches == DIFFERENCE and not step.guidance else step.branches
        before = one_kind(found[-1]) if found else ALL
        known = known and before in (ALL, one_kind(branches))
        branches = ALL if branches == DIFFERENCE and not known else branches
        known = known or branches == ALL
        found.append(branches)
    return found


def _canonical_action(row: Sequence[str], site: int, parents: Sequence[int], computed: int, step: Step) -> str:
    """The action of a site whose parents' actions are canonical, with so many values certainly computed before."""
    action = row[site]
    if any(row[parent] not in COMPUTE + GATED for parent in parents):
        return REUSE
    if action in FORECASTS:
        order = min(int(action), computed - 1)
        return str(order) if order > 0 else REUSE
    if action == PARTIAL and not step.shares[site]:
        return REUSE
    return action


def key_of(plan: Plan) -> str:
    """SHA-256 (hex) of what a plan in its normal form does. Provenance does not enter."""
    what = [plan.denoiser, *plan.sites, *(step.actions for step in plan.steps)]
    what += [] if plan.basis == NEWTON else [plan.basis]
    if any(step.branches != ALL for step in plan.steps):
        what += [step.branches for step in plan.steps]
    if any(step.guidance != 1 for step in plan.steps):
        what += [f"{float(step.guidance)!r} times guided" for step in plan.steps]
    if any(step.injected for step in plan.steps):
        what += [repr(float(step.injected) + 0.0) for step in plan.steps]
    if any(step.ahead for step in plan.steps):
        what += [f"{step.ahead} ahead" for step in plan.steps]
    if any(step.replays for step in plan.steps):
        what += ["called" if step.replay is None else f"replayed {float(step.replay) + 0.0!r}" for step in plan.steps]
    if plan.models:
        what += [f"by {step.model}" if step.model else "by its own" for step in plan.steps]
    what += [] if plan.solver is None else [json.dumps(plan.solver.to_json(), sort_keys=True)]
    if plan.tokens is not None:
        what += [repr([float(share) for share in step.shares]) for step in plan.steps]
        what += [json.dumps(plan.tokens.to_record(), sort_keys=True)]
    what += [] if plan.gate is None else [json.dumps(plan.gate.to_record(), sort_keys=True)]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()
