"""How each kind of point looks, on the page and on the static plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from festina.report.points import Kind


@dataclass(frozen=True)
class Look:
    """The look of one kind of point.

    Attributes:
        label: what the legend says.
        light: colour on a light ground.
        dark: colour on a dark ground.
        symbol: marker name of plotly.
        marker: marker code of matplotlib.
        size: marker size in pixels on the page.
        line: dash of the connecting line in plotly's words, "" for markers alone.
    """

    label: str
    light: str
    dark: str
    symbol: str
    marker: str
    size: int
    line: str


LOOKS: Mapping[Kind, Look] = {
    # The order is the order of tables and legends. Hues after Okabe and Ito, told apart by colour-blind readers too;
    # every kind has a symbol of its own besides.
    "uncached": Look("Uncached", "#16181d", "#f4f4f6", "star", "*", 15, ""),
    "front": Look("Front (found by search)", "#0067a8", "#5cb8f5", "circle", "o", 10, "solid"),
    "fewer-steps": Look("Fewer steps, untouched sampler", "#00795a", "#35c79b", "square", "s", 8, "dot"),
    "fora": Look("FORA", "#c04e00", "#f2994a", "diamond", "D", 10, ""),
    "seed": Look("Seeds of the search", "#83878f", "#8a8f99", "circle-open", "o", 7, ""),
}
