"""What a calibration measured: plain numbers per branch of guidance, and for what they hold. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.strict import is_number, is_unicode, plain, write_whole

LAGS = 3
"""Largest distance of steps over which component outputs are compared (SmoothCache's released code: 3)."""

LAG_ERRORS, MAGNITUDES, CHANGES, DISTANCES = "lags", "magnitudes", "changes", "distances"
MEASURES = (LAG_ERRORS, MAGNITUDES, CHANGES, DISTANCES)
"""What can be measured, see `BranchRecord`."""

Row = tuple[float | None, ...]
Rows = tuple[Row, ...]
"""Numbers in rows; None where there was nothing to measure."""


@dataclass(frozen=True)
class BranchRecord:
    """What was measured of one branch of guidance. Empty where it was not asked for.

    Attributes:
        lags: of each component site that ran `LAGS` rows of one number per step: row j - 1 has at step i
            ||Y(i+j) - Y(i)||_1 / ||Y(i+j)||_1 of its output Y (SmoothCache, arXiv 2411.10510), summed over pictures.
        magnitudes: three rows of one number per step, of the stack's residual R: the mean over tokens of
            ||R(i)|| / ||R(i-1)||, its standard deviation, and the mean of one minus the cosine between R(i) and
            R(i-1) (MagCache, arXiv 2506.09045), summed over pictures.
        changes: of each picture two rows of one number per step: mean|new - old| / mean|old| of the modulated input of
            the first block and of the denoiser's output, from the step before (TeaCache, arXiv 2411.19108).
        distances: one row per step i of the i distances ||f(i) - f(j)||_1 to the steps j before it, f being the
            feature that is served (CacheQuant, arXiv 2503.01323), summed over pictures.
    """

    lags: Mapping[str, Rows]
    magnitudes: Rows
    changes: tuple[Rows, ...]
    distances: Rows

    def joined(self, other: BranchRecord) -> BranchRecord:
        """The record of the pictures of both."""
        lags = {site: _sums(self.lags[site], other.lags[site]) for site in self.lags if site in other.lags}
        return BranchRecord(
            lags,
            _sums(self.magnitudes, other.magnitudes),
            self.changes + other.changes,
            _sums(self.distances, other.distances),
        )

    def rows(self) -> Iterator[Rows]:
        """Everything measured."""
        yield from (*self.lags.values(), self.magnitudes, *self.changes, self.distances)


@dataclass(frozen=True)
class Calibration:
    """What one hooked run per picture measured on an untouched pipeline, and what it holds for.

    Attributes:
        denoiser: class name of the denoiser.
        sites: names of its component sites.
        feature: names of the sites whose value `distances` compare: the runs of the stack, or of a U-Net everything
            below its shallowest level.
        sampler: class name of the scheduler.
        steps: steps of a run.
        guidance: strength of guidance; None if the pipeline's own.
        call: further arguments of the pipeline's call.
        measures: what was measured, of `MEASURES`.
        pictures: prompt and seed of each picture measured so far.
        branches: the numbers, by branch of guidance (`festina.executor.branches`); {} before the first picture.

    Raises:
        FestinaError: on construction, if the numbers do not fit the steps, sites and pictures.
    """

    denoiser: str
    sites: tuple[str, ...]
    feature: tuple[str, ...]
    sampler: str
    steps: int
    guidance: float | None
    call: Mapping[str, Any]
    measures: tuple[str, ...]
    pictures: tuple[tuple[str, int], ...] = ()
    branches: Mapping[str, BranchRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "call", plain(self.call))
        except FestinaError as error:
            raise FestinaError(f"the further arguments of a calibration's call are JSON values: {error}") from None
        _want(type(self.steps) is int and self.steps >= 2, "a run has at least 2 steps")
        _want(self.guidance is None or is_number(self.guidance), "the guidance is a number")
        _want(bool(self.measures) and set(self.measures) <= set(MEASURES), f"the measures are of {', '.join(MEASURES)}")
        _want(all(type(seed) is int for _, seed in self.pictures), "a seed is a whole number")
        words = [self.denoiser, self.sampler, *self.sites, *self.feature, *(prompt for prompt, _ in self.pictures)]
        _want(all(isinstance(word, str) for word in words) and is_unicode(words), "names and prompts are Unicode texts")
        _want(bool(self.branches) == bool(self.pictures), "there are numbers if and only if there are pictures")
        for record in self.branches.values():
            self._check(record)

    def _check(self, record: BranchRecord) -> None:
        has = {
            LAG_ERRORS: bool(record.lags),
            MAGNITUDES: bool(record.magnitudes),
            CHANGES: bool(record.changes),
            DISTANCES: bool(record.distances),
        }
        _want(all(has[name] == (name in self.measures) for name in MEASURES), "it has just what was to be measured")
        _want(set(record.lags) <= set(self.sites), "lag errors are of its sites")
        even = [(rows, LAGS) for rows in record.lags.values()]
        even += [(record.magnitudes, 3)] if record.magnitudes else []
        even += [(rows, 2) for rows in record.changes]
        for rows, count in even:
            _want([len(row) for row in rows] == [self.steps] * count, f"{count} rows of {self.steps} numbers each")
        if record.distances:
            _want([len(row) for row in record.distances] == list(range(self.steps)), "distances to all steps before")
        _want(not record.changes or len(record.changes) == len(self.pictures), "changes are kept for each picture")
        numbers = (number for rows in record.rows() for row in rows for number in row)
        _want(all(number is None or (is_number(number) and number >= 0) for number in numbers), "numbers of at least 0")

    def with_picture(self, picture: tuple[str, int], measured: Mapping[str, BranchRecord]) -> Calibration:
        """This calibration with one more picture.

        Raises:
            FestinaError: the picture was drawn with other branches than those before it.
        """
        before = self.branches
        if before and set(before) != set(measured):
            raise FestinaError(
                f"{picture[0]!r:.60} was drawn with the branches {sorted(measured)}, the pictures before it with "
                f"{sorted(before)}; calibrate with prompts that the pipeline treats alike."
            )
        joined = {name: before[name].joined(record) if before else record for name, record in measured.items()}
        return replace(self, pictures=(*self.pictures, picture), branches=joined)

    def lag_errors(self, sites: Sequence[str]) -> NDArray[np.float64]:
        """Mean lag errors of some sites over branches, sites and pictures, float (LAGS, steps): row j - 1 has at step i
        the error of serving in step i + j what step i computed; NaN where there is none."""
        found = []
        for record in self.branches.values():
            ran = [_array(record.lags[site]) for site in sites if site in record.lags]
            if ran:
                found.append(np.mean(ran, axis=0) / len(self.pictures))
        return _mean_of_known(found, (LAGS, self.steps))

    def magnitude_ratios(self) -> tuple[float, ...]:
        """Mean magnitude ratio of each step over branches and pictures; the first is 1. NaN where there is none, as in
        the step in which another expert takes over (Wan 2.2)."""
        found = [_array(record.magnitudes)[0] / len(self.pictures) for record in self.branches.values()]
        ratios = _mean_of_known(found, (self.steps,))
        ratios[0] = 1.0
        return tuple(ratios.tolist())

    def changes(self) -> NDArray[np.float64]:
        """Pairs of relative changes of all branches, pictures and steps, float (pairs, 2): of the modulated input of
        the first block, and of the denoiser's output."""
        found = [_array(rows).T for record in self.branches.values() for rows in record.changes]
        pairs = np.concatenate(found) if found else np.zeros((0, 2))
        known: NDArray[np.float64] = pairs[~np.isnan(pairs).any(axis=1)]
        return known

    def distances(self) -> NDArray[np.float64]:
        """Distance of the served feature between any two steps, the mean over branches of the sums over pictures, float
        (steps, steps); infinite between steps of two experts, where nothing can be served."""
        found = []
        for record in self.branches.values():
            lower = np.zeros((self.steps, self.steps))
            for step, row in enumerate(record.distances):
                lower[step, :step] = _array(row)
            found.append(lower + lower.T)
        return np.nan_to_num(_mean_of_known(found, (self.steps, self.steps)), nan=np.inf)

    def told(self) -> dict[str, Any]:
        """What a plan made from it says of it in its settings."""
        return {"sampler": self.sampler, "guidance": self.guidance, "pictures": len(self.pictures), "call": self.call}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Raises:
            FestinaError: the folder does not exist or cannot be written.
        """
        from festina.calibration.files import text_of

        write_whole(Path(path), text_of(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Calibration:
        """Read a file that `save` wrote, strictly.

        Raises:
            FestinaError: it cannot be read or is not a valid calibration.
        """
        from festina.calibration.files import read_file

        return read_file(Path(path))


def _array(numbers: Any) -> NDArray[np.float64]:
    """As an array; None becomes NaN."""
    return np.array(numbers, dtype=np.float64)


def _mean_of_known(found: Sequence[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Mean of arrays of one shape where they have a number; NaN where none has."""
    if not found:
        return np.full(shape, np.nan)
    values = np.array(found)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean


def _sums(one: Rows, other: Rows) -> Rows:
    return tuple(
        tuple(None if a is None or b is None else a + b for a, b in zip(*rows, strict=True))
        for rows in zip(one, other, strict=True)
    )


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise FestinaError(f"not a valid calibration: {message}.")
