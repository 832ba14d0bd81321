"""Replacing attributes of single objects, and giving back exactly what was there.

Offloaders move a module's `forward` aside and put their own in its place: accelerate parks it as `_old_forward`,
diffusers' hooks in the references of their registry. A replaced attribute is therefore put innermost, and looked for in
all these places when it is taken off: offloading may come and go before, during and after.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from festina.errors import FestinaError

Place = tuple[dict[str, Any], str]
"""Where a callable is kept: a namespace and the name in it."""


class Wrapper:
    """A callable that stands in for a method of one object.

    In a deep copy or a pickle of that object the method itself takes its place, bound to the copy: what Festina put on
    an object stays with this object.
    """

    __slots__ = ("__name__", "__wrapped__", "_call")

    def __init__(self, call: Callable[..., Any], original: Callable[..., Any]) -> None:
        self._call = call
        self.__wrapped__ = original
        self.__name__ = getattr(original, "__name__", type(self).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce__(self) -> Any:
        original = self.__wrapped__
        return original.__reduce__() if isinstance(original, MethodType) else (_itself, (original,))


@dataclass(eq=False)
class Patch:
    """One replaced attribute.

    Attributes:
        owner: the object.
        name: name of its attribute.
        wrapper: what stands there now.
        original: what was called there before.
        added: whether the object had no such attribute of its own (only its class had).
    """

    owner: Any
    name: str
    wrapper: Wrapper
    original: Callable[..., Any]
    added: bool


class Patches:
    """Instance attributes that were replaced, to be restored last in, first out. Classes are never touched."""

    def __init__(self) -> None:
        self._done: list[Patch] = []

    def put(self, owner: Any, name: str, wrapper: Wrapper) -> Patch:
        """Put a wrapper in the place of `owner.name`, within what an offloader may have put around it."""
        space, key = innermost(owner, name)
        patch = Patch(owner, name, wrapper, wrapper.__wrapped__, key not in space)
        # Not setattr: nn.Module would look for modules and parameters in it.
        space[key] = wrapper
        self._done.append(patch)
        return patch

    def take_off(self, patch: Patch) -> None:
        """Restore a single attribute. Raises like `restore`."""
        _undo(patch, _found(patch))
        self._done.remove(patch)

    def restore(self) -> None:
        """Put everything back.

        Raises:
            FestinaError: somebody has replaced one of the attributes since; then nothing is changed.
        """
        # Of several wrappers around one method only the outermost stands in its place; the others come to light below.
        for patch in {(id(patch.owner), patch.name): patch for patch in self._done}.values():
            _found(patch)
        while self._done:
            patch = self._done.pop()
            _undo(patch, _found(patch))


def current(owner: Any, name: str) -> Callable[..., Any]:
    """What a wrapper of `owner.name` has to call: the innermost method, within what offloaders put around it."""
    space, key = innermost(owner, name)
    method: Callable[..., Any] = space[key] if key in space else getattr(owner, name)
    return method


def innermost(owner: Any, name: str) -> Place:
    """Where the method itself is kept, behind the offloaders that wrap it."""
    place: Place = (vars(owner), name)
    if name != "forward":
        return place
    references = _references(owner)
    for _ in range(2 + len(references)):
        outer = _origin(place[0].get(place[1]))
        if outer.startswith("accelerate.") and "_old_forward" in vars(owner):
            place = (vars(owner), "_old_forward")
        elif outer.startswith("diffusers.hooks") and references:
            place = references.pop()
        else:
            break
    return place


def _origin(value: Any) -> str:
    """Module in which the code of an offloader's forward is written; "" if it is none."""
    return str(value.func.__module__) if isinstance(value, functools.partial) else ""


def _references(owner: Any) -> list[Place]:
    """Where diffusers' hooks keep the forward that each of them wraps, innermost first."""
    places = []
    for reference in getattr(vars(owner).get("_diffusers_hook"), "_fn_refs", ()):
        space = vars(reference)
        places.append((space, "forward" if space.get("original_forward") is None else "original_forward"))
    return places


def _found(patch: Patch) -> list[Place]:
    """All places where a wrapper is kept now.

    Raises:
        FestinaError: there is none.
    """
    space = vars(patch.owner)
    places: list[Place] = [(space, patch.name)]
    if patch.name == "forward":
        places += [(space, "_old_forward"), *_references(patch.owner)]
    held = [place for place in places if place[0].get(place[1]) is patch.wrapper]
    # A module that was compiled again lost its wrapper by that; there is nothing left to take off.
    if not held and patch.name != "_compiled_call_impl":
        raise FestinaError(
            f"{type(patch.owner).__name__}.{patch.name} was replaced again after the plan was applied (by another "
            f"accelerator?). Undo that first, then call festina.remove."
        )
    # Offloaders copy the attributes of what they wrap, and so hold it a second time.
    outer = [vars(around) for place in places if isinstance(around := place[0].get(place[1]), functools.partial)]
    return held + [(mine, "__wrapped__") for mine in outer if mine.get("__wrapped__") is patch.wrapper]


def _undo(patch: Patch, places: list[Place]) -> None:
    for space, key in places:
        if patch.added and space is vars(patch.owner) and key == patch.name:
            del space[key]
        else:
            space[key] = patch.original


def _itself(value: Any) -> Any:
    return value
