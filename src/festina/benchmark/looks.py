"""How each group of runs looks, on the page and on the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from festina.report.look import LOOKS, Look

HUES = (
    ("#0067a8", "#5cb8f5"),
    ("#c04e00", "#f2994a"),
    ("#9b3f86", "#e58fd0"),
    ("#8a6d00", "#dcbf4a"),
    ("#b02a37", "#f07f88"),
    ("#3d6f8f", "#93c4dd"),
    ("#5a4fcf", "#a9a2f5"),
    ("#5b7d1f", "#a9cf6a"),
)
"""Colours on a light and on a dark ground, after Okabe and Ito."""

SYMBOLS = (
    ("circle", "o"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("cross", "P"),
    ("x", "X"),
    ("triangle-down", "v"),
    ("triangle-right", ">"),
)
"""Names of markers in plotly and codes in matplotlib; no two of 56 groups have both colour and symbol in common, as the
number of colours and that of symbols have no divisor in common."""

SHAPES = {
    "diamond": "border-radius:0;transform:rotate(45deg) scale(.85)",
    "triangle-up": "border-radius:0;clip-path:polygon(50% 0,100% 100%,0 100%)",
    "triangle-down": "border-radius:0;clip-path:polygon(0 0,100% 0,50% 100%)",
    "triangle-right": "border-radius:0;clip-path:polygon(0 0,100% 50%,0 100%)",
    "cross": "border-radius:0;clip-path:polygon(33% 0,67% 0,67% 33%,100% 33%,100% 67%,67% 67%,67% 100%,33% 100%,"
    "33% 67%,0 67%,0 33%,33% 33%)",
    "x": "border-radius:0;clip-path:polygon(20% 0,50% 30%,80% 0,100% 20%,70% 50%,100% 80%,80% 100%,50% 70%,20% 100%,"
    "0 80%,30% 50%,0 20%)",
}
"""Style of the mark in legend and table, by the name of the symbol; circles have none."""


def looks_of(groups: Sequence[str]) -> Mapping[str, Look]:
    """A look for each group: the untouched sampler as on the page of a search, the others each their own."""
    known = {"uncached": LOOKS["uncached"], "fewer steps": LOOKS["fewer-steps"]}
    others = [group for group in groups if group not in known]
    return {group: known[group] if group in known else _look(group, others.index(group)) for group in groups}


def _look(group: str, place: int) -> Look:
    light, dark = HUES[place % len(HUES)]
    symbol, marker = SYMBOLS[place % len(SYMBOLS)]
    return replace(LOOKS["front"], label=group, light=light, dark=dark, symbol=symbol, marker=marker, size=9, line="")
