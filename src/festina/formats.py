"""Other people's plans: ECAD's schedule files (arXiv 2506.15682, released JSON), and step masks.

An ECAD schedule is a table steps x blocks x components of booleans, true = recompute, so that it carries the actions
compute and reuse and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.plan import COMPUTE, MAX_BYTES, MAX_SITES, MAX_STEPS, REUSE, Plan, Step
from festina.strict import read_json


@dataclass(frozen=True)
class _Stack:
    """A stack of blocks in both languages.

    Attributes:
        path: our path of the stack.
        count: ECAD's key of its number of blocks.
        prefix: what ECAD writes before the number of a block.
        components: our component and ECAD's, in our order of execution.
    """

    path: str
    count: str
    prefix: str
    components: tuple[tuple[str, str], ...]

    def sites(self, blocks: int) -> list[str]:
        return [f"{self.path}.{block}.{ours}" for block in range(blocks) for ours, _ in self.components]


_PIXART = (_Stack("transformer_blocks", "num_blocks", "", (("attn1", "attn1"), ("attn2", "attn2"), ("ff", "ff"))),)
_FLUX = (
    _Stack(
        "transformer_blocks",
        "num_blocks",
        "",
        (("attn", "full_attn"), ("ff", "full_ff"), ("ff_context", "full_ff_context")),
    ),
    _Stack(
        "single_transformer_blocks",
        "num_single_blocks",
        "single_",
        (("proj_mlp", "single_proj_mlp"), ("attn", "single_attn"), ("proj_out", "single_proj_out")),
    ),
)
_STACKS = {"PixArtTransformer2DModel": _PIXART, "FluxTransformer2DModel": _FLUX}


def from_ecad(text: str, denoiser: str | None = None) -> Plan:
    """Read an ECAD schedule file.

    The plan keeps the schedule bit by bit, and its name and config in the settings; recorded metrics are left behind.

    Args:
        text: the file's text.
        denoiser: class name of the denoiser the schedule must be for; told from the file if not given.

    Raises:
        FestinaError: the text is no ECAD schedule, is for another denoiser, or has custom functions (TGATE).
    """
    _want(len(text) <= MAX_BYTES, f"larger than a schedule can be ({MAX_BYTES} bytes)")
    record = read_json(text, "an ECAD schedule")
    _want(isinstance(record, dict) and "cache_schedule" in record, "it has no 'cache_schedule'")
    _keys(record, {"cache_schedule"}, {"config", "metrics"}, "the file")
    for name in ("config", "metrics"):
        _want(isinstance(record.get(name, {}), dict), f"{name!r} is an object")
    body = record["cache_schedule"]
    _want(isinstance(body, dict), "'cache_schedule' is an object")
    found = "FluxTransformer2DModel" if "num_single_blocks" in body else "PixArtTransformer2DModel"
    if denoiser not in (None, found):
        raise FestinaError(f"an ECAD schedule for {found}; wanted one for {denoiser}.")
    stacks = _STACKS[found]
    counts = {stack.count for stack in stacks}
    _keys(body, {"num_inference_steps", "name", "attributes", "schedule"} | counts, set(), "'cache_schedule'")
    _want(isinstance(body["name"], str), "'name' is a text")
    attributes = body["attributes"]
    _want(
        isinstance(attributes, dict) and all(type(value) is int for value in attributes.values()),
        "'attributes' is an object of counts",
    )
    blocks = [_count(body, stack.count, MAX_SITES) for stack in stacks]
    mask = _read_mask(body["schedule"], _count(body, "num_inference_steps", MAX_STEPS), stacks, blocks)
    sites = [site for stack, number in zip(stacks, blocks, strict=True) for site in stack.sites(number)]
    settings = {"name": body["name"], "config": record.get("config", {})}
    return Plan.from_mask(found, sites, mask, method="ecad", settings=settings)


def to_ecad(plan: Plan) -> str:
    """Write a plan as an ECAD schedule file, with empty metrics.

    Raises:
        FestinaError: the plan does more than compute and reuse, is for a class ECAD has no schedules for, or does not
            name every component of every block.
    """
    want_mask(plan, "an ECAD schedule")
    if plan.denoiser not in _STACKS:
        raise FestinaError(f"ECAD has no schedules for {plan.denoiser}; wanted one of {', '.join(_STACKS)}.")
    stacks = _STACKS[plan.denoiser]
    blocks = [_blocks_of(plan, stack) for stack in stacks]
    column = {site: number for number, site in enumerate(plan.sites)}
    wanted = {site for stack, number in zip(stacks, blocks, strict=True) for site in stack.sites(number)}
    if odd := sorted(wanted ^ set(column)):
        raise FestinaError(
            f"an ECAD schedule names every component of every block and nothing else; this plan has "
            f"{'no' if odd[0] in wanted else 'a'} site {odd[0]!r} ({len(odd)} such sites in all)."
        )
    schedule = {
        f"{step:03d}": {
            f"{stack.prefix}{block}": {
                theirs: bool(row[column[f"{stack.path}.{block}.{ours}"]]) for ours, theirs in stack.components
            }
            for stack, number in zip(stacks, blocks, strict=True)
            for block in range(number)
        }
        for step, row in enumerate(plan.mask())
    }
    body: dict[str, Any] = {stack.count: number for stack, number in zip(stacks, blocks, strict=True)}
    body |= {
        "num_inference_steps": len(plan.steps),
        "name": str(plan.settings.get("name", plan.method)),
        "attributes": _attributes(schedule),
        "schedule": schedule,
    }
    config = plan.settings.get("config", {})
    return json.dumps({"cache_schedule": body, "config": config if isinstance(config, dict) else {}, "metrics": {}})


def to_step_mask(plan: Plan, share: float | None = None) -> list[int]:
    """Which steps compute: 1 or 0 per step of the plan's canonical form.

    Args:
        plan: the plan.
        share: a step counts as computing if at least this share of the sites compute in it, above 0 and at most 1;
            without it, every step must compute all sites or none.

    Raises:
        FestinaError: the plan does more than compute and reuse, or `share` is out of range, or missing where a step
            computes a part of the sites.
    """
    if share is not None and not 0 < share <= 1:
        raise FestinaError(f"a share of {share} of the sites; wanted more than 0 and at most 1.")
    plan = plan.canonical()
    want_mask(plan, "a mask of steps")
    computing: NDArray[np.float64] = plan.mask().mean(axis=1)
    if share is not None:
        # The share as written, 0.1 say, may lie above the same share as counted.
        return [int(part >= share - 1e-9) for part in computing]
    if mixed := [step for step, part in enumerate(computing) if 0 < part < 1]:
        raise FestinaError(
            f"step {mixed[0]} computes {computing[mixed[0]]:.0%} of its sites ({len(mixed)} such steps), which a mask "
            f"of steps cannot say; give the `share` of sites from which a step counts as computing."
        )
    return [int(part) for part in computing]


def from_step_mask(mask: Sequence[int], denoiser: str, sites: Sequence[str]) -> Plan:
    """The plan that computes all sites in the steps marked 1 and reuses all in those marked 0.

    Raises:
        FestinaError: the mask is empty or has other values.
    """
    if not len(mask) or any(bit not in (0, 1) for bit in mask):
        raise FestinaError("a mask of steps holds one 0 or 1 per step; found something else, or nothing.")
    table = np.repeat(np.array(mask, dtype=bool)[:, None], len(sites), axis=1)
    return Plan.from_mask(denoiser, sites, table, method="step_mask")


def want_mask(plan: Plan, what: str) -> None:
    """Raise a `FestinaError` if a plan does more than compute and reuse; `what` says no more than these."""
    if plan.solver is not None:
        raise FestinaError(f"{what} knows compute and reuse only; this plan has a solver besides.")
    for place, step in enumerate(plan.steps):
        others, plainly = set(step.actions) - {COMPUTE, REUSE}, Step(step.noise, step.actions, shares=step.shares)
        found = [f"the actions {sorted(others)}"] if others else []
        found += [name for name, value in vars(step).items() if value != getattr(plainly, name)]
        if found:
            raise FestinaError(
                f"{what} knows compute and reuse only; step {place} of this plan has {', '.join(found)} besides."
            )


def _read_mask(schedule: Any, steps: int, stacks: Sequence[_Stack], blocks: Sequence[int]) -> NDArray[np.bool_]:
    """The schedule as (steps, sites). Sizes are compared before anything is built: a file's numbers may be absurd."""
    _want(isinstance(schedule, dict), "'schedule' is an object")
    _want(len(schedule) == steps, f"'schedule' has {len(schedule)} steps, 'num_inference_steps' says {steps}")
    rows = []
    for step in range(steps):
        row = schedule.get(f"{step:03d}")
        _want(isinstance(row, dict), f"'schedule' has an object for each step, as '{step:03d}'")
        _want(len(row) == sum(blocks), f"step '{step:03d}' has {len(row)} blocks, the header says {sum(blocks)}")
        rows.append(
            [
                bit
                for stack, number in zip(stacks, blocks, strict=True)
                for block in range(number)
                for bit in _read_cell(row.get(f"{stack.prefix}{block}"), stack, f"{stack.prefix}{block} of step {step}")
            ]
        )
    return np.array(rows, dtype=bool)


def _read_cell(cell: Any, stack: _Stack, where: str) -> list[bool]:
    _want(isinstance(cell, dict), f"block {where} is an object")
    names = [theirs for _, theirs in stack.components]
    if custom := sorted(name for name in cell if name.startswith("custom_")):
        raise FestinaError(
            f"block {where} of the ECAD schedule has its own {custom[0]!r} (TGATE), which a plan cannot express; "
            f"wanted a schedule of {', '.join(names)} alone."
        )
    _keys(cell, set(names), set(), f"block {where}")
    _want(all(type(cell[name]) is bool for name in names), f"block {where} holds true or false for each component")
    return [cell[name] for name in names]


def _attributes(schedule: dict[str, dict[str, dict[str, bool]]]) -> dict[str, int]:
    """ECAD's counts: steps that reuse anything, blocks that ever do, and pairs of step and block that do."""
    reusing = [(step, block) for step, row in schedule.items() for block, cell in row.items() if not all(cell.values())]
    blocks = {block for _, block in reusing}
    singles = {block for block in blocks if block.startswith("single_")}
    counts = {"num_affected_steps": len({step for step, _ in reusing}), "num_affected_blocks": len(blocks - singles)}
    if any(block.startswith("single_") for block in schedule["000"]):
        counts["num_affected_blocks_single"] = len(singles)
    return counts | {"total_num_affected_blocks": len(reusing)}


def _blocks_of(plan: Plan, stack: _Stack) -> int:
    """How many blocks of a stack a plan names: up to the highest number, but no more than it has sites."""
    numbers = [site.split(".")[1] for site in plan.sites if site.startswith(f"{stack.path}.")]
    return min(len(plan.sites), max((int(number) + 1 for number in numbers if number.isdecimal()), default=0))


def _count(body: dict[str, Any], name: str, most: int) -> int:
    value = body[name]
    _want(type(value) is int and 0 < value <= most, f"{name!r} is a number from 1 to {most}")
    assert isinstance(value, int)
    return value


def _keys(record: dict[str, Any], wanted: set[str], allowed: set[str], where: str) -> None:
    missing, unknown = sorted(wanted - set(record)), sorted(set(record) - wanted - allowed)
    _want(not missing, f"{where} lacks {missing[:5]}")
    _want(not unknown, f"{where} has unknown keys {unknown[:5]}")


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise FestinaError(f"not an ECAD schedule: {message}.")
