"""Noise levels of the families of models, and what a network's output says about the picture and the noise.

Every family writes a noisy sample as `x = alpha * x0 + sigma * noise`. Schedulers name a level by one number, called
`noise` here: sigma / alpha for variance-preserving models and EDM, sigma itself for flow models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from festina.errors import FestinaError

__all__ = ["PREDICTIONS", "Frame", "NoiseLevel", "shifted", "unshifted"]

PREDICTIONS = {
    "variance_preserving": ("epsilon", "sample", "v_prediction"),
    "flow": ("flow_prediction", "epsilon", "sample"),
    "edm": ("epsilon", "v_prediction"),
}
"""What a network of each family may predict, in the words of diffusers' `prediction_type`."""

_NEAR_NOISE = 1e-6
"""Share of the picture that a sample of pure noise is taken to have where a logarithm of it is needed."""


@dataclass(frozen=True)
class NoiseLevel:
    """A place on the noise axis.

    Attributes:
        alpha: factor of the picture, 0 (pure noise) to 1.
        sigma: factor of the unit noise, at least 0 (clean).
    """

    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """lambda = ln(alpha / sigma): grows as noise falls, infinite at the clean end.

        Pure noise (alpha 0) counts as alpha 1e-6, so that it can be a node of an interpolation.
        """
        return math.inf if self.sigma == 0 else math.log(max(self.alpha, _NEAR_NOISE) / self.sigma)

    @property
    def sigma_hat(self) -> float:
        """Noise per picture, sigma / alpha: the noise level of EDM (Karras et al. 2022). Infinite for pure noise."""
        return math.inf if self.alpha == 0 else self.sigma / self.alpha


def shifted(sigma: float, shift: float) -> float:
    """A flow model's noise level 0..1 after a shift: k s / (1 + (k - 1) s) (Stable Diffusion 3, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshifted(sigma: float, shift: float) -> float:
    """The level that `shifted` takes to `sigma`: s / (k - (k - 1) s)."""
    return sigma / (shift - (shift - 1) * sigma)


@dataclass(frozen=True)
class Frame:
    """How a model's noise levels, times and outputs are to be read.

    Attributes:
        family: "variance_preserving", "flow" or "edm".
        prediction: what the network predicts, one of `PREDICTIONS[family]`.
        train_steps: times of the training schedule.
        training_noise: sigma / alpha at the times 0, 1, ... of training; variance-preserving models only.
        sigma_data: standard deviation of the data; EDM only.
        initial_scale: standard deviation of the sample that a run starts from.
        smallest_noise: smallest level above clean; EDM only.

    Raises:
        FestinaError: a family or prediction that is not known.
    """

    family: str
    prediction: str
    train_steps: int = 1000
    training_noise: tuple[float, ...] = ()
    sigma_data: float = 0.5
    initial_scale: float = 1.0
    smallest_noise: float = 0.002

    def __post_init__(self) -> None:
        if self.family not in PREDICTIONS:
            raise FestinaError(f"no family of models is called {self.family!r}. Use one of {', '.join(PREDICTIONS)}.")
        if self.prediction not in PREDICTIONS[self.family]:
            known = ", ".join(PREDICTIONS[self.family])
            raise FestinaError(
                f"a network of the family {self.family} that predicts {self.prediction!r} is not known, only {known}. "
                "Set the scheduler's prediction_type to what the network was trained for."
            )

    @property
    def largest_noise(self) -> float:
        """The noisiest level, as schedulers count it: that of a run's first sample. 1 for flow models."""
        if self.family == "edm":
            # The first sample has the variance of unit data and of the largest noise.
            return math.sqrt(self.initial_scale**2 - 1)
        return 1.0 if self.family == "flow" else self.training_noise[-1]

    def level(self, noise: float) -> NoiseLevel:
        """The level that a scheduler calls `noise`.

        Raises:
            FestinaError: a negative level, or a flow model's above 1.
        """
        if not (noise >= 0 and (self.family != "flow" or noise <= 1)):
            raise FestinaError(
                f"{noise} is no noise level of the family {self.family}. Use a number from 0 (clean)"
                f"{' to 1 (pure noise)' if self.family == 'flow' else ' upwards'}."
            )
        if self.family == "flow":
            return NoiseLevel(1 - noise, noise)
        if self.family == "edm":
            return NoiseLevel(1.0, noise)
        scale = math.sqrt(1 + noise * noise)
        return NoiseLevel(1 / scale, noise / scale)

    def network_time(self, noise: float) -> float:
        """What the network is told at a level: a training time, fractional between two of them (never truncated).

        Variance-preserving: sigma / alpha is interpolated linearly between training times, as diffusers does from time
        to noise. Flow: sigma times the training steps. EDM: ln(noise) / 4 (Karras et al. 2022, table 1), for noise > 0.
        """
        return 0.25 * math.log(noise) if self.family == "edm" else self.diffusion_time(noise)

    def noise_at(self, network_time: float) -> float:
        """The level at which the network is told `network_time`; inverse of `network_time`."""
        if self.family == "edm":
            return math.exp(4 * network_time)
        return float(self.noise_along(np.array([network_time]))[0])

    def diffusion_time(self, noise: float) -> float:
        """The time in which the training schedule is even: a training time, EDM: the noise level itself.

        The clean end of a variance-preserving schedule is at -1: there the product of no alphas is 1.
        """
        if self.family == "edm":
            return noise
        if self.family == "flow":
            return noise * self.train_steps
        return float(np.interp(noise, self._extended(), np.arange(-1, len(self.training_noise))))

    def time_of(self, level: NoiseLevel) -> float:
        """The diffusion time of a level."""
        return self.diffusion_time(level.sigma_hat if self.family == "variance_preserving" else level.sigma)

    def noise_along(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels at diffusion times (any shape)."""
        if self.family == "edm":
            return times
        if self.family == "flow":
            return times / self.train_steps
        return np.interp(times, np.arange(-1, len(self.training_noise)), self._extended())

    def sigma_hat_along(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """sigma / alpha at diffusion times (any shape), flow models' pure noise left out."""
        noise = self.noise_along(times)
        return noise / (1 - noise) if self.family == "flow" else noise

    def input_scale(self, level: NoiseLevel) -> float:
        """Factor of the sample before the network sees it: c_in of EDM (Karras et al. 2022, table 1), otherwise 1."""
        return 1 / math.hypot(level.sigma, self.sigma_data) if self.family == "edm" else 1.0

    def output_weights(self, level: NoiseLevel) -> tuple[float, float]:
        """The raw output as `first * x0 + second * noise`."""
        if self.prediction == "flow_prediction":
            return -1.0, 1.0
        if self.family == "edm":
            skip, out = self._edm_weights(level.sigma)
            return (1 - skip) / out, -skip * level.sigma / out
        if self.prediction == "v_prediction":
            return -level.sigma, level.alpha
        return (0.0, 1.0) if self.prediction == "epsilon" else (1.0, 0.0)

    def predictions(
        self, output: torch.Tensor, sample: torch.Tensor, level: NoiseLevel
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, noise) from a network's raw output for a sample, all of one shape.

        v = alpha * noise - sigma * x0 (Salimans & Ho 2022, section 4); a flow's velocity is noise - x0
        (Liu et al. 2022).
        Never divides by alpha but for the prediction epsilon, nor by sigma but for the prediction sample and EDM.

        Raises:
            FestinaError: a network that predicts epsilon was given pure noise (alpha 0), of which no picture follows.
        """
        if self.family == "edm":
            skip, out = self._edm_weights(level.sigma)
            picture = skip * sample + out * output
            return picture, (sample - picture) / level.sigma
        if self.prediction == "epsilon":
            if level.alpha == 0:
                raise FestinaError(
                    "a network that predicts epsilon says nothing about the picture in pure noise. Begin at a level "
                    "below 1, e.g. 0.999."
                )
            return (sample - level.sigma * output) / level.alpha, output
        if self.prediction == "sample":
            return output, (sample - level.alpha * output) / level.sigma
        if self.prediction == "v_prediction":
            return level.alpha * sample - level.sigma * output, level.sigma * sample + level.alpha * output
        return sample - level.sigma * output, sample + level.alpha * output

    def _edm_weights(self, sigma: float) -> tuple[float, float]:
        """(c_skip, c_out) of Karras et al. 2022, table 1; diffusers' v_prediction turns the sign of c_out."""
        spread = math.hypot(sigma, self.sigma_data)
        out = sigma * self.sigma_data / spread
        return (self.sigma_data / spread) ** 2, -out if self.prediction == "v_prediction" else out

    def _extended(self) -> tuple[float, ...]:
        return (0.0, *self.training_noise)


def training_noise_of(scheduler: Any) -> tuple[float, ...]:
    """sigma / alpha at every training time of a variance-preserving scheduler of diffusers.

    Zero terminal signal counts as a share of 2**-24 of the variance, the value diffusers' multistep schedulers take.
    """
    kept = np.maximum(scheduler.alphas_cumprod.double().cpu().numpy(), 2.0**-24)
    return tuple(np.sqrt((1 - kept) / kept).tolist())
