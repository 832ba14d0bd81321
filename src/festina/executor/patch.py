"""Replacing attributes of single objects, and giving back exactly what was there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from festina.errors import FestinaError


class Patches:
    """Instance attributes that were replaced, to be restored last in, first out. Classes are never touched."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Callable[..., Any], bool, Any]] = []

    def set(self, owner: Any, name: str, value: Callable[..., Any]) -> None:
        """Put `value` in the instance's own `__dict__` under `name`."""
        present = name in owner.__dict__
        self._done.append((owner, name, value, present, owner.__dict__.get(name)))
        # Not setattr: nn.Module would look for modules and parameters in it.
        owner.__dict__[name] = value

    def restore(self) -> None:
        """Put everything back.

        Raises:
            FestinaError: somebody has replaced one of the attributes since; then nothing is changed.
        """
        for owner, name, value, _, _ in self._done:
            if owner.__dict__.get(name) is not value:
                raise FestinaError(
                    f"{type(owner).__name__}.{name} was replaced again after the plan was applied (offloading or "
                    f"another accelerator?). Undo that first, then call festina.remove."
                )
        while self._done:
            owner, name, _, present, old = self._done.pop()
            if present:
                owner.__dict__[name] = old
            else:
                del owner.__dict__[name]
