"""Trainings that are killed at their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from festina.zoo import stages


class CutError(RuntimeError):
    """A training was killed."""


def cut_at_first_checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every stage write a checkpoint after each step, and be killed right after its first one.

    Returns:
        receives the name of each stage that was killed.
    """
    save, cuts = stages.Stage.save, []

    def save_and_cut(self: stages.Stage, state: dict[str, Any]) -> None:
        save(self, state)
        if state["step"] == 1:
            cuts.append(self.name)
            raise CutError

    monkeypatch.setattr(stages.Stage, "due", lambda self: True)
    monkeypatch.setattr(stages.Stage, "save", save_and_cut)
    return cuts


def run_to_the_end(training: Callable[[], object], most: int = 8) -> None:
    """Run a training again until it is not killed any more."""
    for _ in range(most):
        try:
            training()
        except CutError:
            continue
        return
    raise AssertionError(f"killed {most} times")
