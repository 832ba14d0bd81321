"""The front as one self-contained HTML page: no network, no server, opened from disk."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from festina.plan import COMPUTE, FORECASTS, GATED, PARTIAL, REUSE, SKIP, Plan
from festina.report import figures, tables
from festina.report.headline import Headline, headline
from festina.report.look import LOOKS, Look
from festina.report.points import FrontPage, Kind, Point
from festina.report.schedule import REPLAYED, STOOD_IN, panels, told
from festina.strict import write_whole


def write_page(page: FrontPage, path: str | os.PathLike[str]) -> None:
    """Write a page as one HTML file, whole or not at all.

    Raises:
        FestinaError: the folder does not exist or cannot be written.
    """
    write_whole(Path(path), page_html(page))


def page_html(page: FrontPage) -> str:
    """The HTML text of a page; every text of the page is escaped in it."""
    best = headline(page)
    parts = {
        "title": escape(page.title),
        "model": escape(page.model),
        "headline": _headline_html(best),
        "rows": "\n".join(_row_html(point) for point in _in_order(page)),
        "kinds": "".join(_kind_html(kind, look.label) for kind, look in LOOKS.items() if page.of_kind(kind)),
        "columns": "".join(f'<th scope="col">{escape(column)}</th>' for column in tables.COLUMNS[1:]),
        "hardware": escape(page.hardware),
        "settings": escape(page.settings),
        "notes": "".join(f"<p>{escape(note)}</p>" for note in page.notes),
        "kind_colours": _colours(),
    }
    return assemble(parts, _data(page, best))


def assemble(parts: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """The HTML text of a page of measured runs, with its scripts.

    Args:
        parts: HTML by the names that `page.html` gives to its gaps: title, model, headline, rows, kinds, columns,
            hardware, settings, notes, and kind_colours (style sheet).
        data: what `page.js` reads.
    """
    shared = {
        "style": _resource("page.css"),
        "schedule": _resource("schedule.js"),
        "script": _resource("page.js"),
        "plotly": get_plotlyjs(),
        "data": _script_json(data),
    }
    return Template(_resource("page.html")).substitute({**parts, **shared})


def _resource(name: str) -> str:
    return files("festina.report").joinpath(name).read_text(encoding="utf-8")


def _in_order(page: FrontPage) -> list[Point]:
    return [point for kind in LOOKS for point in page.of_kind(kind)]


def _headline_html(best: Headline) -> str:
    return "".join(f"<strong>{escape(text)}</strong>" if stressed else escape(text) for text, stressed in best.parts)


def _kind_html(kind: Kind, label: str) -> str:
    return f'<li data-kind="{kind}"><span class="swatch {kind}" aria-hidden="true"></span>{escape(label)}</li>'


def _row_html(point: Point) -> str:
    name = escape(point.name)
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in tables.row(point)[1:])
    return (
        f'<tr data-point="{name}" data-kind="{point.kind}"><th scope="row">'
        f'<button type="button" class="choose" data-point="{name}" aria-pressed="false">'
        f'<span class="swatch {point.kind}" aria-hidden="true"></span>{name}</button></th>{cells}</tr>'
    )


def _colours() -> str:
    light = "".join(f"--{kind}:{look.light};" for kind, look in LOOKS.items())
    dark = "".join(f"--{kind}:{look.dark};" for kind, look in LOOKS.items())
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _script_json(data: Any) -> str:
    """JSON for a script element: no character in it can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _data(page: FrontPage, best: Headline) -> dict[str, Any]:
    first = best.point or next(iter(page.of_kind("front")), page.uncached)
    return {
        "prompts": page.prompts,
        "uncached": page.uncached.name,
        "first": first.name,
        "wide": any(is_wide(png) for point in page.points for png in point.pictures),
        "kinds": [kind_data(kind, look, faint=kind == "seed") for kind, look in LOOKS.items()],
        "line": [],
        "points": [_point_data(point, page.uncached) for point in _in_order(page)],
    }


def kind_data(kind: str, look: Look, faint: bool) -> dict[str, Any]:
    """What `page.js` reads of a kind of points; bars of a faint kind stand back."""
    return {
        "kind": kind,
        "label": look.label,
        "symbol": look.symbol,
        "size": look.size,
        "line": look.line,
        "faint": faint,
    }


def is_wide(png: bytes) -> bool:
    """Whether a picture is twice as wide as it is high, or more, like the frames of a video side by side."""
    # The header of a PNG file has width and height at fixed places.
    width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
    return width >= 2 * height > 0


def _point_data(point: Point, uncached: Point) -> dict[str, Any]:
    return {
        "name": point.name,
        "kind": point.kind,
        "steps": point.steps,
        "seconds": point.seconds,
        "macs": point.macs,
        "reward": point.reward,
        "low": point.reward_low,
        "high": point.reward_high,
        "figures": _figures(point, uncached),
        "pictures": [picture_address(png) for png in point.pictures],
        "plan": None if point.plan is None else plan_data(point.plan),
        "unplanned": "The untouched sampler: every step computes everything, there is no plan.",
    }


def picture_address(png: bytes) -> str:
    """A PNG file as an address, so that it is part of the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _figures(point: Point, uncached: Point) -> list[tuple[str, str, str, str]]:
    """(key, label, figure, remark) of each figure of the detail pane."""
    return [
        ("ratio", "Speed", figures.point_ratio_text(point), "times that of uncached"),
        ("seconds", "Seconds", figures.seconds_text(point.seconds), "per picture"),
        ("macs", "MACs", figures.macs_text(point.macs).removesuffix("MACs"), "per picture"),
        ("share", "Share of MACs", figures.share_text(point.macs, uncached.macs), "of uncached"),
        ("reward", "Reward", figures.reward_text(point.reward), f"95 %: {figures.interval_text(point)}"),
        ("frechet", "Fréchet distance", figures.frechet_text(point.frechet), "lower is better"),
        ("psnr", "PSNR", figures.psnr_text(point), "to uncached pictures"),
        ("held", "Memory held", figures.bytes_text(point.held_bytes), "between steps"),
    ]


def plan_data(plan: Plan) -> dict[str, Any]:
    """What `schedule.js` reads of a plan."""
    shown = panels(plan)
    text = "".join(row for panel in shown for row in panel.rows)
    counts = {
        "compute": text.count(COMPUTE),
        "reuse": text.count(REUSE),
        "forecast": sum(text.count(order) for order in FORECASTS),
        "skip": text.count(SKIP),
        "gate": text.count(GATED),
        "tokens": text.count(PARTIAL),
        "replay": text.count(REPLAYED),
        "model": text.count(STOOD_IN),
    }
    return {
        "json": plan.to_json(),
        "told": told(plan),
        "noise": [step.noise for step in plan.steps],
        "counts": counts,
        "panels": [{"title": panel.title, "labels": panel.labels, "rows": panel.rows} for panel in shown],
    }
