"""What JSON may say of a table, its steps and their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from festina.errors import FestinaError
from festina.strict import is_number

_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a finite number", is_number),
    "float | None": ("a finite number or null", lambda value: value is None or is_number(value)),
    "str": ("a text", lambda value: isinstance(value, str)),
    "tuple[float, ...]": ("a list of finite numbers", lambda value: _is_list(value) and all(map(is_number, value))),
    "tuple[SolverStep, ...]": ("a list of steps", lambda value: _is_list(value)),
    "LinearWeights | None": ("an object or null", lambda value: value is None or isinstance(value, Mapping)),
}
"""What JSON may give for a field of each type, in words and as a check."""


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def checked_record(record: Any, kind: type, what: str) -> dict[str, Any]:
    """The values of a record, which are those of the fields of a dataclass.

    Args:
        record: what JSON gave.
        kind: the dataclass.
        what: what it is, for messages.

    Raises:
        FestinaError: it is no object, has unknown keys or lacks some, or holds a value of the wrong kind.
    """
    if not isinstance(record, Mapping):
        raise FestinaError(f"{what} is {record!r:.60}; wanted an object.")
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(str(key) for key in record if key not in known)
    missing = [name for name, field in known.items() if field.default is MISSING and name not in record]
    if unknown or missing:
        raise FestinaError(
            f"{what} has {f'unknown keys {unknown}' if unknown else f'no {missing}'}; it has the keys "
            f"{', '.join(sorted(known))}."
        )
    for key, value in record.items():
        wanted, holds = _KINDS[str(known[key].type)]
        if not holds(value):
            raise FestinaError(f"{key!r} of {what} is {value!r:.60}; wanted {wanted}.")
    return dict(record)
