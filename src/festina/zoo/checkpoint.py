"""Checkpoints and logs of a training stage, written whole or not at all: any stage can be killed and resumed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch


def save_atomically(value: Any, path: Path) -> None:
    """`torch.save` to a neighbouring file, then move it over `path`."""
    scratch = path.with_suffix(path.suffix + ".partial")
    torch.save(value, scratch)
    os.replace(scratch, path)


class Stage:
    """One resumable stage of training: a checkpoint file, a log, and a clock for both.

    Args:
        folder: where `NAME.pt` (the checkpoint) and `NAME.log.jsonl` (one line per report) live.
        name: name of the stage.
        every: seconds between two checkpoints.
    """

    def __init__(self, folder: Path, name: str, every: float = 60.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.path = folder / f"{name}.pt"
        self.log = folder / f"{name}.log.jsonl"
        self.every = every
        self._saved = self._started = time.monotonic()

    def resume(self) -> dict[str, Any] | None:
        """The last checkpoint, or None at the beginning."""
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self._saved >= self.every

    def save(self, state: dict[str, Any]) -> None:
        save_atomically(state, self.path)
        self._saved = time.monotonic()

    def report(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Append one line to the log and show it."""
        seconds = time.monotonic() - self._started
        line = {"step": step, "steps": steps, "seconds": round(seconds, 1)}
        line |= {name: round(value, 6) for name, value in figures.items()}
        with self.log.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{self.name:>9}  {step}/{steps}  {seconds:.0f} s  {shown}", flush=True)
