"""Reading and writing the small JSON files Festina keeps, strictly: what can be written can be read back the same."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from festina.errors import FestinaError

MAX_DEPTH = 32
"""Deepest nesting of lists and objects that is read or written."""

Read = TypeVar("Read")


def read_json(text: str, what: str) -> Any:
    """Read JSON strictly: no key twice in an object, no NaN or infinity, at most `MAX_DEPTH` levels.

    Raises:
        FestinaError: it is not such a text; the message calls it `what`.
    """
    try:
        record = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite_float
        )
    except (ValueError, RecursionError) as error:
        raise FestinaError(f"not {what}: {brief(error)}.") from None
    if not _is_shallow(record, MAX_DEPTH):
        raise FestinaError(f"not {what}: nested deeper than {MAX_DEPTH} levels.")
    return record


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record, to be put into a larger one, as JSON gives it back: tuples as lists, keys as texts.

    Raises:
        FestinaError: it holds something JSON has no word for (NaN, infinity, an object), or is nested too deep.
    """
    copy = dict(record)
    if not _is_shallow(copy, MAX_DEPTH // 2):
        raise FestinaError(f"not JSON: nested deeper than {MAX_DEPTH // 2} levels.")
    try:
        same: dict[str, Any] = json.loads(json.dumps(copy, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise FestinaError(f"not JSON: {brief(error)}.") from None
    return same


def is_unicode(texts: Iterable[str]) -> bool:
    """Whether the texts can be written as UTF-8; those with lone surrogates cannot."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number; bounded, as an integer may have any number of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_whole(path: Path, what: str, most: int, parse: Callable[[str], Read]) -> Read:
    """Read a UTF-8 text file that is not too large.

    Args:
        path: the file.
        what: what messages call it, e.g. "plan".
        most: its bytes at most; no more than that is read into memory.
        parse: makes something of the text; a `FestinaError` it raises is told with the path.

    Raises:
        FestinaError: the file cannot be read, is no such text, is too large, or `parse` refuses it.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(most + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise FestinaError(f"cannot read the {what} {path}: {brief(error)}") from None
    if len(content) > most:
        raise FestinaError(f"{path}: larger than a {what} can be ({most} bytes).")
    try:
        return parse(text)
    except FestinaError as error:
        raise FestinaError(f"{path}: {error}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old text or the new, never a part.

    Raises:
        FestinaError: the folder is missing or not writable, the disk is full, or the path is not one.
    """
    scratch = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as stream:
            scratch = stream.name
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)
        os.replace(scratch, path)
    except (OSError, ValueError) as error:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
        raise FestinaError(f"cannot write {path}: {brief(error)}") from None


def brief(error: BaseException) -> str:
    """The first line of an error's message; of the system's errors what went wrong, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _is_shallow(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        nested = [item for item in level if isinstance(item, Mapping | list | tuple)]
        if not nested:
            return True
        level = [child for item in nested for child in (item.values() if isinstance(item, Mapping) else item)]
    return False
