"""A plan's schedule in the order people read it: one panel per kind of component, blocks down, steps across."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from festina.plan import Plan
from festina.records import ALL, DIFFERENCE, JOINT, Step

_WORDS: Mapping[str, str] = {
    # What diffusers' blocks call their parts, in the field's words.
    "attn": "attention",
    "attn1": "self-attention",
    "attn2": "cross-attention",
    "ff": "feed-forward",
    "ff_context": "feed-forward of the text",
    ":residual": "whole block",
}

REPLAYED, STOOD_IN = "L", "M"
"""What stands for an action in a step without a call of the pipeline's own denoiser: its last answer is given again, or
another model is called."""

_GUIDED = (ALL, DIFFERENCE, JOINT)
"""Branches by whose answers a pipeline guides."""

RUN = ".."
"""What stands between both ends of a run of blocks or regions."""

# The stack ends before the first number, the component begins after the last.
_SITE = re.compile(r"(?P<stack>.+?)\.(?P<block>\d+(?:\..+\.\d+)?)(?:\.(?P<part>[^:]+))?(?P<residual>:residual)?")


@dataclass(frozen=True)
class Panel:
    """The sites of one component kind.

    Attributes:
        title: the component and, if the plan has several stacks, the stack.
        labels: label of each row: the block number, the path from there on in a U-Net, or the whole name of a run or of
            a site outside any list of blocks.
        rows: per row the actions of all steps, one character each, canonical; `REPLAYED` or `STOOD_IN` where there is
            none.
    """

    title: str
    labels: tuple[str, ...]
    rows: tuple[str, ...]


def panels(plan: Plan) -> tuple[Panel, ...]:
    """The canonical schedule of a plan, that is what runs, grouped by stack and component kind in execution order."""
    steps = plan.canonical().steps
    columns = [step.actions if step.visits else _unvisited(step) * len(plan.sites) for step in steps]
    grouped: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for column, site in enumerate(plan.sites):
        match = None if RUN in site else _SITE.fullmatch(site)
        stack, label, part = ("", site, "") if match is None else (match["stack"], match["block"], _part(match))
        grouped.setdefault((stack, part), []).append((label, "".join(step[column] for step in columns)))
    several = len({stack for stack, _ in grouped}) > 1
    return tuple(
        Panel(_title(stack if several else "", part), *(tuple(column) for column in zip(*rows, strict=True)))
        for (stack, part), rows in grouped.items()
    )


def told(plan: Plan) -> str:
    """What the panels do not show, in a sentence or more."""
    made = plan.canonical()
    words = [f"What runs in {made.denoiser}, made by {made.method}."]
    if made.solver is not None:
        words.append(f"The sampler is the plan's own, of {made.solver.calls} calls.")
    if models := sorted(made.models):
        words.append(f"Other models: {', '.join(models)}.")
    guided = sum(step.branches in _GUIDED and step.guidance != 0 for step in made.steps)
    if guided < len(made.steps):
        words.append(f"Where the pipeline guides, it does in {guided} of {len(made.steps)} steps.")
    return " ".join(words)


def _unvisited(step: Step) -> str:
    return REPLAYED if step.replays else STOOD_IN


def _part(match: re.Match[str]) -> str:
    return match["part"] or match["residual"] or ""


def _title(stack: str, part: str) -> str:
    words = _WORDS.get(part, "")
    named = f"{words} ({part})" if words and not part.startswith(":") else words or part or "sites"
    return f"{stack}: {named}" if stack else named
