"""What a report shows: measured points in the plane of quality and cost, and the page they stand on.

A page can be saved as one strict JSON file, pictures included, and rebuilt from it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from festina.errors import FestinaError
from festina.plan import Plan
from festina.strict import brief, is_number, is_unicode, read_json, write_whole

Kind = Literal["front", "seed", "fora", "fewer-steps", "uncached"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What a point may be: found by the search, a start of the search, the FORA method, the untouched sampler with
fewer steps, or the untouched sampler itself."""

UNTOUCHED: tuple[Kind, ...] = ("fewer-steps", "uncached")
"""The kinds that run without a plan."""

SCHEMA = 1
"""Version of the saved page this code reads and writes."""

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Point:
    """One way to run the model, measured.

    Attributes:
        name: name, unique on its page.
        kind: one of `KINDS`.
        steps: sampling steps, >= 1.
        macs: multiply-accumulates of the denoiser per picture, attention products included.
        seconds: seconds per picture, None if not timed.
        seconds_ratio: seconds of uncached / seconds of this, from interleaved runs (> 1 is faster); None if not timed.
        reward: mean reward on held-out prompts, higher is better.
        reward_low: lower end of its 95 % confidence interval.
        reward_high: upper end of its 95 % confidence interval.
        frechet: Frechet distance to real pictures, >= 0, None if not measured.
        psnr: peak signal-to-noise ratio to the uncached pictures in dB; inf for equal pictures, None if not measured.
        held_bytes: most bytes held between steps.
        plan: the plan it runs; None for the kinds in `UNTOUCHED`.
        pictures: PNG files, one per prompt of the page, or none.

    Raises:
        FestinaError: on construction, if a figure is outside its range or the plan does not fit kind and steps. What
            can be constructed can be saved and read back.
    """

    name: str
    kind: Kind
    steps: int
    macs: int
    seconds: float | None
    seconds_ratio: float | None
    reward: float
    reward_low: float
    reward_high: float
    frechet: float | None
    psnr: float | None
    held_bytes: int
    plan: Plan | None
    pictures: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _want(_is_text(self.name) and bool(self.name.strip()), f"the name of a point is a text; found {self.name!r}")
        where = f"point {self.name!r}"
        _want(self.kind in KINDS, f"{where} is of kind {self.kind!r}; wanted one of {', '.join(KINDS)}")
        for label, count, least in (
            ("steps", self.steps, 1),
            ("macs", self.macs, 1),
            ("held_bytes", self.held_bytes, 0),
        ):
            holds = type(count) is int and count >= least
            _want(holds, f"{where} has {label} {count!r}; wanted a whole number of {least} or more")
        for label, value in (("seconds", self.seconds), ("seconds_ratio", self.seconds_ratio)):
            holds = value is None or (is_number(value) and value > 0)
            _want(holds, f"{where} has {label} {value!r}; wanted a number above 0, or None")
        rewards = (self.reward_low, self.reward, self.reward_high)
        _want(
            all(is_number(value) for value in rewards) and self.reward_low <= self.reward <= self.reward_high,
            f"{where} has reward {self.reward!r} in the interval {self.reward_low!r} to {self.reward_high!r}; "
            "wanted finite numbers, low <= reward <= high",
        )
        holds = self.frechet is None or (is_number(self.frechet) and self.frechet >= 0)
        _want(holds, f"{where} has Frechet distance {self.frechet!r}; wanted 0 or more, or None")
        holds = self.psnr in (None, math.inf) or is_number(self.psnr)
        _want(holds, f"{where} has PSNR {self.psnr!r}; wanted a number of dB, or None")
        self._want_plan(where)
        for number, picture in enumerate(self.pictures):
            _want(picture.startswith(_PNG), f"picture {number} of {where} is not a PNG file; give the file's bytes")

    def _want_plan(self, where: str) -> None:
        if self.kind in UNTOUCHED:
            _want(
                self.plan is None, f"{where} is of kind {self.kind!r}, the untouched sampler, and has a plan; give None"
            )
            return
        _want(self.plan is not None, f"{where} is of kind {self.kind!r} and has no plan; give the plan it runs")
        assert self.plan is not None
        made_for = len(self.plan.steps)
        _want(made_for == self.steps, f"{where} has {self.steps} steps and a plan of {made_for}; wanted equal numbers")


@dataclass(frozen=True)
class FrontPage:
    """The points of one model and what has to be known to read them.

    Attributes:
        title: heading of the page.
        model: name of the model.
        prompts: captions of the pictures every point shows.
        points: the measured points, exactly one of kind "uncached".
        hardware: the machine the seconds were taken on.
        settings: sampler, number of prompts and seeds, library versions, ... in a sentence.
        notes: remarks for the reader, one paragraph each.

    Raises:
        FestinaError: on construction, if there is not exactly one uncached point, a name stands twice, a point has
            another number of pictures than there are prompts, or a fewer-steps point has no fewer steps.
    """

    title: str
    model: str
    prompts: tuple[str, ...]
    points: tuple[Point, ...]
    hardware: str
    settings: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.title, self.model, *self.prompts, self.hardware, self.settings, *self.notes):
            _want(_is_text(text), f"the texts of a page are Unicode texts; found {text!r}")
        found = sum(point.kind == "uncached" for point in self.points)
        _want(found == 1, f"a page has {found} uncached points; wanted exactly one, to compare the others with")
        names = [point.name for point in self.points]
        twice = sorted({name for name in names if names.count(name) > 1})
        _want(not twice, f"points of one page have different names; found twice: {', '.join(twice[:4])}")
        for point in self.points:
            _want(
                len(point.pictures) in (0, len(self.prompts)),
                f"point {point.name!r} has {len(point.pictures)} pictures for {len(self.prompts)} prompts; "
                "wanted one each, or none",
            )
            _want(
                point.kind != "fewer-steps" or point.steps < self.uncached.steps,
                f"point {point.name!r} has {point.steps} steps and uncached {self.uncached.steps}; wanted fewer",
            )
        ratio = self.uncached.seconds_ratio
        _want(ratio in (None, 1), f"the uncached point has a seconds ratio of {ratio}; wanted 1 or None")

    @property
    def uncached(self) -> Point:
        """The point all others are compared with."""
        return next(point for point in self.points if point.kind == "uncached")

    def of_kind(self, kind: Kind) -> tuple[Point, ...]:
        """The points of one kind, by falling MACs."""
        return tuple(sorted((point for point in self.points if point.kind == kind), key=lambda point: -point.macs))

    def to_json(self) -> str:
        """The saved page's text, strict JSON; pictures in base64, an infinite PSNR as the text "inf"."""
        record = vars(self) | {"points": [_point_record(point) for point in self.points]}
        return json.dumps({"festina_front_page": SCHEMA, **record}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> FrontPage:
        """Read a saved page's text, strictly.

        Raises:
            FestinaError: not JSON, another schema version, a key too many or too few, or a value of the wrong kind.
        """
        record = read_json(text, "a saved front page")
        _want(isinstance(record, dict) and "festina_front_page" in record, "not a saved front page: no such header")
        version = record.pop("festina_front_page")
        _want(
            type(version) is int and version == SCHEMA,
            f"a front page of schema {version!r}; this Festina reads schema {SCHEMA}",
        )
        _keys(record, FrontPage, "the page")
        return FrontPage(
            title=record["title"],
            model=record["model"],
            prompts=_texts(record, "prompts"),
            points=tuple(_read_point(point) for point in _list(record, "points")),
            hardware=record["hardware"],
            settings=record["settings"],
            notes=_texts(record, "notes"),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page as JSON, whole or not at all.

        Raises:
            FestinaError: the folder does not exist or cannot be written.
        """
        write_whole(Path(path), self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> FrontPage:
        """Read a page that `save` wrote.

        Raises:
            FestinaError: the file cannot be read or is not a saved page.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FestinaError(f"cannot read the front page {path}: {brief(error)}.") from None
        try:
            return FrontPage.from_json(text)
        except FestinaError as error:
            raise FestinaError(f"{path}: {error}") from None


def _point_record(point: Point) -> dict[str, Any]:
    return vars(point) | {
        "psnr": "inf" if point.psnr == math.inf else point.psnr,
        "plan": None if point.plan is None else json.loads(point.plan.to_json()),
        "pictures": [base64.b64encode(picture).decode("ascii") for picture in point.pictures],
    }


def _read_point(record: Any) -> Point:
    _want(isinstance(record, dict), "a point is an object")
    _keys(record, Point, "a point")
    return Point(
        **{key: record[key] for key in record if key not in ("psnr", "plan", "pictures")},
        psnr=math.inf if record["psnr"] == "inf" else record["psnr"],
        plan=None if record["plan"] is None else Plan.from_json(json.dumps(record["plan"])),
        pictures=tuple(_bytes(text) for text in _texts(record, "pictures")),
    )


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise FestinaError(f"{message}.")


def _is_text(text: Any) -> bool:
    return isinstance(text, str) and is_unicode([text])


def _keys(record: Mapping[str, Any], wanted_by: type, where: str) -> None:
    wanted = set(wanted_by.__dataclass_fields__)  # type: ignore[attr-defined]
    missing, unknown = sorted(wanted - set(record)), sorted(set(record) - wanted)
    _want(not missing and not unknown, f"{where} lacks the keys {missing[:5]} and has unknown keys {unknown[:5]}")


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    _want(isinstance(record[key], list), f"{key!r} is a list")
    return cast(list[Any], record[key])


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    _want(all(isinstance(item, str) for item in _list(record, key)), f"{key!r} is a list of texts")
    return tuple(record[key])


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise FestinaError("a picture of the page is not base64; the file is damaged.") from None
