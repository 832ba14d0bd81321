"""A plan's schedule in the order people read it: one panel per kind of component, blocks down, steps across."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from festina.plan import Plan

_WORDS: Mapping[str, str] = {
    # What diffusers' blocks call their parts, in the field's words.
    "attn": "attention",
    "attn1": "self-attention",
    "attn2": "cross-attention",
    "ff": "feed-forward",
    "ff_context": "feed-forward of the text",
    ":residual": "whole block",
}

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
        rows: per row the actions of all steps, one character each, canonical.
    """

    title: str
    labels: tuple[str, ...]
    rows: tuple[str, ...]


def panels(plan: Plan) -> tuple[Panel, ...]:
    """The canonical schedule of a plan, that is what runs, grouped by stack and component kind in execution order."""
    table = plan.canonical().table()
    grouped: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for column, site in enumerate(plan.sites):
        match = None if RUN in site else _SITE.fullmatch(site)
        stack, label, part = ("", site, "") if match is None else (match["stack"], match["block"], _part(match))
        grouped.setdefault((stack, part), []).append((label, "".join(table[:, column])))
    several = len({stack for stack, _ in grouped}) > 1
    return tuple(
        Panel(_title(stack if several else "", part), *(tuple(column) for column in zip(*rows, strict=True)))
        for (stack, part), rows in grouped.items()
    )


def _part(match: re.Match[str]) -> str:
    return match["part"] or match["residual"] or ""


def _title(stack: str, part: str) -> str:
    words = _WORDS.get(part, "")
    named = f"{words} ({part})" if words and not part.startswith(":") else words or part or "sites"
    return f"{stack}: {named}" if stack else named
