"""Denoising MCMC by Langevin-Gibbs steps, DLG (Kim & Ye, arXiv 2209.14593): samples from a Markov chain, denoised.

A chain walks over pairs of a noisy sample and its noise level. A step is one of Langevin's for the sample and one of
Gibbs' for the level, which a classifier reads off the sample. Noisy samples are far from each other by a few steps
only, and a sample of little noise needs few calls to be clean: so a picture costs a short walk and a short
integration instead of the whole way down from pure noise. The chain owns its loop; it is no scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.samplers.karras import KarrasIntegrator, unit_noise
from festina.samplers.row_denoiser import RowDenoiser, beside

__all__ = ["DenoisingChains", "LangevinGibbs", "NoiseReader"]

_SLACK = 1.002
"""How far a classifier's levels may lie outside the model's, as a factor: levels are rounded when they are written."""


class NoiseReader(Protocol):
    """What tells the noise of samples of a `shape` (channels, height, width), as `NoiseClassifier` does: logits
    (batch, levels) over the levels `sigmas` (levels,), which rise."""

    sigmas: Tensor

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __call__(self, samples: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LangevinGibbs:
    """How chains walk and how their states are denoised. The defaults are those of the paper's released code for
    CIFAR-10, whose pictures have values from 0 to 1; step sizes are in units of the samples squared.

    Attributes:
        step_size: eta, above 0: a step moves a sample by eta / 2 times the score and by noise of variance eta, whatever
            its level.
        skip: steps between two pictures of a chain, at least 1.
        chains: how many walk side by side, at least 1; one network call serves all.
        greedy: whether a Gibbs step takes the likeliest level, as the paper's code does, or draws one.
        integrator: what denoises a state, from the state's own level.
        start: what makes the chains' first samples out of pure noise.
        start_noise: deviation of the noise added to these, at least 0.
        start_steps, start_step_size: steps taken from there, at a size of their own.
        warm_up: further steps at `step_size`, before the first picture.

    Raises:
        FestinaError: a number out of its range.
    """

    step_size: float = 0.8
    skip: int = 10
    chains: int = 200
    greedy: bool = True
    integrator: KarrasIntegrator = field(default_factory=lambda: KarrasIntegrator(nodes=20))
    start: KarrasIntegrator = field(default_factory=lambda: KarrasIntegrator(nodes=20, churn=80.0))
    start_noise: float = 0.5
    start_steps: int = 10
    start_step_size: float = 0.5
    warm_up: int = 10

    def __post_init__(self) -> None:
        if not (self.step_size > 0 and self.start_step_size > 0):
            raise FestinaError(
                f"step sizes of {self.step_size:g} and {self.start_step_size:g} do not walk. Use numbers above 0."
            )
        if min(self.skip, self.chains) < 1 or min(self.start_steps, self.warm_up) < 0 or self.start_noise < 0:
            raise FestinaError(
                f"skip {self.skip}, chains {self.chains}, start_steps {self.start_steps}, warm_up {self.warm_up} and "
                f"start_noise {self.start_noise:g}: the first two are 1 or more, the others 0 or more."
            )

    @property
    def calls(self) -> int:
        """Network calls per picture, without the start."""
        return self.skip + self.integrator.calls

    @property
    def start_calls(self) -> int:
        """Network calls per chain before its first picture."""
        return self.start.calls + self.start_steps + self.warm_up


class DenoisingChains:
    """Markov chains of an unconditional pipeline that give pictures.

    Pictures of one chain follow each other and are alike for a while; those of different chains are independent. The
    pipeline's scheduler is only read.

    Args:
        pipe: see `RowDenoiser`.
        classifier: tells the noise level of the pipeline's noisy samples; it must be on the pipeline's device.
        settings: see `LangevinGibbs`.
        generator: of all that is drawn; on any device.

    Attributes:
        denoiser: the network; `denoiser.rows` counts its calls, one for each sample.
        samples, sigmas: state of the chains, (chains, channels, height, width) and (chains,); None before the start.

    Raises:
        FestinaError: a pipeline that is conditional or has another kind of scheduler, or a classifier of samples of
            another shape or of levels that the model does not have.
    """

    def __init__(self, pipe: Any, classifier: NoiseReader, settings: LangevinGibbs, generator: torch.Generator) -> None:
        self.denoiser = RowDenoiser(pipe)
        self.classifier, self.settings, self.generator = classifier, settings, generator
        self.samples: Tensor | None = None
        self.sigmas: Tensor | None = None
        self._check_classifier()

    def draw(self, count: int) -> Tensor:
        """The next pictures of the chains, which are started first if they were not.

        Args:
            count: a multiple of the number of chains.

        Returns:
            clean samples (count, channels, height, width) in the units of the network, unclipped; those of one chain
            are `chains` apart.

        Raises:
            FestinaError: another count, or a chain ran away.
        """
        chains = self.settings.chains
        if count < 1 or count % chains:
            raise FestinaError(f"{count} pictures of {chains} chains: give a multiple of {chains}, or other chains.")
        if self.samples is None:
            self._start()
        return torch.cat([self._next() for _ in range(count // chains)])

    def read(self, samples: Tensor) -> Tensor:
        """The Gibbs step: a noise level of each sample, (batch,) in float64."""
        logits = self.classifier(samples)
        if self.settings.greedy:
            chosen = logits.argmax(1)
        else:
            shares = logits.double().softmax(1).to(self.generator.device)
            chosen = torch.multinomial(shares, 1, generator=self.generator)[:, 0].to(logits.device)
        return self.classifier.sigmas.double()[chosen]

    def walk(self, samples: Tensor, sigmas: Tensor, step_size: float) -> tuple[Tensor, Tensor]:
        """One Langevin step of samples at their levels, and one Gibbs step: (samples, sigmas)."""
        noise = unit_noise(samples.shape, samples, self.generator)
        moved = samples + step_size / 2 * self.denoiser.score(samples, sigmas) + step_size**0.5 * noise
        return moved, self.read(moved)

    @torch.no_grad()
    def _start(self) -> None:
        """Bring the chains from pure noise to where they walk."""
        settings, highest = self.settings, self.classifier.sigmas.double()[-1]
        like = torch.empty(0, dtype=self.denoiser.dtype, device=self.denoiser.unet.device)
        shape = (settings.chains, *self.denoiser.shape)
        samples = float(highest) * unit_noise(shape, like, self.generator)
        samples = settings.start(self.denoiser, samples, highest.expand(settings.chains), self.generator)
        samples = samples + settings.start_noise * unit_noise(shape, like, self.generator)
        sigmas = self.read(samples)
        for step in range(settings.start_steps + settings.warm_up):
            size = settings.start_step_size if step < settings.start_steps else settings.step_size
            samples, sigmas = self.walk(samples, sigmas, size)
        self.samples, self.sigmas = samples, sigmas

    @torch.no_grad()
    def _next(self) -> Tensor:
        """Walk on, and denoise the state of least noise that each chain was in on the way."""
        assert self.samples is not None
        assert self.sigmas is not None
        samples, sigmas = self.samples, self.sigmas
        best, least = samples, torch.full_like(sigmas, torch.inf)
        for _ in range(self.settings.skip):
            samples, sigmas = self.walk(samples, sigmas, self.settings.step_size)
            better = sigmas < least
            best = torch.where(beside(better, samples).bool(), samples, best)
            least = torch.where(better, sigmas, least)
        self.samples, self.sigmas = samples, sigmas
        clean = self.settings.integrator(self.denoiser, best, least, self.generator)
        if not clean.isfinite().all():
            raise FestinaError(
                f"a chain ran away to numbers that are not finite. A step size of {self.settings.step_size:g} is too "
                "much for this model; use a smaller one."
            )
        return clean

    def _check_classifier(self) -> None:
        """Raise a FestinaError unless the classifier is one for this pipeline."""
        known, denoiser = self.classifier.sigmas, self.denoiser
        lowest, highest = float(known[0]), float(known[-1])
        if lowest * _SLACK < denoiser.lowest or highest > denoiser.highest * _SLACK:
            raise FestinaError(
                f"the classifier tells levels from {lowest:g} to {highest:g} apart, but the model knows only those "
                f"from {denoiser.lowest:g} to {denoiser.highest:g}. Use a classifier made for this model."
            )
        if self.classifier.shape != denoiser.shape:
            raise FestinaError(
                f"the classifier reads samples of the shape {self.classifier.shape}, the model's have {denoiser.shape} "
                "(channels, height, width). Use a classifier made for this model."
            )
