"""A benchmark as data (`bench.json`) and as tables (`bench.md`, the terminal)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from festina.benchmark.results import Benchmark, Result, Rival
from festina.report import figures
from festina.report.tables import markdown

SCHEMA = 1
"""Version of `bench.json`."""

COLUMNS = (
    "Run",
    "Seconds ratio",
    "Seconds per picture",
    "Network calls",
    "MACs per picture",
    "Held per picture",
    "Reward (95 % interval)",
    "Fréchet distance",
    "PSNR",
    "SSIM",
    "LPIPS",
    "Fewer steps, same seconds",
    "its reward",
    "its PSNR",
    "Beats it",
    "Fewer steps, same calls: reward",
    "PSNR there",
)

TERMINAL_COLUMNS = ("Run", "Ratio", "MACs", "Reward (95 %)", "PSNR", "Fewer steps, same seconds", "Beats it")


def to_json(found: Benchmark) -> str:
    """The text of `bench.json`: strict JSON, an infinite PSNR as the text "inf"."""
    record = {
        "festina_bench": SCHEMA,
        "model": found.model,
        "asked": found.asked,
        "settings": found.settings,
        "rounds": found.rounds,
        "runs": [_run(each) for each in found.results],
        "front": [each.variant.name for each in found.front],
        "alike": [vars(each) | {"settings": dict(each.settings)} for each in found.alike],
        "failed": [vars(each) | {"settings": dict(each.settings)} for each in found.failed],
        "notes": found.notes,
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(found: Benchmark) -> str:
    """The text of `bench.md`: the table of all runs, the front, what could not be run, and how it was measured."""
    parts = [f"# Ways to run {found.model} faster\n", markdown(COLUMNS, [row(each) for each in found.results])]
    parts.append("## Front of seconds and reward\n")
    parts.append(markdown(("Run", "Seconds ratio", "Reward"), [_brief(each) for each in found.front]))
    if found.alike:
        parts.append("## The same as another run\n")
        parts.append(markdown(("Run", "runs as"), [(each.name, each.same_as) for each in found.alike]))
    if found.failed:
        parts.append("## Could not be run\n")
        parts.append(markdown(("Run", "Reason"), [(each.name, each.reason) for each in found.failed]))
    if found.remarks:
        parts.append("## Seen besides\n")
        parts.append(markdown(("Run", "Remark"), found.remarks))
    parts.append("## How this was measured\n")
    parts.append("".join(f"{text}\n\n" for text in (f"{found.settings}; {found.hardware}.", *found.notes)).rstrip())
    return "\n".join(parts) + "\n"


def row(result: Result) -> tuple[str, ...]:
    """The cells of a run, one per entry of `COLUMNS`."""
    own, other, at_calls = result.figures, result.rival, result.rival_at_calls
    return (
        result.variant.name,
        figures.ratio_text(result.seconds_ratio),
        figures.seconds_text(result.seconds),
        str(result.variant.calls),
        macs_text(own.macs),
        figures.MISSING if own.held_bytes is None else figures.bytes_text(own.held_bytes),
        f"{figures.reward_text(own.reward)} ({interval_text(result)})",
        figures.frechet_text(own.frechet),
        psnr_text(result),
        likeness_text(own.ssim),
        likeness_text(own.lpips),
        steps_text(other),
        figures.MISSING if other is None else figures.reward_text(other.reward),
        figures.MISSING if other is None else decibels(other.psnr),
        figures.MISSING if other is None else other.beaten,
        figures.MISSING if at_calls is None else figures.reward_text(at_calls.reward),
        figures.MISSING if at_calls is None else decibels(at_calls.psnr),
    )


def terminal_table(found: Benchmark) -> Table:
    """The runs as a table for the terminal; those on the front are bold."""
    table = Table(title=Text(f"Ways to run {found.model} faster"), header_style="bold")
    for number, column in enumerate(TERMINAL_COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True, max_width=None if number else 40)
    for each in found.results:
        half = max(each.reward_high - each.figures.reward, each.figures.reward - each.reward_low)
        other = each.rival
        cells = (
            each.variant.name,
            figures.ratio_text(each.seconds_ratio),
            macs_text(each.figures.macs).removesuffix("MACs"),
            f"{figures.reward_text(each.figures.reward)} ± {figures.reward_text(half)}",
            psnr_text(each),
            figures.MISSING if other is None else f"{figures.reward_text(other.reward)} ({steps_text(other)})",
            figures.MISSING if other is None else other.beaten,
        )
        table.add_row(*(Text(cell) for cell in cells), style="bold" if each.on_front else "")
    return table


def front_lines(found: Benchmark) -> list[str]:
    """The runs on the front, the fastest first, a line each."""
    return [f"{name}: {ratio} as fast as uncached, reward {reward}" for name, ratio, reward in map(_brief, found.front)]


def interval_text(result: Result) -> str:
    """The 95 % confidence interval of a run's reward."""
    return f"{result.reward_low:.3f} to {result.reward_high:.3f}"


def macs_text(macs: int | None) -> str:
    """MACs, where they were counted."""
    return figures.MISSING if macs is None else figures.macs_text(macs)


def psnr_text(result: Result) -> str:
    """PSNR to the uncached pictures."""
    return figures.MISSING if result.variant.kind == "uncached" else decibels(result.figures.psnr)


def decibels(value: float) -> str:
    """A PSNR; infinite for equal pictures."""
    return "∞" if math.isinf(value) else f"{value:.1f} dB"


def likeness_text(value: float | None) -> str:
    """An SSIM or LPIPS."""
    return figures.MISSING if value is None else f"{value:.3f}"


def steps_text(other: Rival | None) -> str:
    """The numbers of steps that a run is compared with."""
    return figures.MISSING if other is None else f"{' to '.join(map(str, other.steps))} steps"


def _brief(result: Result) -> Sequence[str]:
    ratio, reward = figures.ratio_text(result.seconds_ratio), figures.reward_text(result.figures.reward)
    return result.variant.name, ratio, reward


def _run(result: Result) -> dict[str, Any]:
    variant, own = result.variant, result.figures
    return {
        "name": variant.name,
        "kind": variant.kind,
        "group": variant.group,
        "steps": variant.steps,
        "calls": variant.calls,
        "settings": dict(variant.settings),
        "key": variant.key,
        "seconds": result.seconds,
        "seconds_ratio": result.seconds_ratio,
        "macs": own.macs,
        "held_bytes": own.held_bytes,
        "reward": own.reward,
        "reward_low": result.reward_low,
        "reward_high": result.reward_high,
        "frechet": own.frechet,
        "psnr": _finite(own.psnr),
        "ssim": own.ssim,
        "lpips": own.lpips,
        "same_seconds": _rival(result.rival),
        "same_calls": _rival(result.rival_at_calls),
        "on_front": result.on_front,
        "notes": own.notes,
    }


def _rival(other: Rival | None) -> dict[str, Any] | None:
    if other is None:
        return None
    return {
        "steps": other.steps,
        "reward": other.reward,
        "psnr": _finite(other.psnr),
        "gain": other.gain,
        "gain_low": other.gain_low,
        "gain_high": other.gain_high,
        "beaten": other.beaten,
    }


def _finite(value: float) -> float | str:
    return "inf" if math.isinf(value) else value
