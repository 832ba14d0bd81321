"""Gates: deciders that look at a run. A plan has at most one; it decides wherever an action is `G`.

The published gates are settings of one mechanism. A *signal* is taken before the gated blocks; how far it has moved is
compared with a threshold: close enough, and the gated sites are served instead of computed.

| method | signal | moved since | summed up | served by |
|---|---|---|---|---|
| First-Block-Cache, DBCache (ParaAttention, cache-dit) | residual | computed | no | the last value |
| TeaCache (arXiv 2411.19108) | input | previous | yes, through a curve | the last value |
| DiCache (arXiv 2508.17356) | output | previous | yes | two values, stretched |
| Confidence-Gated Taylor (arXiv 2508.02240) | output | forecast | no | a forecast |

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from festina.errors import FestinaError
from festina.names import OUTPUT, RESIDUAL, parse
from festina.strict import is_number

SIGNALS = ("input", "output", "residual")
REFERENCES = ("computed", "previous", "forecast")
DECIDERS = ("call", "first-call", "second-half", "row")


@dataclass(frozen=True)
class Gate:
    """A decider.

    Attributes:
        probe: where the signal is taken: a run of blocks right before the first gated one, as
            `transformer_blocks.0:residual`, or for the signal "input" a component of the first gated block.
        signal: "residual" (what the probe adds), "output" (what it returns) or "input" (what the component is given).
        reference: what the signal is compared with: that of the last computed step, that of the previous step, or its
            forecast from the last computed steps.
        threshold: served if the relative change of the signal, mean|new - old| / mean|old|, is below this; at 0 never.
        summed: whether changes add up from one computed step to the next.
        beyond_input: whether the change counted is the difference to that of the probe's own input (DiCache's
            "delta_minus").
        curve: coefficients of a polynomial, the highest power first, that a change goes through before it is counted;
            () for none. What is below zero counts as zero.
        order: order of the forecast by which sites are served, and of the signal's own forecast; 0 holds.
        stretch: least and largest factor by which DiCache prolongs the last change of the stored values, measured on
            the probe's; () for none.
        longest: most steps served in a row; 0 for any number.
        decider: who decides in a step. "call": each call of the denoiser, for all of its rows. "first-call": the first
            call of the step, for all. "second-half": the second half of the rows, the conditional one where a pipeline
            guides in one call. "row": each row for itself, so that a batch gives what its pictures give alone.

    Raises:
        FestinaError: on construction, if a value is out of its range or two do not go together.
    """

    probe: str
    signal: str
    reference: str
    threshold: float
    summed: bool = False
    beyond_input: bool = False
    curve: tuple[float, ...] = ()
    order: int = 0
    stretch: tuple[float, ...] = ()
    longest: int = 0
    decider: str = "call"

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple(self.curve))
        object.__setattr__(self, "stretch", tuple(self.stretch))
        _one_of(self.signal, SIGNALS, "signal")
        _one_of(self.reference, REFERENCES, "reference")
        _one_of(self.decider, DECIDERS, "decider")
        _want(isinstance(self.probe, str), "the probe is the name of a site")
        kind = parse(self.probe).kind
        wanted = OUTPUT if self.signal == "input" else RESIDUAL
        _want(kind == wanted, f"the probe of the signal {self.signal!r} is a site of the kind {wanted!r}")
        _want(is_number(self.threshold) and self.threshold >= 0, "the threshold is a number of at least 0")
        _want(all(type(flag) is bool for flag in (self.summed, self.beyond_input)), "flags are true or false")
        _want(all(is_number(value) for value in (*self.curve, *self.stretch)), "curve and stretch are finite numbers")
        _want(type(self.order) is int and 0 <= self.order <= 9, "the order is a whole number from 0 to 9")
        _want(type(self.longest) is int and self.longest >= 0, "the longest run of serves is a whole number")
        _want(not self.summed or self.reference == "previous", "only changes since the previous step add up")
        _want(not self.beyond_input or self.signal == "output", "only a probe's output goes beyond its input")
        if self.stretch:
            _want(len(self.stretch) == 2 and self.stretch[0] <= self.stretch[1], "stretch is a least and a largest")
            _want(self.order == 0 and self.signal != "input", "values are stretched by a probe's residual, or forecast")
        if self.decider == "row":
            _want(self.depth == 1, "rows decide for themselves only where the last value is held")

    @property
    def depth(self) -> int:
        """How many computed values serving reads."""
        return 2 if self.stretch else self.order + 1

    def to_record(self) -> dict[str, Any]:
        """As it stands in a plan file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Gate:
        """Read what `to_record` wrote.

        Raises:
            FestinaError: a key is missing or unknown, or a value is of the wrong kind.
        """
        _want(isinstance(record, Mapping), "a gate is an object")
        names = set(Gate.__dataclass_fields__)
        _want(
            set(record) == names, f"a gate has the keys {', '.join(sorted(names))}; found {', '.join(sorted(record))}"
        )
        _want(all(isinstance(record[name], list) for name in ("curve", "stretch")), "curve and stretch are lists")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
        return Gate(**values)


def _one_of(value: object, known: tuple[str, ...], what: str) -> None:
    _want(value in known, f"unknown {what} {value!r:.40}; wanted one of {', '.join(known)}")


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise FestinaError(f"not a valid gate: {message}.")
