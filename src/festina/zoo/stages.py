"""Stages of a training: one optimisation loop with checkpoints and a log; any stage can be killed and resumed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from festina.errors import FestinaError
from festina.strict import write_whole

Loss = Callable[[int, Tensor], tuple[Tensor, dict[str, float]]]
"""From the step and the indices of its batch to the loss and further figures for the log."""


def claim(folder: Path, name: str, settings: Any) -> str:
    """Make a training's work folder, or find in it the training that is to go on.

    Args:
        folder: of checkpoints and logs.
        name: of the recipe.
        settings: a dataclass, all that decides the outcome.

    Returns:
        the settings as JSON text.

    Raises:
        FestinaError: it holds a training of another recipe or with other settings, or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps(asdict(settings), indent=2) + "\n"
    for path, content in ((folder / "settings.json", told), (folder / "name", name)):
        if path.exists() and path.read_text() != content:
            raise FestinaError(
                f"{folder} holds a training with other settings; give the same ones to go on, or another folder."
            )
        write_whole(path, content)
    return told


def save_atomically(value: Any, path: Path) -> None:
    """`torch.save` to a neighbouring file, then move it over `path`."""
    scratch = path.with_suffix(path.suffix + ".partial")
    torch.save(value, scratch)
    os.replace(scratch, path)


class Stage:
    """The checkpoint and the log of one stage.

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
        """Replace the checkpoint."""
        save_atomically(state, self.path)
        self._saved = time.monotonic()

    def report(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Append one line to the log and show it."""
        seconds = time.monotonic() - self._started
        left = seconds / max(step, 1) * (steps - step)
        line = {"step": step, "steps": steps, "seconds": round(seconds, 1)}
        line |= {name: round(value, 6) for name, value in figures.items()}
        with self.log.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{self.name:>9}  {step}/{steps}  {seconds:.0f} s, about {left:.0f} s left  {shown}", flush=True)


@dataclass(frozen=True)
class Schedule:
    """How a stage is optimised, by AdamW.

    Attributes:
        steps: optimiser steps.
        batch: items per step.
        rate: peak learning rate, reached after `warm_up` steps, then falling to zero along a cosine.
        warm_up: steps of warm-up.
        seed: decides which items each step draws.
        weight_decay, momentum: AdamW's weight decay and second beta.
    """

    steps: int
    batch: int
    rate: float
    warm_up: int
    seed: int
    weight_decay: float = 1e-2
    momentum: float = 0.99

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        through = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * 0.5 * (1 + math.cos(math.pi * through))

    def draw(self, step: int, count: int) -> Tensor:
        """Indices (batch,) into `count` items; the same for a step however often the run was interrupted."""
        generator = torch.Generator().manual_seed(self.seed * 7_919 + step)
        return torch.randint(count, (self.batch,), generator=generator)


def fit(
    stage: Stage,
    schedule: Schedule,
    trained: Mapping[str, nn.Module],
    count: int,
    loss_of: Loss,
    kept: Mapping[str, nn.Module] | None = None,
    after_step: Callable[[int], None] = lambda done: None,
) -> None:
    """Run a stage to its end, from its last checkpoint if it has one.

    Args:
        stage: where it is kept.
        schedule: how it is optimised.
        trained: modules that are optimised, by their name in the checkpoint.
        count: number of training items.
        loss_of: the loss of one step.
        kept: further modules of the checkpoint, such as a moving average.
        after_step: called with the number of steps done after each of them.
    """
    modules = {**trained, **(kept or {})}
    parameters = [parameter for module in trained.values() for parameter in module.parameters()]
    betas = (0.9, schedule.momentum)
    optimizer = torch.optim.AdamW(parameters, lr=schedule.rate, weight_decay=schedule.weight_decay, betas=betas)
    first = 0
    if saved := stage.resume():
        for name, module in modules.items():
            module.load_state_dict(saved[name])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    smooth = 0.0
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss, figures = loss_of(step, schedule.draw(step, count))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done = step + 1
        after_step(done)
        smooth = loss.item() if step == first else 0.98 * smooth + 0.02 * loss.item()
        last = done == schedule.steps
        if done % 100 == 0 or last:
            stage.report(done, schedule.steps, {"loss": smooth, **figures})
        if stage.due() or last:
            states = {name: module.state_dict() for name, module in modules.items()}
            stage.save({**states, "optimizer": optimizer.state_dict(), "step": done})
