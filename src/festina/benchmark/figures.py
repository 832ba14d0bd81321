"""What is known of one variant once its pictures were made, as one strict JSON file each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from festina.errors import FestinaError
from festina.plan import Plan
from festina.strict import is_number, read_json

SCHEMA = 1
"""Version of the file."""


@dataclass(frozen=True)
class Figures:
    """Figures of a variant's pictures; those that were not measured are None.

    Attributes:
        name: the variant's name.
        key: the variant's key; figures are another variant's if it is not the same.
        steps: sampling steps.
        plan: the plan that ran; None for the untouched sampler and for peers.
        scores: reward of every picture, pictures of one prompt side by side.
        macs: multiply-accumulates of the denoiser per picture, counted in the run; None for peers.
        held_bytes: most bytes held between steps, per picture; None for peers.
        frechet: Frechet distance to real pictures.
        error: mean squared error to the uncached pictures, over all of them; 0 if they are the same.
        ssim, lpips: mean over pictures, to the uncached pictures.
        notes: what was seen besides, a sentence each.

    Raises:
        FestinaError: on construction, if a figure is out of its range.
    """

    name: str
    key: str
    steps: int
    plan: Plan | None
    scores: tuple[float, ...]
    macs: int | None
    held_bytes: int | None
    frechet: float | None
    error: float
    ssim: float | None
    lpips: float | None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for label, text in (("name", self.name), ("key", self.key)):
            self._want(isinstance(text, str) and bool(text), f"{label} {text!r:.60}; wanted a text")
        self._want(type(self.steps) is int and self.steps >= 1, f"steps {self.steps!r:.60}; wanted 1 or more")
        known = bool(self.scores) and all(is_number(score) for score in self.scores)
        self._want(known, "scores that are no finite numbers, or none")
        for label, count in (("macs", self.macs), ("held_bytes", self.held_bytes)):
            holds = count is None or (type(count) is int and count >= 0)
            self._want(holds, f"{label} {count!r:.60}; wanted a whole number of 0 or more, or none")
        self._want(all(isinstance(note, str) for note in self.notes), "notes that are no texts")
        self._want(is_number(self.error) and self.error >= 0, f"error {self.error!r:.60}; wanted 0 or more")
        for label, value in (("frechet", self.frechet), ("ssim", self.ssim), ("lpips", self.lpips)):
            self._want(value is None or is_number(value), f"{label} {value!r:.60}; wanted a finite number, or none")

    def _want(self, holds: bool, message: str) -> None:
        if not holds:
            raise FestinaError(f"figures of {self.name!r:.60} have {message}.")

    @property
    def reward(self) -> float:
        """Mean reward of the pictures."""
        return math.fsum(self.scores) / len(self.scores)

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio to the uncached pictures in dB; infinite if they are the same.

        It is that of the mean squared error over all pictures, so that single pictures that came out the same, as a
        gate can have it, do not make it infinite.
        """
        return psnr_of(self.error)

    def to_json(self) -> str:
        """The file's text."""
        record = vars(self) | {"plan": None if self.plan is None else json.loads(self.plan.to_json())}
        return json.dumps({"festina_bench_run": SCHEMA, **record}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Figures:
        """Read what `to_json` wrote.

        Raises:
            FestinaError: it is something else; the message names the file `where`.
        """
        record = read_json(text, f"figures of a benchmark's run ({where})")
        names = {field.name for field in fields(Figures)}
        if not isinstance(record, dict) or set(record) != names | {"festina_bench_run"}:
            raise FestinaError(f"{where} holds no figures of a benchmark's run; delete it to measure that run again.")
        if record.pop("festina_bench_run") != SCHEMA:
            raise FestinaError(
                f"{where} was written by another version of Festina; delete it to measure that run again."
            )
        plan: Any = record["plan"]
        lists = {name: tuple(record[name]) if isinstance(record[name], list) else () for name in ("scores", "notes")}
        try:
            return Figures(**record | lists | {"plan": None if plan is None else Plan.from_json(json.dumps(plan))})
        except FestinaError as error:
            raise FestinaError(f"{where}: {error}") from None


def psnr_of(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pictures in [0, 1]: 10 log10(1 / error)."""
    return math.inf if error == 0 else -10 * math.log10(error)
