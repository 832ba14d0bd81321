"""The folder of a benchmark: what was asked, the figures of each variant, the timed rounds.

Every file is written whole or not at all, as soon as what it holds is known, so that a benchmark that was stopped goes
on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from festina.benchmark.figures import Figures
from festina.benchmark.variants import Variant
from festina.errors import FestinaError
from festina.report.whole import write_whole_bytes
from festina.strict import brief, is_number, read_json, write_whole

SETTINGS, CALIBRATION, REFERENCE = "settings.json", "calibration.json", "uncached.safetensors"
RUNS, ROUNDS, PICTURES = "runs", "rounds", "pictures"
"""Names in the folder."""

TAKING_PART = ("methods", "plans", "peers", "models")
"""Of what is asked, that which says who takes part. It decides no other run's figures."""

ROUND_SCHEMA = 2
"""Version of a round's file."""

Round = Mapping[str, float]
"""Seconds of one batch by the variant's name."""


class Folder:
    """The folder of a benchmark.

    Args:
        path: made if it is missing.
        asked: all that decides the figures, JSON values by name.

    Raises:
        FestinaError: the folder cannot be made or written, or it holds a benchmark of something else.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path = path
        try:
            for name in (RUNS, ROUNDS, PICTURES):
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FestinaError(f"cannot make the folder {path}: {error.strerror}.") from None
        self._hold(asked)

    def _hold(self, asked: Mapping[str, Any]) -> None:
        """Write down what is asked, having made sure that, but for who takes part, it is what was asked before."""
        where = self.path / SETTINGS
        text = json.dumps(asked, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if where.exists():
            before, now = read_json(_text(where), f"the settings of a benchmark ({where})"), json.loads(text)
            known = before if isinstance(before, dict) else {}
            names = {*known, *now} - {*TAKING_PART}
            if other := sorted(name for name in names if known.get(name) != now.get(name)):
                raise FestinaError(
                    f"{self.path} holds a benchmark with other {', '.join(other)}; give the same to go on with it, or "
                    f"another folder."
                )
            if before == now:
                return
        write_whole(where, text)

    def figures(self, variant: Variant) -> Figures | None:
        """What was measured of a variant's pictures; None if nothing was, or of another plan with its name.

        Raises:
            FestinaError: the file is damaged.
        """
        where = self.path / RUNS / f"{slug(variant.name)}.json"
        if not where.exists() or not self.sheet(variant).exists():
            return None
        found = Figures.from_json(_text(where), str(where))
        return found if found.key == variant.key else None

    def keep(self, variant: Variant, figures: Figures, sheet: bytes) -> None:
        """Keep a variant's figures and its contact sheet (a PNG file)."""
        write_whole_bytes(self.sheet(variant), sheet)
        write_whole(self.path / RUNS / f"{slug(variant.name)}.json", figures.to_json())

    def sheet(self, variant: Variant) -> Path:
        """Where a variant's contact sheet is."""
        return self.path / PICTURES / f"{slug(variant.name)}.png"

    def uncached(self) -> Tensor | None:
        """The uncached pictures; None if they are not there."""
        where = self.path / REFERENCE
        if not where.exists():
            return None
        try:
            pictures: Tensor = safetensors.torch.load_file(where)["pictures"]
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise FestinaError(f"cannot read {where} ({brief(error)}); delete it to draw the pictures again.") from None
        return pictures

    def keep_uncached(self, pictures: Tensor) -> None:
        """Keep the uncached pictures, without loss, to compare others with."""
        write_whole_bytes(self.path / REFERENCE, safetensors.torch.save({"pictures": pictures.contiguous()}))

    def rounds(self, variants: Sequence[Variant]) -> list[Round]:
        """The rounds in which all of these variants were timed, as they are now, in the order they were made.

        Raises:
            FestinaError: a file is damaged.
        """
        wanted = {variant.name: variant.key for variant in variants}
        found: list[Round] = []
        for where in sorted((self.path / ROUNDS).glob("*.json")):
            keys, seconds = _read_round(where)
            if all(keys.get(name) == key for name, key in wanted.items()):
                found.append({name: seconds[name] for name in wanted})
        return found

    def keep_round(self, variants: Sequence[Variant], seconds: Round) -> None:
        """Keep a complete round."""
        taken = [int(where.stem) for where in (self.path / ROUNDS).glob("*.json") if where.stem.isdigit()]
        runs = {variant.name: {"key": variant.key, "seconds": seconds[variant.name]} for variant in variants}
        text = json.dumps({"festina_bench_round": ROUND_SCHEMA, "runs": runs}, indent=1, allow_nan=False) + "\n"
        write_whole(self.path / ROUNDS / f"{max(taken, default=0) + 1:04d}.json", text)


def slug(name: str) -> str:
    """A file name for a variant: its letters and digits, and a hash, as two names may differ in nothing else."""
    plain = "-".join("".join(letter if letter.isalnum() and letter.isascii() else " " for letter in name).split())
    return f"{plain[:80].lower()}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _read_round(where: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Keys and seconds by name."""
    record = read_json(_text(where), f"a timed round of a benchmark ({where})")
    runs = record.get("runs") if isinstance(record, dict) else None
    whole = isinstance(runs, dict) and all(
        isinstance(run, dict) and set(run) == {"key", "seconds"} and is_number(run["seconds"]) and run["seconds"] > 0
        for run in runs.values()
    )
    if not whole or record.get("festina_bench_round") != ROUND_SCHEMA:
        raise FestinaError(f"{where} holds no timed round of this version; delete it to time that round again.")
    assert isinstance(runs, dict)
    return {name: run["key"] for name, run in runs.items()}, {name: run["seconds"] for name, run in runs.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FestinaError(f"cannot read {path}: {brief(error)}.") from None
