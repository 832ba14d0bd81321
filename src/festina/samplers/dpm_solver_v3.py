"""DPM-Solver-v3 (Zheng et al., arXiv 2310.13268) as tables, from statistics of a model that are functions of the level.

The paper keeps three numbers per dimension and level, l, s and b. A step of a table weighs whole tensors, so that here
l and s are one number per level each, and b, the constant part of a derivative, is left out: one number for all
dimensions says nothing about latents, whose mean is near zero. How much of the paper's gain is lost by that is not
known. The paper's pseudo-corrector is left out too: steps given by their weights have no corrector.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.interpolation import derivative_weights
from festina.samplers.table import LinearWeights, SolverStep, SolverTable, level_within
from festina.strict import is_number, read_json, read_whole, write_whole

__all__ = ["ModelStatistics", "v3_table"]

Vector = NDArray[np.float64]

_HIGHEST = 3
_SLACK = 2e-3
"""How far beyond the statistics, in half log signal-to-noise ratio, a level may lie: published levels are rounded."""
_POINTS, _PANEL = 16, 0.25
"""Gauss-Legendre points on each panel of an integral, and the longest panel in half log signal-to-noise ratio."""
_VERSION, _MOST_BYTES = 1, 16 * 2**20


@dataclass(frozen=True)
class ModelStatistics:
    """l and s of a model at some levels, linear between them.

    With them f = (sigma noise - l x) / alpha is what the solver takes for smooth along the probability flow: l takes
    out what is linear in the sample x, s is the rate at which the rest grows (2310.13268, section 3). Predictions of
    the picture are l = 1, s = 0; predictions of the noise l = 0, s = -1.

    Attributes:
        half_log_snrs: lambda = ln(alpha / sigma) of the levels, at least two, rising.
        linear: l at each level.
        growth: s at each level.

    Raises:
        FestinaError: fewer than two levels, another number of values, levels that do not rise, or a value that is not a
            finite number.
    """

    half_log_snrs: tuple[float, ...]
    linear: tuple[float, ...]
    growth: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            values = tuple(getattr(self, field.name))
            if len(values) != len(self.half_log_snrs) or len(values) < 2 or not all(map(is_number, values)):
                raise FestinaError(
                    f"{field.name} of a model's statistics is {values!s:.60}; wanted finite numbers, one for each "
                    "of at least two levels."
                )
            object.__setattr__(self, field.name, tuple(map(float, values)))
        if any(following <= level for level, following in pairwise(self.half_log_snrs)):
            raise FestinaError("the levels of a model's statistics do not rise. Sort them by ln(alpha / sigma).")

    def covers(self, level: NoiseLevel) -> bool:
        """Whether the statistics reach to a level; rounding of 0.2 % of the noise is let pass."""
        return self.half_log_snrs[0] - _SLACK <= level.half_log_snr <= self.half_log_snrs[-1] + _SLACK

    def linear_at(self, half_log_snrs: Vector) -> Vector:
        """l at levels (any shape); beyond the ends the outermost lines go on."""
        return _polygon(self.half_log_snrs, self.linear, half_log_snrs)[0]

    def integrals(self, half_log_snrs: Vector) -> tuple[Vector, Vector]:
        """L and S, the integrals of l and s from the first level to others (any shape), exact."""
        levels = self.half_log_snrs
        return _polygon(levels, self.linear, half_log_snrs)[1], _polygon(levels, self.growth, half_log_snrs)[1]

    def moments(self, start: float, end: float, count: int) -> Vector:
        """Integrals of exp(L + S - L_start - S_start) u^k / k! over a step, for k = 0, ..., count - 1.

        u rises from 0 to 1 along the step, so that these are the paper's E_k over h^k (section 3.2 there).

        Args:
            start, end: half log signal-to-noise ratios, the second one larger.
            count: of integrals, at least 1.
        """
        nodes = np.array(self.half_log_snrs)
        inside = nodes[(nodes > start) & (nodes < end)]
        edges = np.unique([*np.linspace(start, end, math.ceil((end - start) / _PANEL) + 1), *inside])
        points, shares = np.polynomial.legendre.leggauss(_POINTS)
        halves = np.diff(edges)[:, None] / 2
        places = (edges[:-1, None] + halves * (points + 1)).ravel()
        linear, growth = self.integrals(np.array([start, *places]))
        total = linear + growth
        risen = np.exp(total[1:] - total[0]) * (halves * shares).ravel()
        along = (places - start) / (end - start)
        return np.array([float(risen @ along**power) / math.factorial(power) for power in range(count)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all.

        Raises:
            FestinaError: it cannot be written.
        """
        write_whole(Path(path), json.dumps({"version": _VERSION, **asdict(self)}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelStatistics:
        """The statistics written by `save`.

        Raises:
            FestinaError: the file cannot be read or holds no such statistics.
        """
        return read_whole(Path(path), "file of a model's statistics", _MOST_BYTES, _parsed)


def v3_table(
    frame: Frame, noises: Sequence[float], statistics: ModelStatistics, order: int = 2, final_noise: float = 0.0
) -> SolverTable:
    """DPM-Solver-v3 on a grid: steps given by their weights of pictures and noises, the order lowered at both ends.

    A step to noise 0 takes the predicted picture. A flow model's pure noise has no half log signal-to-noise ratio: the
    step from there is Euler's, and later steps do not look back on its output. A run can begin midway only where a
    step looks back on no output before it.

    Args:
        frame: of the model.
        noises: levels of the network calls as the scheduler counts them, after any shift, strictly falling.
        statistics: of the model at the strength of guidance that it is run with; they cover all levels between noise 0
            and pure noise.
        order: 1, 2 or 3; the paper takes 2 and 3.
        final_noise: level that the last step ends at, 0 = clean.

    Raises:
        FestinaError: another order; levels that do not fall, that the model does not have, or that lie outside the
            statistics.
    """
    if order not in range(1, _HIGHEST + 1):
        raise FestinaError(f"DPM-Solver-v3 has no order {order}. Use an order from 1 to {_HIGHEST}.")
    ends = [*noises, final_noise]
    if len(ends) < 2 or any(following >= noise for noise, following in pairwise(ends)):
        raise FestinaError(f"the levels {ends!s:.80} do not fall from step to step. Give at least one, all distinct.")
    levels = [level_within(frame, noise, "a step is at") for noise in ends]
    for noise, level in zip(ends, levels, strict=True):
        if not _is_end(level) and not statistics.covers(level):
            reach = [f"{math.exp(-each):.4g}" for each in statistics.half_log_snrs]
            raise FestinaError(
                f"the noise level {noise:g} has sigma / alpha {level.sigma_hat:.4g}, and the statistics reach from "
                f"{reach[0]} to {reach[-1]}. Measure them there too, or use levels between these."
            )
    steps = []
    for place, noise in enumerate(ends[:-1]):
        if _is_end(levels[place]) or _is_end(levels[place + 1]):
            steps.append(SolverStep(noise, order=1))
            continue
        known = [level for level in levels[place::-1] if not _is_end(level)]
        nodes = known[: min(order, len(noises) - place)]
        steps.append(SolverStep(noise, linear=_weights(statistics, nodes, levels[place + 1])))
    return SolverTable(tuple(steps), final_noise)


def _weights(statistics: ModelStatistics, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> LinearWeights:
    """One step (2310.13268, section 3.2, with b = 0) from nodes[0], with the outputs at all nodes.

    x_t = (alpha_t / alpha_s) e^(L_s - L_t) x_s - alpha_t e^(L_s - L_t) sum_k E_k g^(k), where g^(k) are derivatives at
    the start of the polynomial through g_j = e^(S_s - S_j) f_j.
    """
    places = np.array([level.half_log_snr for level in (*nodes, target)])
    start, end = float(places[0]), float(places[-1])
    linear, growth = statistics.integrals(places)
    decay = target.alpha * math.exp(linear[0] - linear[-1])
    derivatives = derivative_weights(((places[:-1] - start) / (end - start)).tolist())
    of_rest = -decay * (statistics.moments(start, end, len(nodes)) @ derivatives) * np.exp(growth[0] - growth[:-1])
    # With x = alpha x0 + sigma noise, f is (1 - l) (sigma / alpha) noise - l x0: no stored sample is needed.
    share = statistics.linear_at(places[:-1])
    data = -share * of_rest
    noise = (1 - share) * np.array([level.sigma_hat for level in nodes]) * of_rest
    return LinearWeights(tuple(data.tolist()), "data", sample=decay / nodes[0].alpha, noise=tuple(noise.tolist()))


def _is_end(level: NoiseLevel) -> bool:
    """Whether the half log signal-to-noise ratio of a level is infinite: pure noise, and the clean end."""
    return level.alpha == 0 or level.sigma == 0


def _polygon(nodes: Sequence[float], values: Sequence[float], places: Vector) -> tuple[Vector, Vector]:
    """A piecewise linear function at places, and its integral from the first node to them."""
    lengths, heights = np.diff(nodes), np.asarray(values)
    whole = np.concatenate([[0.0], np.cumsum(lengths * (heights[1:] + heights[:-1]) / 2)])
    panel = np.clip(np.searchsorted(nodes, places, side="right") - 1, 0, len(lengths) - 1)
    begun, slope = places - np.asarray(nodes)[panel], (np.diff(heights) / lengths)[panel]
    return heights[panel] + slope * begun, whole[panel] + begun * (heights[panel] + slope * begun / 2)


def _parsed(text: str) -> ModelStatistics:
    record = read_json(text, "a model's statistics")
    names = [field.name for field in fields(ModelStatistics)]
    if not isinstance(record, dict) or set(record) != {"version", *names}:
        raise FestinaError(f"a model's statistics have the keys version, {', '.join(names)}.")
    if record["version"] != _VERSION:
        raise FestinaError(
            f"written in version {record['version']!r:.20} of the format; this Festina reads {_VERSION}."
        )
    if not all(isinstance(record[name], list) for name in names):
        raise FestinaError(f"{', '.join(names)} of a model's statistics are lists of numbers.")
    return ModelStatistics(*(tuple(record[name]) for name in names))
