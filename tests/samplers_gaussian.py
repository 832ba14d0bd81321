"""Gaussian and mixed toys in all three families, and their probability flow integrated finely."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import diffusers
import torch
from samplers_toy import flow, vp

from festina.samplers import Frame, NoiseLevel, PlanScheduler
from festina.samplers.teleportation import GaussianStatistics

Picture = Callable[[torch.Tensor, NoiseLevel], torch.Tensor]
"""The mean of the picture given a noisy sample, (batch, dimensions)."""


def edm(**settings: object) -> PlanScheduler:
    """A scheduler of an EDM model."""
    return PlanScheduler.from_scheduler(diffusers.EDMEulerScheduler(), **settings)


FAMILIES = {"variance_preserving": vp, "flow": flow, "edm": edm}


def first_sample(frame: Frame, seed: int = 0, samples: int = 16, dimensions: int = 6) -> torch.Tensor:
    """Pure noise as a pipeline makes it, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return frame.initial_scale * torch.randn(samples, dimensions, generator=generator, dtype=torch.float64)


def gaussian(rank: int = 3, dimensions: int = 6) -> GaussianStatistics:
    """A Gaussian of different variances along slanted directions, in float64."""
    generator = torch.Generator().manual_seed(7)
    slanted = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(slanted).Q.T[:rank].contiguous()
    mean = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    variances = torch.tensor([2.0, 0.7, 0.1], dtype=torch.float64)[:rank]
    return GaussianStatistics(mean, directions, variances, (dimensions,), 100)


def covariance_of(statistics: GaussianStatistics) -> torch.Tensor:
    """The whole matrix, (dimensions, dimensions)."""
    return statistics.directions.T @ torch.diag(statistics.variances) @ statistics.directions


def gaussian_picture(statistics: GaussianStatistics) -> Picture:
    """The mean of a Gaussian's picture given a noisy sample: a linear regression with whole matrices."""
    covariance = covariance_of(statistics)

    def picture(sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        noisy = level.alpha**2 * covariance + level.sigma**2 * torch.eye(len(covariance)).double()
        away = sample - level.alpha * statistics.mean
        return statistics.mean + level.alpha * torch.linalg.solve(noisy, away.T).T @ covariance

    return picture


def integrated(sample: torch.Tensor, frame: Frame, picture: Picture, last: float, steps: int = 400) -> torch.Tensor:
    """The probability flow from the model's largest level to another by Runge-Kutta steps of order 4, in float64."""

    def slope(x: torch.Tensor, noise: float) -> torch.Tensor:
        level = frame.level(noise)
        clean = picture(x, level)
        dirt = (x - level.alpha * clean) / level.sigma
        if frame.family == "edm":
            return dirt
        if frame.family == "flow":
            return dirt - clean
        return (dirt - noise * clean) * (1 + noise**2) ** -1.5

    first = frame.largest_noise
    noises = [first * (last / first) ** (place / steps) for place in range(steps + 1)]
    for here, there in pairwise(noises):
        h, middle = there - here, (here + there) / 2
        one = slope(sample, here)
        two = slope(sample + h / 2 * one, middle)
        three = slope(sample + h / 2 * two, middle)
        sample = sample + h / 6 * (one + 2 * two + 2 * three + slope(sample + h * three, there))
    return sample
