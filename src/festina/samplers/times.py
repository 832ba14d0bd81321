"""Grids of noise levels: where on the noise axis a model is called.

Every grid gives the levels of the network calls as the model's scheduler counts them (see `festina.samplers.frames`),
noisiest first and strictly falling; the level that the last step ends at, clean as a rule, is not among them. Curves
are drawn over sigma_hat = sigma / alpha, the noise level of EDM, so that one curve serves every family of models. The
first level is the noisiest of the model, whatever the curve: that is what a run's first sample is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.samplers.frames import Frame
from festina.samplers.grids import Grid, solver_table
from festina.samplers.table import SolverTable

__all__ = [
    "ALIGNED",
    "GRIDS",
    "align_your_steps",
    "arctan",
    "exponential_signal",
    "karras",
    "table_on",
    "uniform_log_snr",
    "uniform_time",
]

ALIGNED = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Align Your Steps' nodes of ten steps in sigma_hat, and where the tenth ends (Sabour et al., 2404.14507, appendix)."""

_PURE_FLOW = 0.99
"""Level that a flow model's pure noise counts as where a curve needs a finite sigma_hat to begin at."""


def uniform_time(frame: Frame, steps: int) -> tuple[float, ...]:
    """Even steps of time from the noisiest level to time 0, where the last step ends.

    The times are the spacing "linspace" of diffusers' multistep schedulers before it is rounded. A flow model's levels
    are 1, 1 - 1/steps, ..., before any shift: put them into a table with `before_shift`, or use them as they are for no
    shift. EDM's levels themselves are even.

    Args:
        frame: of the model.
        steps: network calls, at least 1.
    """
    _count(steps)
    latest = {"variance_preserving": frame.train_steps - 1.0, "flow": float(frame.train_steps)}
    times = np.linspace(latest.get(frame.family, _ends(frame)[0]), 0, steps + 1)[:-1]
    return tuple(frame.noise_along(times).tolist())


def karras(frame: Frame, steps: int, rho: float = 7.0) -> tuple[float, ...]:
    """sigma_hat^(1/rho) in even steps from the model's largest to its smallest (Karras et al. 2022, equation 5).

    Args:
        frame: of the model.
        steps: network calls, at least 1; the last is at the model's smallest level.
        rho: above 0; larger puts more calls at small noise.

    Raises:
        FestinaError: no steps, or rho is not above 0.
    """
    _count(steps)
    if not rho > 0:
        raise FestinaError(f"rho is {rho:g}. Use a number above 0, e.g. 7.")
    most, least = _ends(frame)
    return _noises(frame, np.linspace(most ** (1 / rho), least ** (1 / rho), steps) ** rho)


def uniform_log_snr(frame: Frame, steps: int) -> tuple[float, ...]:
    """Even steps of the half log signal-to-noise ratio, from the model's largest noise to its smallest.

    The grid that DPM-Solver takes (Lu et al., 2206.00927, section 3.3), and diffusers' "exponential" one.

    Args:
        frame: of the model.
        steps: network calls, at least 1; the last is at the model's smallest level.
    """
    _count(steps)
    most, least = _ends(frame)
    return _noises(frame, np.exp(np.linspace(math.log(most), math.log(least), steps)))


def exponential_signal(frame: Frame, steps: int, sharpness: float = 8.0) -> tuple[float, ...]:
    """HIR-Diff's exponential schedule (Pang et al., 2402.15865): the share alpha^2 of the picture in the variance rises
    as 1 - exp(-k u) over even steps u of 0..1, scaled to go from the model's own smallest share to 1.

    HIR-Diff begins at a share of 1e-3. The grid has few calls at large noise.

    Args:
        frame: of the model.
        steps: network calls, at least 1.
        sharpness: k, above 0; HIR-Diff takes 8, and 5 for filling in.

    Raises:
        FestinaError: no steps, or k is not above 0.
    """
    _count(steps)
    if not sharpness > 0:
        raise FestinaError(f"the sharpness is {sharpness:g}. Use a number above 0, e.g. 8.")
    least_share = 1 / (1 + _ends(frame)[0] ** 2)
    risen = -np.expm1(-sharpness * np.arange(steps) / steps) / -math.expm1(-sharpness)
    share = least_share + (1 - least_share) * risen
    return _noises(frame, np.sqrt((1 - share) / share))


def align_your_steps(frame: Frame, steps: int, model: str = "sd15") -> tuple[float, ...]:
    """Align Your Steps (Sabour et al., 2404.14507): nodes found for a model, here for any number of steps.

    Another number than 10 is interpolated linearly in the logarithm over the place, as the authors do. The last step
    may end at the published end of the tenth (`ALIGNED[model][-1]`) or clean.

    Args:
        frame: of the model. Its largest level takes the place of the first node.
        steps: network calls, at least 1.
        model: whose nodes: "sd15", "sdxl", "deepfloyd" (first stage) or "svd".

    Raises:
        FestinaError: a model that is not known, no steps, or a model whose largest level lies below the second node.
    """
    _count(steps)
    if model not in ALIGNED:
        raise FestinaError(f"no nodes are published for {model!r}. Use one of {', '.join(ALIGNED)}.")
    nodes = np.log([_ends(frame)[0], *ALIGNED[model][1:]])
    places = np.linspace(0, len(nodes) - 1, steps + 1)[:-1]
    return _noises(frame, np.exp(np.interp(places, np.arange(len(nodes)), nodes)))


def arctan(frame: Frame, steps: int, spread: float | None = None) -> tuple[float, ...]:
    """Even steps of arctan(sigma_hat / c) down to clean: the best grid of first-order steps for Gaussian data.

    A step leaves the deviation of a sample from the mean too small, by the factor cos(difference of the two angles).
    The product of these factors is largest for even angles (Sabour et al., 2404.14507, section 3.1).

    Args:
        frame: of the model.
        steps: network calls, at least 1.
        spread: c, standard deviation of the data; left out: `sigma_data` of EDM, and 1 for others.

    Raises:
        FestinaError: no steps, or a spread that is not above 0.
    """
    _count(steps)
    if spread is None:
        spread = frame.sigma_data if frame.family == "edm" else 1.0
    if not spread > 0:
        raise FestinaError(f"the spread of the data is {spread:g}. Use a number above 0.")
    most = math.inf if frame.family == "flow" else _ends(frame)[0]
    return _noises(frame, spread * np.tan(np.linspace(math.atan(most / spread), 0, steps + 1)[:-1]))


GRIDS: Mapping[str, Callable[[Frame, int], tuple[float, ...]]] = {
    "uniform_time": uniform_time,
    "karras": karras,
    "uniform_log_snr": uniform_log_snr,
    "exponential_signal": exponential_signal,
    "align_your_steps": align_your_steps,
    "arctan": arctan,
}
"""Grids by name, each with its usual settings."""


def table_on(
    frame: Frame,
    noises: Sequence[float],
    solver: str = "data",
    order: int = 2,
    corrector: bool = False,
    final_noise: float = 0.0,
) -> SolverTable:
    """One solver on a grid, its order lowered in the first and in the last steps.

    Args:
        frame: of the model.
        noises: levels of the network calls, falling.
        solver: a name of `festina.samplers.KINDS`.
        order: its order.
        corrector: whether every step but the first corrects its sample.
        final_noise: level that the last step ends at, 0 = clean.

    Raises:
        FestinaError: levels that the model does not have or that rise; a solver that is not known.
    """
    grid = Grid((*noises, final_noise), tuple(frame.network_time(noise) for noise in noises))
    made = solver_table(grid, frame, solver, order, corrector, lower_order_final=True, largest_step_ratio=None)
    return made.at_own_times()


def _ends(frame: Frame) -> tuple[float, float]:
    """Largest and smallest sigma_hat of a model."""
    if frame.family == "flow":
        return _PURE_FLOW / (1 - _PURE_FLOW), 1 / (frame.train_steps - 1)
    return frame.largest_noise, frame.smallest_noise if frame.family == "edm" else frame.training_noise[0]


def _noises(frame: Frame, sigma_hats: NDArray[np.float64]) -> tuple[float, ...]:
    """The levels as the model counts them, the first one put at its noisiest."""
    if frame.family == "flow":
        noises = [1.0, *(sigma_hats[1:] / (1 + sigma_hats[1:])).tolist()]
    else:
        noises = [_ends(frame)[0], *sigma_hats[1:].tolist()]
    if any(following >= noise for noise, following in pairwise(noises)):
        shown = ", ".join(f"{noise:.4g}" for noise in noises)
        raise FestinaError(f"the levels {shown} do not fall. The model does not reach so much noise; use another grid.")
    return tuple(noises)


def _count(steps: int) -> None:
    if steps < 1:
        raise FestinaError(f"a grid of {steps} steps was asked for. Use 1 or more.")
