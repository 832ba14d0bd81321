"""Exponential integrators: phi-functions, and derivatives from outputs at uneven places. float64 on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.samplers.frames import NoiseLevel
from festina.strict import is_number

__all__ = ["check_ratio", "derivative_weights", "order_within_ratio", "phi", "time_integrals"]

_SERIES_BELOW = 0.1
_SERIES_TERMS = 12
_PANELS = 64


def phi(index: int, z: float) -> float:
    """phi_0(z) = e^z, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z (Hochbruck & Ostermann 2010, section 2.1).

    The recursion loses digits near 0, so that the series sum z^j / (j + k)! takes over there.
    """
    if abs(z) < _SERIES_BELOW:
        return math.fsum(z**power / math.factorial(power + index) for power in range(_SERIES_TERMS))
    value = math.exp(z)
    for lower in range(index):
        value = (value - 1 / math.factorial(lower)) / z
    return value


def derivative_weights(places: Sequence[float]) -> NDArray[np.float64]:
    """Weights of values at distinct places that give the derivatives at 0 of the polynomial through them.

    Row k holds the weights of the k-th derivative: the inverse of the matrix places[j]^k / k!.
    """
    powers = np.arange(len(places))
    factorials = np.array([math.factorial(power) for power in powers], dtype=np.float64)
    return np.asarray(np.linalg.inv(np.power.outer(np.asarray(places, dtype=np.float64), powers) / factorials))


def order_within_ratio(nodes: Sequence[NoiseLevel], target: NoiseLevel, order: int, largest_ratio: float) -> int:
    """An order that the lengths of steps allow: one less where the coming step is too long for the last one.

    A long step after a short one extrapolates far, and the weights of exact interpolation grow. Lengths are differences
    of the half log signal-to-noise ratio.

    Args:
        nodes: levels of the outputs at hand, the current one first.
        target: level that the step goes to.
        order: order wanted, at least 1.
        largest_ratio: of the coming step to the last one, above 0, e.g. 2.

    Raises:
        FestinaError: a ratio that is not above 0.
    """
    check_ratio(largest_ratio)
    if order < 2 or len(nodes) < 2 or target.sigma == 0:
        return order
    coming = target.half_log_snr - nodes[0].half_log_snr
    last = nodes[0].half_log_snr - nodes[1].half_log_snr
    return order - 1 if coming > largest_ratio * last else order


def check_ratio(largest_ratio: float) -> None:
    """Raise a `FestinaError` unless a largest ratio of two steps is a number above 0."""
    if not (is_number(largest_ratio) and largest_ratio > 0):
        raise FestinaError(f"the largest ratio of two steps is {largest_ratio!r}. Use a number above 0, e.g. 2.")


def time_integrals(
    times: Sequence[float], sigma_hats: NDArray[np.float64], ends: tuple[float, float], target_time: float
) -> NDArray[np.float64]:
    """Integrals over sigma_hat of the Lagrange polynomials in time (DEIS, Zhang & Chen 2022, equation 15).

    By parts: [L_j sigma_hat] - integral of sigma_hat dL_j, so that no derivative of the schedule is needed.

    Args:
        times: distinct times of the outputs, the current one first.
        sigma_hats: sigma_hat at the times of `quadrature_times`.
        ends: sigma_hat at the current time and at the target.
        target_time: time that the step goes to.

    Returns:
        one weight per output; they add up to the difference of `ends`.
    """
    places = (np.asarray(times, dtype=np.float64) - times[0]) / (target_time - times[0])
    basis = np.linalg.inv(np.vander(places, increasing=True))
    points, shares = _quadrature()
    weights = []
    for column in basis.T:
        polynomial = np.polynomial.Polynomial(column)
        inside = float(np.sum(shares * sigma_hats * polynomial.deriv()(points))) if len(places) > 1 else 0.0
        weights.append(float(polynomial(1.0)) * ends[1] - float(polynomial(0.0)) * ends[0] - inside)
    return np.array(weights)


def quadrature_times(current: float, target: float) -> NDArray[np.float64]:
    """The times between two at which `time_integrals` wants sigma_hat."""
    return current + (target - current) * _quadrature()[0]


def _quadrature() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of a Gauss-Legendre rule of three points on each of 64 panels of 0..1."""
    points, shares = np.polynomial.legendre.leggauss(3)
    starts = np.arange(_PANELS)[:, None] / _PANELS
    return (starts + (points + 1) / (2 * _PANELS)).ravel(), np.tile(shares / (2 * _PANELS), _PANELS)
