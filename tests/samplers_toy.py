"""Toy problems of the samplers' tests: networks that know the score of a Gaussian or of a mixture exactly."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from festina.samplers import NoiseLevel, PlanScheduler, SolverStep, SolverTable

CENTRES = torch.tensor([[1.5, -0.5, 0.3], [-1.0, 0.8, 0.6], [0.2, 1.4, -1.2]], dtype=torch.float64)
SPREAD = 0.35
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLUX = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.4, "max_image_seq_len": 5000}


def noise(seed: int = 0, samples: int = 8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Unit noise, (samples, 3)."""
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def picture(sample: torch.Tensor, level: NoiseLevel, centres: torch.Tensor = CENTRES) -> torch.Tensor:
    """The mean of x0 given a noisy sample: equally likely Gaussians of deviation SPREAD around the centres."""
    x = sample.double()
    variance = (level.alpha * SPREAD) ** 2 + level.sigma**2
    away = x[:, None] - level.alpha * centres
    shares = torch.softmax(-(away**2).sum(-1) / (2 * variance), dim=1)
    means = centres + level.alpha * SPREAD**2 / variance * away
    return (shares[..., None] * means).sum(1)


def output(sample: torch.Tensor, level: NoiseLevel, prediction: str, centres: torch.Tensor = CENTRES) -> torch.Tensor:
    """What an exact network of a prediction type says, in the sample's dtype."""
    clean = picture(sample, level, centres)
    dirt = (sample.double() - level.alpha * clean) / level.sigma
    said = {
        "epsilon": dirt,
        "sample": clean,
        "v_prediction": level.alpha * dirt - level.sigma * clean,
        "flow_prediction": dirt - clean,
    }
    return said[prediction].to(sample.dtype)


def run(
    scheduler: Any, levels: list[NoiseLevel], sample: torch.Tensor, prediction: str, centres: torch.Tensor = CENTRES
) -> torch.Tensor:
    """The last sample of a scheduler whose timesteps lie at these levels."""
    for timestep, level in zip(scheduler.timesteps, levels, strict=True):
        said = output(sample, level, prediction, centres)
        sample = scheduler.step(said, timestep, sample, return_dict=False)[0]
    return sample


def levels_of(scheduler: Any) -> list[NoiseLevel]:
    """Levels of the network calls of a `PlanScheduler` after set_timesteps."""
    return [scheduler.frame.level(float(value)) for value in scheduler.sigmas[:-1].double()]


def gaussian_end(start: torch.Tensor, first: NoiseLevel, last: NoiseLevel) -> torch.Tensor:
    """Exact end of the probability flow from a sample at `first`, for the one Gaussian around CENTRES[0]."""
    ratio = ((last.sigma_hat**2 + SPREAD**2) / (first.sigma_hat**2 + SPREAD**2)) ** 0.5
    return last.alpha * (CENTRES[0] + ratio * (start.double() / first.alpha - CENTRES[0]))


def vp(**settings: Any) -> PlanScheduler:
    """A scheduler of a variance-preserving model that predicts noise."""
    return PlanScheduler.from_scheduler(diffusers.DPMSolverMultistepScheduler(**BETAS), **settings)


def flow(**settings: Any) -> PlanScheduler:
    """A scheduler of a flow model with a fixed shift of 3."""
    return PlanScheduler.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **settings)


def table(*noises: float, **settings: Any) -> SolverTable:
    """A table at these levels, whose steps have the settings."""
    return SolverTable(tuple(SolverStep(value, **settings) for value in noises))
