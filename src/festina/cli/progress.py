"""How far a command is, on the terminal or as lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from festina.search.engine import Progress as Told


@contextmanager
def showing_progress() -> Iterator[Told]:
    """A progress bar with the time left; where the output is no terminal, a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _telling(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def told(done: int, total: int, message: str) -> None:
            bar.update(task, completed=done, total=total, description=message)

        yield told


def _telling(console: Console) -> Told:
    began = last = time.monotonic()

    def told(done: int, total: int, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 10 and done < total:
            return
        last = now
        left = (now - began) / max(done, 1) * (total - done)
        console.print(f"{done}/{total}  {message}  {now - began:.0f} s, about {left:.0f} s left", highlight=False)

    return told
