"""The text of a calibration file: strict JSON, read back the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from festina.calibration.record import BranchRecord, Calibration, Rows
from festina.errors import FestinaError
from festina.strict import read_json, read_whole

VERSION = 1
MAX_BYTES = 256 * 2**20
"""Largest file that is read; FLUX with 50 steps and 70 pictures has about 1 MB."""

_KEYS = {
    "festina_calibration",
    "denoiser",
    "sites",
    "feature",
    "sampler",
    "steps",
    "guidance",
    "call",
    "measures",
    "pictures",
    "branches",
}
_BRANCH_KEYS = {"lags", "magnitudes", "changes", "distances"}


def text_of(calibration: Calibration) -> str:
    """The file's text; equal calibrations give equal text."""
    branches = {
        name: {
            "lags": dict(record.lags),
            "magnitudes": record.magnitudes,
            "changes": record.changes,
            "distances": record.distances,
        }
        for name, record in calibration.branches.items()
    }
    what = {
        "festina_calibration": VERSION,
        "denoiser": calibration.denoiser,
        "sites": calibration.sites,
        "feature": calibration.feature,
        "sampler": calibration.sampler,
        "steps": calibration.steps,
        "guidance": calibration.guidance,
        "call": calibration.call,
        "measures": calibration.measures,
        "pictures": calibration.pictures,
        "branches": branches,
    }
    return json.dumps(what, ensure_ascii=False, allow_nan=False) + "\n"


def read_file(path: Path) -> Calibration:
    """Read a file.

    Raises:
        FestinaError: it cannot be read or is not a valid calibration.
    """
    return read_whole(path, "calibration", MAX_BYTES, lambda text: _calibration(read_json(text, "a calibration")))


def _calibration(record: Any) -> Calibration:
    _keys(record, _KEYS, "a calibration")
    if record["festina_calibration"] != VERSION:
        raise FestinaError(
            f"not a valid calibration: schema version {record['festina_calibration']!r:.20}, wanted {VERSION}."
        )
    lists = [record[name] for name in ("sites", "feature", "measures", "pictures")]
    maps = [record[name] for name in ("call", "branches")]
    _want(all(isinstance(value, list) for value in lists) and all(isinstance(value, dict) for value in maps))
    _want(all(isinstance(pair, list) and len(pair) == 2 for pair in record["pictures"]))
    _want(all(isinstance(word, str) for name in ("sites", "feature", "measures") for word in record[name]))
    return Calibration(
        record["denoiser"],
        tuple(record["sites"]),
        tuple(record["feature"]),
        record["sampler"],
        record["steps"],
        record["guidance"],
        record["call"],
        tuple(record["measures"]),
        tuple((prompt, seed) for prompt, seed in record["pictures"]),
        {name: _branch(branch) for name, branch in record["branches"].items()},
    )


def _branch(record: Any) -> BranchRecord:
    _keys(record, _BRANCH_KEYS, "a branch")
    _want(isinstance(record["lags"], dict) and isinstance(record["changes"], list))
    return BranchRecord(
        {site: _rows(rows) for site, rows in record["lags"].items()},
        _rows(record["magnitudes"]),
        tuple(_rows(rows) for rows in record["changes"]),
        _rows(record["distances"]),
    )


def _rows(value: Any) -> Rows:
    _want(isinstance(value, list) and all(isinstance(row, list) for row in value))
    return tuple(tuple(row) for row in value)


def _keys(record: Any, wanted: set[str], what: str) -> None:
    _want(isinstance(record, Mapping))
    if set(record) != wanted:
        raise FestinaError(
            f"not a valid calibration: {what} has the keys {', '.join(sorted(wanted))}; found "
            f"{', '.join(sorted(record))[:200]}."
        )


def _want(holds: bool) -> None:
    if not holds:
        raise FestinaError("not a valid calibration: something in it is of another kind than `save` writes.")
