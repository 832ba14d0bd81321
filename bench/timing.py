"""What the benchmarks share: interleaved timing, the machine in words, records, tables and the frame of a program."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from festina.benchmark.machine import hardware, in_words, libraries
from festina.errors import FestinaError
from festina.strict import write_whole

Figures = dict[str, Any]
"""What a benchmark measured, as JSON values by name."""


def nothing() -> None:
    """Do nothing; stands for a wait that is not needed."""


def seconds_of(work: Callable[[], object], wait: Callable[[], None] = nothing) -> float:
    """Wall seconds of some work.

    Args:
        work: what is timed.
        wait: returns when all work given to the device has ended, e.g. `torch.cuda.synchronize`.
    """
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Time variants in turn, so that what slows the machine for a while slows all of them.

    Args:
        variants: by name, what makes one run and returns the seconds of the part that counts.
        rounds: timed rounds, at least 1; one more before them warms up.

    Returns:
        seconds by name, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            spent = run()
            if number:
                seconds[name].append(spent)
        tell(f"round {number} of {rounds}" if number else "warmed up")
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over rounds of the ratio within each round."""
    return median(first / second for first, second in zip(over, under, strict=True))


def tell(message: str) -> None:
    """Say how far the program is, on the error stream: the results have the output stream for themselves."""
    print(f"{time.strftime('%H:%M:%S')}  {message}", file=sys.stderr, flush=True)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rules = (":--", *("--:" for _ in headings[1:]))
    return "".join(f"| {' | '.join(str(cell) for cell in cells)} |\n" for cells in (headings, rules, *rows))


def times(value: float, digits: int = 2) -> str:
    """A ratio as it stands in a table."""
    return f"{value:.{digits}f}\N{MULTIPLICATION SIGN}"


def device_named(name: str) -> torch.device:
    """The device of this name.

    Raises:
        FestinaError: it is a CUDA device and there is none.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FestinaError(f"--device {name}, but torch finds no CUDA device here; use --device cpu.")
    return device


def describe(device: torch.device) -> str:
    """Machine and versions in a sentence."""
    return in_words(hardware(device), libraries())


def save_record(asked: argparse.Namespace, benchmark: str, figures: Figures, device: torch.device) -> None:
    """Write figures, what was asked, machine and versions to the file `asked.out`, whole or not at all; if it is None,
    nothing.

    Raises:
        FestinaError: the folder does not exist or cannot be written.
    """
    if asked.out is None:
        return
    settings = {name: value for name, value in vars(asked).items() if name != "out"}
    record = {
        "benchmark": benchmark,
        "settings": settings,
        "hardware": hardware(device),
        "libraries": libraries(),
        "figures": figures,
    }
    write_whole(asked.out, json.dumps(record, indent=1, allow_nan=False) + "\n")
    tell(f"wrote {asked.out}")


def command(text: str, rounds: int) -> argparse.ArgumentParser:
    """A command line with what all benchmarks take.

    Args:
        text: what the program prints; shown by --help.
        rounds: timed rounds if none are asked for.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=rounds, help=f"timed rounds ({rounds})")
    parser.add_argument("--out", type=Path, help="JSON file that receives the figures, with hardware and versions")
    return parser


def judging_command(text: str) -> argparse.ArgumentParser:
    """A command line with what benchmarks of quality take, which draw a pipeline that ships and time nothing."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="scenes", help="a pipeline that ships (scenes)")
    parser.add_argument("--reference-steps", type=at_least(2), default=100, help="of the own scheduler (100)")
    parser.add_argument("--guidance", type=float, default=4.5, help="strength of classifier-free guidance (4.5)")
    parser.add_argument("--batch", type=at_least(1), default=16, help="pictures per call (16)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--out", type=Path, help="JSON file that receives the figures, with hardware and versions")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of `least` or more."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number of {least} or more")
        return int(text)

    return read


def run_program(main: Callable[[], Figures]) -> None:
    """Run a program; a mistake of its user is one line on the error stream and exit code 1."""
    try:
        main()
    except FestinaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
