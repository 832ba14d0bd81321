"""The integrators of Karras et al. (arXiv 2206.00364), from a noise level of each sample's own to a clean sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.samplers.row_denoiser import beside

__all__ = ["KarrasIntegrator", "unit_noise"]

_STEEPEST_CHURN = math.sqrt(2) - 1

Denoise = Callable[[Tensor, Tensor], Tensor]
"""From samples y (batch, ...) and their sigmas (batch,) to the mean of the clean sample given each."""


@dataclass(frozen=True)
class KarrasIntegrator:
    """Heun's method for dy/dsigma = (y - E[x0 | y]) / sigma, with noise added in between or without.

    Without churn it is algorithm 1 of the paper, KAR1 in Denoising MCMC's words; with churn algorithm 2, KAR2, for
    which Denoising MCMC's released code takes churn 80 and the other values that stand here. From the last node a step
    of Euler's to zero, which is Tweedie's formula, ends the run.

    Attributes:
        nodes: levels at which a step begins, at least 1.
        churn: S_churn, at least 0; each step raises the noise by the share min(churn / nodes, sqrt(2) - 1) first.
        churn_from, churn_to: S_tmin and S_tmax, the levels between which it does so.
        churn_noise: S_noise, deviation of the noise added.
        last: level of the last node, above 0; a sample that begins below it has all of its nodes where it begins.
        rho: above 0; nodes are even in sigma ** (1 / rho).

    Raises:
        FestinaError: a number out of its range.
    """

    nodes: int
    churn: float = 0.0
    churn_from: float = 0.05
    churn_to: float = 1.0
    churn_noise: float = 1.007
    last: float = 0.01
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.churn < 0 or not self.last > 0 or not self.rho > 0:
            raise FestinaError(
                f"no integrator has {self.nodes} nodes, churn {self.churn:g}, its last level at {self.last:g} and rho "
                f"{self.rho:g}. Use 1 or more nodes, a churn of 0 or more, and numbers above 0 for the others."
            )

    @property
    def calls(self) -> int:
        """Network calls of a run: two per step and one for the last."""
        return 2 * self.nodes - 1

    def levels(self, sigmas: Tensor) -> Tensor:
        """The nodes of samples that begin at `sigmas` (batch,): (nodes, batch), falling (equation 5)."""
        ends = torch.minimum(sigmas, torch.full_like(sigmas, self.last))
        through = torch.linspace(0, 1, self.nodes, dtype=sigmas.dtype, device=sigmas.device)[:, None]
        first, last = sigmas ** (1 / self.rho), ends ** (1 / self.rho)
        return (first + through * (last - first)) ** self.rho

    def __call__(self, denoise: Denoise, samples: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
        """Clean samples.

        Args:
            denoise: the network, as `RowDenoiser` is.
            samples: y (batch, ...).
            sigmas: noise of each, (batch,), above 0.
            generator: of the noise; nothing is drawn without churn.

        Returns:
            of the samples' shape and dtype.
        """
        levels = self.levels(sigmas)
        for node, level in enumerate(levels):
            samples, begins = self._churned(samples, level, generator)
            clean = denoise(samples, begins)
            if node == self.nodes - 1:
                return clean
            slope = (samples - clean) / beside(begins, samples)
            ends = levels[node + 1]
            length = beside(ends - begins, samples)
            reached = samples + length * slope
            there = (reached - denoise(reached, ends)) / beside(ends, samples)
            samples = samples + length * (slope + there) / 2
        raise AssertionError("an integrator has a node")

    def _churned(self, samples: Tensor, level: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples with their noise raised where a level asks for it, and their levels then."""
        if self.churn == 0:
            return samples, level
        share = min(self.churn / self.nodes, _STEEPEST_CHURN)
        within = (level >= self.churn_from) & (level <= self.churn_to)
        raised = torch.where(within, level * (1 + share), level)
        added = (raised.square() - level.square()).sqrt() * self.churn_noise
        return samples + beside(added, samples) * unit_noise(samples.shape, samples, generator), raised


def unit_noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of a shape, drawn where the generator lives and brought to the device and dtype of a tensor."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
