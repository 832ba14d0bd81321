"""What is measured in one run: numbers of each branch of guidance, from the values that go by."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from festina.calibration.places import Places, tensors_of
from festina.calibration.record import CHANGES, DISTANCES, LAG_ERRORS, LAGS, MAGNITUDES, BranchRecord, Row, Rows
from festina.executor.clock import StepClock
from festina.executor.gating import relative_change

Values = Sequence[Tensor]
"""A value of one or more tensors."""


@dataclass
class _Branch:
    """What is known of one branch so far. Numbers stay on their device until the run has ended."""

    past: dict[tuple[str, int], deque[tuple[int, Values]]] = field(default_factory=dict)
    lags: dict[str, dict[tuple[int, int], list[Tensor]]] = field(default_factory=dict)
    features: list[tuple[int, Values]] = field(default_factory=list)
    magnitudes: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    distances: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    before: tuple[int, Tensor | None, Values] | None = None
    changes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class RunObserver:
    """Measures one run.

    Args:
        clock: the clock of the run, which knows step and branch.
        places: what is measured.
    """

    def __init__(self, clock: StepClock, places: Places) -> None:
        self._clock, self._places = clock, places
        self._branches: dict[str, _Branch] = {}
        self._visits: Counter[str] = Counter()
        self._entered: dict[int, Tensor] = {}
        self._left: dict[int, Tensor] = {}
        self._signal: Tensor | None = None
        self._feature: Tensor | None = None

    def component(self, site: str, output: Any) -> None:
        branch, step, values = self._branch(), self._clock.ended, tensors_of(output)
        # Some denoisers send a call through the same block several times.
        visit = site, self._visits[site]
        self._visits[site] += 1
        past = branch.past.setdefault(visit, deque(maxlen=LAGS))
        errors = branch.lags.setdefault(site, {})
        for source, earlier in past:
            if step - source <= LAGS and _alike(values, earlier):
                errors.setdefault((step - source, source), []).append(_share(_distance(values, earlier), values))
        past.append((step, values))

    def entered(self, run: int, given: Tensor) -> None:
        self._entered[run] = given

    def left(self, run: int, after: Tensor) -> None:
        self._left[run] = after

    def signal(self, given: Tensor) -> None:
        self._signal = given if self._signal is None else self._signal

    def feature(self, output: Tensor) -> None:
        self._feature = output

    def ended(self, outputs: Sequence[Tensor]) -> None:
        branch, step, measures = self._branch(), self._clock.ended, self._places.measures
        value = self._served_value()
        if value and MAGNITUDES in measures and branch.features and branch.features[-1][0] == step - 1:
            branch.magnitudes[step] = _magnitudes(value, branch.features[-1][1])
        if value and DISTANCES in measures:
            for other, earlier in branch.features:
                branch.distances[step, other] = _distance(value, earlier)
        elif value:
            branch.features.clear()
        if value:
            branch.features.append((step, value))
        if CHANGES in measures:
            if branch.before is not None and branch.before[0] == step - 1:
                branch.changes[step] = self._change(branch.before, outputs)
            branch.before = step, self._signal, outputs
        self._visits.clear()
        self._entered, self._left, self._signal, self._feature = {}, {}, None, None

    def measured(self, steps: int) -> dict[str, BranchRecord]:
        """The numbers of the run, which had so many steps."""
        return {name: _record(branch, steps, self._places) for name, branch in self._branches.items()}

    def _branch(self) -> _Branch:
        return self._branches.setdefault(self._clock.branch, _Branch())

    def _served_value(self) -> Values:
        """What serving would keep: the change that the stack makes, or a U-Net's feature; () if not measured.

        The change goes from the first block's input to the last block's output. Where they have not one shape (lists
        whose blocks take turns, or see text and picture in one), it is that of each run.
        """
        if self._feature is not None:
            return (self._feature,)
        if not self._left:
            return ()
        last = max(self._left)
        if not self._places.in_turns and self._left[last].shape == self._entered[0].shape:
            return (self._left[last] - self._entered[0],)
        return tuple(self._left[run] - self._entered[run] for run in sorted(self._left))

    def _change(self, before: tuple[int, Tensor | None, Values], outputs: Values) -> tuple[Tensor, Tensor]:
        _, signal, earlier = before
        assert signal is not None
        assert self._signal is not None
        # As a gate will see it.
        moved = relative_change(signal, self._signal, rows=False)
        return moved, _share(_distance(outputs, earlier), earlier)


def _record(branch: _Branch, steps: int, places: Places) -> BranchRecord:
    lags = {}
    for site, errors in branch.lags.items():
        means = {place: _number(torch.stack(found).mean()) for place, found in errors.items()}
        lags[site] = tuple(_row(means, [(lag, step) for step in range(steps)]) for lag in range(1, LAGS + 1))
    ratios = {step: [_number(value) for value in values] for step, values in branch.magnitudes.items()}
    changes = {step: [_number(value) for value in values] for step, values in branch.changes.items()}
    distances = {pair: _number(value) for pair, value in branch.distances.items()}
    measures = places.measures
    return BranchRecord(
        lags if LAG_ERRORS in measures else {},
        _columns(ratios, steps, 3) if MAGNITUDES in measures else (),
        (_columns(changes, steps, 2),) if CHANGES in measures else (),
        tuple(_row(distances, [(step, other) for other in range(step)]) for step in range(steps))
        if DISTANCES in measures
        else (),
    )


def _row(numbers: dict[Any, float | None], keys: Sequence[Any]) -> Row:
    return tuple(numbers.get(key) for key in keys)


def _columns(numbers: dict[int, list[float | None]], steps: int, count: int) -> Rows:
    none: list[float | None] = [None] * count
    return tuple(tuple(numbers.get(step, none)[index] for step in range(steps)) for index in range(count))


def _number(value: Tensor) -> float | None:
    number = float(value)
    # A cosine of one may be rounded to more.
    return max(number, 0.0) if math.isfinite(number) else None


def _alike(one: Values, other: Values) -> bool:
    return [value.shape for value in one] == [value.shape for value in other]


def _distance(one: Values, other: Values) -> Tensor:
    """L1 distance of two values, in single precision."""
    return torch.stack([_size(new.float() - old.float()) for new, old in zip(one, other, strict=True)]).sum()


def _share(moved: Tensor, reference: Values) -> Tensor:
    """A distance as a share of the reference's L1 norm; no distance at all is 0, also from zero."""
    whole = torch.stack([_size(value) for value in reference]).sum()
    return torch.where(moved == 0, 0.0, moved / whole)


def _size(value: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(value, 1, dtype=torch.float32)
    return size


def _magnitudes(now: Values, before: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation over tokens of the ratio of their lengths, and mean distance of their directions."""
    pairs = [(new.float(), old.float()) for new, old in zip(now, before, strict=True)]
    ratios = torch.cat([(new.norm(dim=-1) / old.norm(dim=-1)).flatten() for new, old in pairs])
    cosines = torch.cat([torch.cosine_similarity(new, old, dim=-1).flatten() for new, old in pairs])
    return ratios.mean(), ratios.std(correction=min(1, len(ratios) - 1)), 1 - cosines.mean()
