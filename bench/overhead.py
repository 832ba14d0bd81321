"""What attaching a plan costs when it saves nothing.

Prints, for the denoiser of `scenes` (a small random PixArt where its weights are missing) and for a deep and narrow
PixArt, on which Python is the largest part of a call, a Markdown table with the seconds of a bare denoiser call

- untouched,
- with a plan that computes everything attached (no site is wrapped, only the clock runs),
- with every site wrapped and computing all the same (the most the wrappers can cost),

each as a ratio to untouched from interleaved rounds; and the milliseconds it takes to attach such a plan and to take it
off again. All three give the same bits, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from models import Model, around_pixart, computing_all, pixart, same, sample, sample_by
from timing import (
    Figures,
    at_least,
    command,
    describe,
    interleaved,
    markdown,
    ratio,
    run_program,
    save_record,
    seconds_of,
    tell,
    times,
)
from torch import nn

from festina.errors import FestinaError
from festina.executor import accelerate
from festina.plan import REUSE, Plan
from festina.zoo import load

CPU = torch.device("cpu")
CAPTION_TOKENS, ROWS = 20, 2

UNTOUCHED, ATTACHED, WRAPPED = "untouched", "attached, nothing wrapped", "attached, every site wrapped"


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    parser = command(__doc__, rounds=15)
    parser.add_argument("--calls", type=at_least(1), default=20, help="denoiser calls per variant and round (20)")
    parser.add_argument("--blocks", type=at_least(1), default=28, help="blocks of the deep, narrow PixArt (28)")
    asked = parser.parse_args(arguments)
    figures: Figures = {}
    for model in (shipped_or_small(), narrow(asked.blocks)):
        tell(f"{model.name}: {len(model.sites)} sites")
        figures[model.name] = measure(model, asked.calls, asked.rounds)
    print(table(figures))
    print(f"{asked.rounds} rounds of {asked.calls} calls; {describe(CPU)}")
    save_record(asked, "overhead", figures, CPU)
    return figures


def shipped_or_small() -> Model:
    """The denoiser of `scenes`; if it is not there, a random one of about its size."""
    try:
        return around_pixart("scenes", load("scenes").transformer, CAPTION_TOKENS, ROWS)
    except FestinaError as error:
        tell(f"no scenes, a random PixArt of its size instead: {error}")
        return pixart("PixArt, 8 blocks, 192 wide", 8, 6, 32, 16, 128, CAPTION_TOKENS, ROWS, CPU, torch.float32)


def narrow(blocks: int) -> Model:
    """A PixArt 64 wide."""
    name = f"PixArt, {blocks} blocks, 64 wide"
    return pixart(name, blocks, 2, 32, 16, 64, CAPTION_TOKENS, ROWS, CPU, torch.float32)


def measure(model: Model, calls: int, rounds: int) -> Figures:
    """Seconds of the three ways to call one denoiser, and of attaching and removing a plan."""
    plain, wrapping = computing_all(model.denoiser, calls), wrapping_plan(model.denoiser, calls)
    wanted = sample(model, calls)
    found = {name: _by(model, plan, calls) for name, plan in ((ATTACHED, plain), (WRAPPED, wrapping))}
    with accelerate(model.denoiser, wrapping):
        wrapped = sum("forward" in module.__dict__ for module in model.denoiser.modules()) - 1
    seconds = interleaved(
        {
            UNTOUCHED: lambda: seconds_of(lambda: sample(model, calls)) / calls,
            ATTACHED: _timed(model, plain, calls),
            WRAPPED: _timed(model, wrapping, calls),
            "apply and remove": lambda: seconds_of(lambda: _attach_and_remove(model.denoiser, wrapping)),
        },
        rounds,
    )
    return {
        "sites": len(model.sites),
        "wrapped_sites": wrapped,
        "bit_identical": {name: same(wanted, outputs) for name, (outputs, _) in found.items()},
        "served": {name: served for name, (_, served) in found.items()},
        "seconds": seconds,
        "ratio": {name: ratio(seconds[name], seconds[UNTOUCHED]) for name in (ATTACHED, WRAPPED)},
    }


def wrapping_plan(denoiser: nn.Module, calls: int) -> Plan:
    """A plan that has to wrap every site, as each is reused in the step after the `calls` that are timed."""
    plan = computing_all(denoiser, calls + 1)
    return replace(plan, steps=(*plan.steps[:-1], replace(plan.steps[-1], actions=REUSE * len(plan.sites))))


def table(figures: Figures) -> str:
    """The figures in Markdown."""
    headings = ("Denoiser", "Sites", "Untouched", "Attached", "Every site wrapped", "Apply and remove")
    rows = []
    for name, found in figures.items():
        middle = {way: 1000 * median(seconds) for way, seconds in found["seconds"].items()}
        cells = (f"{middle[way]:.3f} ms ({times(found['ratio'][way], 3)})" for way in (ATTACHED, WRAPPED))
        untouched = f"{middle[UNTOUCHED]:.3f} ms"
        rows.append((name, found["sites"], untouched, *cells, f"{middle['apply and remove']:.2f} ms"))
    return markdown(headings, rows)


def _by(model: Model, plan: Plan, calls: int) -> tuple[list[Any], int]:
    """The outputs of the first `calls` steps of a plan, and how often a site was served in them."""
    with accelerate(model.denoiser, plan) as run:
        outputs = sample_by(model, run, calls)
        return outputs, sum(run.report().served.values())


def _timed(model: Model, plan: Plan, calls: int) -> Callable[[], float]:
    def seconds() -> float:
        with accelerate(model.denoiser, plan) as run:
            return seconds_of(lambda: sample_by(model, run, calls)) / calls

    return seconds


def _attach_and_remove(denoiser: nn.Module, plan: Plan) -> None:
    with accelerate(denoiser, plan):
        pass


if __name__ == "__main__":
    run_program(main)
