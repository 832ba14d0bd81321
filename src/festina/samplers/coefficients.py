"""One step of a solver as weights over the current sample and stored outputs. float64 on the host, no torch.

`x_t = a x_s + sum_j c_j m_j`, where m_j are predictions of the picture x0 ("data") or of the noise ("noise"). Each kind
is the first-order step (DDIM without noise, Song et al. 2021, equation 12; Euler's step for flow models) and, from the
second order on, differences of outputs, whose weights add up to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.interpolation import derivative_weights, phi, quadrature_times, time_integrals

__all__ = ["KINDS", "Kind", "contrast_weight", "correction_weights", "first_order", "higher_order_weights", "kind_of"]

Vector = NDArray[np.float64]
Rule = Callable[[Frame, Sequence[NoiseLevel], NoiseLevel], Vector]

_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class Kind:
    """A solver.

    Attributes:
        form: which predictions it combines, "data" or "noise".
        highest: its highest order.
        higher: weights of the outputs beyond the first-order step, from (frame, levels of the outputs with the current
            one first, target).
        corrector: weights of the outputs beyond the first-order step once an output at the target is there too, that
            output's weight first; None if the kind has none.
        reaches_clean: whether its higher orders may step to noise 0, where the half log signal-to-noise ratio is
            infinite.
    """

    form: str
    highest: int
    higher: Rule
    corrector: Rule | None = None
    reaches_clean: bool = False


def first_order(source: NoiseLevel, target: NoiseLevel, form: str) -> tuple[float, float]:
    """(weight of the sample, weight of the current prediction) of the first-order step.

    Both forms are the same step. "data" divides by the noise of the source, "noise" by its share of the picture.
    """
    if form == "data":
        return target.sigma / source.sigma, target.alpha - target.sigma * source.alpha / source.sigma
    return target.alpha / source.alpha, contrast_weight(source, target)


def contrast_weight(source: NoiseLevel, target: NoiseLevel) -> float:
    """Weight of the noise prediction in a first-order step.

    DualFast (2506.13058) takes (1 + c) noise - c reference there for the noise.

    Raises:
        FestinaError: the source is pure noise (alpha 0), where the weight is infinite.
    """
    if source.alpha == 0:
        raise FestinaError(
            "a step from pure noise weighs the noise infinitely. Leave contrasts and weights of the noise out of steps "
            "at level 1."
        )
    return target.sigma - target.alpha * source.sigma / source.alpha


def kind_of(name: str) -> Kind:
    """The solver kind called `name`.

    Raises:
        FestinaError: there is none.
    """
    if name not in KINDS:
        raise FestinaError(f"no solver is called {name!r}. Use one of {', '.join(KINDS)}.")
    return KINDS[name]


def higher_order_weights(frame: Frame, kind: Kind, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
    """Weights of outputs beyond the first-order step from nodes[0] to the target; one per node, adding up to 0.

    Args:
        frame: of the model.
        kind: the solver.
        nodes: distinct levels of the outputs to use, the current one first; as many as the step's order.
        target: level that the step goes to.
    """
    stays = target.half_log_snr == nodes[0].half_log_snr
    return np.zeros(len(nodes)) if len(nodes) == 1 or stays else kind.higher(frame, nodes, target)


def correction_weights(frame: Frame, kind: Kind, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
    """Weights beyond the first-order step from nodes[0], made again with an output at the target (UniPC, section 3.1).

    Returns:
        one weight for the output at the target, then one per node; they add up to 0.

    Raises:
        FestinaError: the kind has no corrector.
    """
    if kind.corrector is None:
        able = ", ".join(name for name, other in KINDS.items() if other.corrector is not None)
        raise FestinaError(f"this solver has no corrector. Leave the corrector out, or use one of {able}.")
    if target.half_log_snr == nodes[0].half_log_snr:
        return np.zeros(len(nodes) + 1)
    return kind.corrector(frame, nodes, target)


def _taylor_factors(form: str, count: int, step: float, target: NoiseLevel) -> Vector:
    """h^{k+1} phi_{k+1} for k = 0..count-1 as factors of h^k-scaled derivatives: h phi_{k+1}, with sign and scale."""
    scale, sign = (target.alpha, -1) if form == "data" else (-target.sigma, 1)
    return np.array([scale * step * phi(index + 1, sign * step) for index in range(count)])


def _taylor(form: str, nodes: Sequence[NoiseLevel], places: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
    """Exact integration of the polynomial through `places`, the first of which is nodes[0]."""
    start = nodes[0].half_log_snr
    step = target.half_log_snr - start
    derivatives = derivative_weights([(place.half_log_snr - start) / step for place in places])
    factors = _taylor_factors(form, len(places), step, target)
    return np.asarray(factors[1:] @ derivatives[1:])


def _exact(form: str) -> Rule:
    """DPM-Solver (noise, 2206.00927 equation 3.6) and DPM-Solver++ (data, 2211.01095 equation 4.4), exact weights."""

    def weights(frame: Frame, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
        return _taylor(form, nodes, nodes, target)

    return weights


def _exact_corrector(form: str) -> Rule:
    def weights(frame: Frame, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
        rest = _taylor(form, nodes, [*nodes, target], target)
        return np.array([rest[-1], *rest[:-1]])

    return weights


def _released(form: str) -> Rule:
    """As released with DPM-Solver and in diffusers: order 2 in the "midpoint" form (2211.01095, algorithm 2).

    Order 3 takes the second divided difference, half the second derivative, where the exact formula has the derivative.
    """

    def weights(frame: Frame, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
        start = nodes[0].half_log_snr
        step = target.half_log_snr - start
        derivatives = derivative_weights([(node.half_log_snr - start) / step for node in nodes])
        factors = _taylor_factors(form, len(nodes), step, target)
        if len(nodes) == 2:
            return np.asarray(factors[0] / 2 * derivatives[1])
        return np.asarray(factors[1] * derivatives[1] + factors[2] / 2 * derivatives[2])

    return weights


def _adams_bashforth(frame: Frame, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
    """Fixed weights as if steps were even, with DDIM's step: PLMS (2202.09778, equation 12), iPNDM (2204.13902)."""
    weights = np.array(_ADAMS_BASHFORTH[len(nodes) - 1])
    weights[0] -= 1
    return contrast_weight(nodes[0], target) * weights


def _deis_time(frame: Frame, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
    """tAB-DEIS (2204.13902, equation 15): the noise as a polynomial in time, integrated over sigma / alpha."""
    times = [frame.time_of(node) for node in nodes]
    goal = frame.time_of(target)
    if len({*times, goal}) <= len(times):
        raise FestinaError(
            f"deis_time needs levels at distinct training times, and some of {[*times, goal]} coincide: they lie "
            "outside the training schedule. Use levels inside it, or the solver noise."
        )
    inside = frame.sigma_hat_along(quadrature_times(times[0], goal))
    ends = (nodes[0].sigma_hat, target.sigma_hat)
    weights = time_integrals(times, inside, ends, goal)
    weights[0] -= ends[1] - ends[0]
    return target.alpha * weights


def _unified(variant: str, known: Sequence[NoiseLevel], start: NoiseLevel, target: NoiseLevel, fixed: bool) -> Vector:
    """UniPC's weights (2302.04867, equations 5 and 8) of the nodes `known`, then that of the start.

    Args:
        variant: "bh1", B(h) = h, or "bh2", B(h) = e^h - 1.
        known: levels other than the start.
        start: level the step begins at.
        target: level it goes to.
        fixed: whether the one weight is 1/2 whatever the step, as released for the lowest order.
    """
    step = target.half_log_snr - start.half_log_snr
    scale = -step if variant == "bh1" else math.expm1(-step)
    places = np.array([(level.half_log_snr - start.half_log_snr) / step for level in known])
    count = len(places)
    if fixed:
        shares = np.array([0.5])
    else:
        rows = np.vander(places, increasing=True).T
        moments = [math.factorial(row) * -step * phi(row + 1, -step) / scale for row in range(1, count + 1)]
        shares = np.linalg.solve(rows, np.array(moments))
    weights = -target.alpha * scale * shares / places
    return np.array([*weights, -weights.sum()])


def _unified_predictor(variant: str) -> Rule:
    def weights(frame: Frame, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
        found = _unified(variant, nodes[1:], nodes[0], target, len(nodes) == 2)
        return np.array([found[-1], *found[:-1]])

    return weights


def _unified_corrector(variant: str) -> Rule:
    def weights(frame: Frame, nodes: Sequence[NoiseLevel], target: NoiseLevel) -> Vector:
        found = _unified(variant, [*nodes[1:], target], nodes[0], target, len(nodes) == 1)
        return np.array([found[-2], found[-1], *found[:-2]])

    return weights


KINDS = {
    "data": Kind("data", 3, _exact("data"), _exact_corrector("data")),
    "noise": Kind("noise", 3, _exact("noise"), _exact_corrector("noise")),
    "data_released": Kind("data", 3, _released("data")),
    "noise_released": Kind("noise", 3, _released("noise")),
    "adams_bashforth": Kind("noise", 4, _adams_bashforth, reaches_clean=True),
    "deis_time": Kind("noise", 4, _deis_time, reaches_clean=True),
    "unipc_bh1": Kind("data", 3, _unified_predictor("bh1"), _unified_corrector("bh1")),
    "unipc_bh2": Kind("data", 3, _unified_predictor("bh2"), _unified_corrector("bh2")),
}
"""Solver kinds by name."""
