"""The benchmark as one self-contained HTML page, on the machinery of the front page of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from festina.benchmark import record
from festina.benchmark.looks import SHAPES, looks_of
from festina.benchmark.results import Benchmark, Result
from festina.report import figures
from festina.report.look import Look
from festina.report.page import assemble, is_wide, kind_data, picture_address, plan_data
from festina.strict import write_whole

STYLE = """
body > main { grid-template: "front detail" auto "runs runs" auto / minmax(0, 1.3fr) minmax(0, 1fr); }
#pictures .pair div { overflow-wrap: anywhere; }
#notes h3 { color: var(--ink); }
#notes ul { padding-left: 18px; overflow-wrap: anywhere; }
@media (min-width: 1021px) and (min-height: 640px) {
  main > #detail { position: static; max-height: 860px; }
  main > #front #plot { height: 640px; }
}
@media (max-width: 1020px) { body > main { grid-template: "front" "detail" "runs" / minmax(0, 1fr); } }
"""
"""Rules beside those of the page of a search: the table has more columns here, so it takes the whole width."""


def write_page(found: Benchmark, path: Path) -> None:
    """Write the page as one HTML file, whole or not at all.

    Raises:
        FestinaError: the folder does not exist or cannot be written.
    """
    write_whole(path, page_html(found))


def page_html(found: Benchmark) -> str:
    """The HTML text of the page; every text of the benchmark is escaped in it."""
    looks = looks_of(found.groups)
    marks = {group: _mark(place, group) for place, group in enumerate(looks)}
    parts = {
        "title": escape(f"Ways to run {found.model} faster"),
        "model": escape(found.model),
        "headline": _headline(found),
        "rows": "\n".join(_row(each, marks) for each in found.results),
        "kinds": "".join(
            f'<li data-kind="{marks[group]}">{_swatch(marks[group])}{escape(look.label)}</li>'
            for group, look in looks.items()
        ),
        "columns": "".join(f'<th scope="col">{escape(column)}</th>' for column in record.COLUMNS[1:]),
        "hardware": escape(found.hardware),
        "settings": escape(found.settings),
        "notes": _notes(found),
        "kind_colours": _colours(looks, marks) + STYLE,
    }
    return assemble(parts, _data(found, looks, marks))


def _mark(place: int, group: str) -> str:
    """What a group is called in style sheets."""
    return {"uncached": "uncached", "fewer steps": "fewer-steps"}.get(group, f"group-{place}")


def _headline(found: Benchmark) -> str:
    front = found.front
    compared = [each.rival.beaten for each in found.results if each.rival is not None]
    beaten, lost = compared.count("yes"), compared.count("no")
    return (
        f"<strong>{len(front)} of {len(found.results)} runs</strong> are on the front of seconds and reward. Of "
        f"{len(compared)} that fewer steps of the untouched sampler can be set against at the same seconds, "
        f"<strong>{beaten}</strong> have the higher reward and <strong>{lost}</strong> the lower one, at a confidence "
        f"of 95 %; {compared.count('even')} are even."
    )


def _swatch(mark: str) -> str:
    return f'<span class="swatch {mark}" aria-hidden="true"></span>'


def _row(result: Result, marks: Mapping[str, str]) -> str:
    name, mark = escape(result.variant.name), marks[result.variant.group]
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in record.row(result)[1:])
    return (
        f'<tr data-point="{name}" data-kind="{mark}"><th scope="row"><button type="button" class="choose" '
        f'data-point="{name}" aria-pressed="false">{_swatch(mark)}{name}</button></th>{cells}</tr>'
    )


def _notes(found: Benchmark) -> str:
    lists = [
        ("On the front", record.front_lines(found)),
        ("The same as another run", [f"{each.name} runs as {each.same_as}" for each in found.alike]),
        ("Seen besides", [f"{name}: {note}" for name, note in found.remarks]),
        ("Could not be run", [f"{each.name}: {each.reason}" for each in found.failed]),
    ]
    told = "".join(f"<h3>{heading}</h3><ul>{_items(lines)}</ul>" for heading, lines in lists if lines)
    return "".join(f"<p>{escape(note)}</p>" for note in found.notes) + told


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _colours(looks: Mapping[str, Look], marks: Mapping[str, str]) -> str:
    # The front page's kinds stand for what has no mark of its own.
    light = "".join(f"--{marks[group]}:{look.light};" for group, look in looks.items())
    dark = "".join(f"--{marks[group]}:{look.dark};" for group, look in looks.items())
    shapes = "".join(
        f".swatch.{marks[group]}{{background:var(--{marks[group]});{SHAPES.get(look.symbol, '')}}}"
        for group, look in looks.items()
        if marks[group].startswith("group-")
    )
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{shapes}"


def _data(found: Benchmark, looks: Mapping[str, Look], marks: Mapping[str, str]) -> dict[str, Any]:
    first = next((each for each in found.front if each.variant.plan is not None), found.uncached)
    return {
        "prompts": found.prompts,
        "uncached": found.uncached.variant.name,
        "first": first.variant.name,
        "wide": any(is_wide(png) for pictures in found.pictures.values() for png in pictures),
        "kinds": [kind_data(marks[group], look, faint=True) for group, look in looks.items()],
        "line": [each.variant.name for each in found.front],
        "points": [_point(each, found, marks) for each in found.results],
    }


def _point(result: Result, found: Benchmark, marks: Mapping[str, str]) -> dict[str, Any]:
    variant = result.variant
    unplanned = "The untouched sampler: every step computes everything, there is no plan."
    if variant.peer is not None:
        unplanned = f"{variant.peer.name} of {variant.peer.package} runs without a plan."
    return {
        "name": variant.name,
        "kind": marks[variant.group],
        "steps": variant.steps,
        "seconds": result.seconds,
        "macs": result.figures.macs,
        "reward": result.figures.reward,
        "low": result.reward_low,
        "high": result.reward_high,
        "figures": _figures(result, found.uncached),
        "pictures": [picture_address(png) for png in found.pictures[variant.name]],
        "plan": None if variant.plan is None else plan_data(variant.plan),
        "unplanned": unplanned,
    }


def _figures(result: Result, uncached: Result) -> list[tuple[str, str, str, str]]:
    """(key, label, figure, remark) of each figure of the detail pane."""
    own, whole, other = result.figures, uncached.figures.macs, result.rival
    share = figures.MISSING if own.macs is None or not whole else figures.share_text(own.macs, whole)
    held = figures.MISSING if own.held_bytes is None else figures.bytes_text(own.held_bytes)
    shown = [
        ("ratio", "Speed", figures.ratio_text(result.seconds_ratio), "times that of uncached"),
        ("seconds", "Seconds", figures.seconds_text(result.seconds), "per picture"),
        ("calls", "Network calls", str(result.variant.calls), "per picture"),
        ("macs", "MACs", record.macs_text(own.macs).removesuffix("MACs"), "per picture"),
        ("share", "Share of MACs", share, "of uncached"),
        ("reward", "Reward", figures.reward_text(own.reward), f"95 %: {record.interval_text(result)}"),
        ("frechet", "Fréchet distance", figures.frechet_text(own.frechet), "lower is better"),
        ("psnr", "PSNR", record.psnr_text(result), "to uncached pictures"),
        ("ssim", "SSIM", record.likeness_text(own.ssim), "1 is equal"),
        ("lpips", "LPIPS", record.likeness_text(own.lpips), "0 is equal"),
        ("held", "Memory held", held, "between steps, per picture"),
    ]
    if other is not None:
        gain = f"{other.gain:+.3f} ({other.gain_low:+.3f} to {other.gain_high:+.3f}) for this run"
        shown.append(("rival", "Fewer steps instead", figures.reward_text(other.reward), f"{record.steps_text(other)}"))
        shown.append(("beaten", "Beats them", other.beaten, gain))
    if (at_calls := result.rival_at_calls) is not None:
        remark = f"by as many network calls, {record.decibels(at_calls.psnr)}"
        shown.append(("at-calls", "Fewer steps, same calls", figures.reward_text(at_calls.reward), remark))
    return shown
