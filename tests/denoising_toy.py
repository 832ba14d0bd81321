"""A pipeline that draws points of a two-dimensional mixture exactly, and an exact reader of noise levels, for the tests
of Denoising MCMC."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler
from torch import nn

from festina.samplers import PlanScheduler

CENTRES = torch.tensor([[-1.6, 0.2], [1.2, 0.6]], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)
SPREAD = 0.5
MEAN = SHARES @ CENTRES
COVARIANCE = SPREAD**2 * torch.eye(2) + (CENTRES - MEAN).T @ torch.diag(SHARES) @ (CENTRES - MEAN)


def mode_logits(samples, sigmas):
    """Log of share times density of each mode at samples (batch, 2) with noise sigmas (batch,) or of every level."""
    variance = SPREAD**2 + sigmas.square()
    away = (samples[..., None, :] - CENTRES).square().sum(-1)
    return SHARES.log() - away / (2 * variance[..., None]) - variance[..., None].log()


def clean(samples, sigmas):
    """The mean of the clean point given a noisy one: both (batch, 2)."""
    weights = mode_logits(samples, sigmas).softmax(-1)
    kept = (SPREAD**2 / (SPREAD**2 + sigmas.square()))[:, None, None]
    return (weights[..., None] * (CENTRES + kept * (samples[:, None] - CENTRES))).sum(1)


def flat_clean(samples, sigmas):
    """`clean` for samples of the shape of pictures, (batch, 2, 1, 1)."""
    return clean(samples[:, :, 0, 0], sigmas)[:, :, None, None]


class ToyUNet(nn.Module):
    """Predicts the noise exactly, in double precision; keeps what it was called with in `calls`: points and sigmas."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, frame):
        super().__init__()
        self.config = SimpleNamespace(in_channels=2, out_channels=2, sample_size=1, num_class_embeds=None)
        self.frame, self.calls = frame, []

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        sigmas = torch.from_numpy(self.frame.noise_along(timestep.double().numpy()))
        noisy = sample[:, :, 0, 0] * (1 + sigmas.square()).sqrt()[:, None]
        self.calls.append((noisy, sigmas))
        return ((noisy - clean(noisy, sigmas)) / sigmas[:, None])[:, :, None, None], None


class ExactReader:
    """What each noise level is worth to a noisy point, levels being equally likely."""

    shape = (2, 1, 1)

    def __init__(self, lowest=0.3, highest=6.0, levels=30):
        self.sigmas = torch.linspace(math.log(lowest), math.log(highest), levels, dtype=torch.float64).exp()

    def __call__(self, samples):
        flat = samples[:, None, :, 0, 0].expand(-1, len(self.sigmas), -1)
        return mode_logits(flat, self.sigmas).logsumexp(-1)


def toy_pipe():
    scheduler = DDIMScheduler(clip_sample=False, beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return SimpleNamespace(unet=ToyUNet(PlanScheduler.from_scheduler(scheduler).frame), scheduler=scheduler)
