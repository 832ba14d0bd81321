"""A pipeline's network as a denoiser of samples that each have a noise level of their own."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.samplers.frames import Frame
from festina.samplers.scheduler import PlanScheduler

__all__ = ["RowDenoiser", "beside"]


class RowDenoiser:
    """What an unconditional pipeline's network says about samples y = x / alpha = x0 + sigma * noise.

    Here sigma is noise per picture, sigma / alpha of the model, so that every family of models looks like one whose
    noise grows and whose picture stays (EDM, Karras et al., arXiv 2206.00364; VE, arXiv 2011.13456).

    Args:
        pipe: a diffusers pipeline with a `unet` that is called with samples and times alone, such as a `DDIMPipeline`,
            and a scheduler whose place a `PlanScheduler` can take.

    Attributes:
        frame: how the model's levels are read.
        lowest, highest: smallest sigma that the model knows, and largest; infinite for flow models.
        rows: samples that the network was given so far.

    Raises:
        FestinaError: the pipeline has no such network or scheduler.
    """

    def __init__(self, pipe: Any) -> None:
        self.unet = _unconditional_unet(pipe)
        self.frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
        self.lowest, self.highest = _range_of(self.frame)
        self.rows = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a sample."""
        config = self.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        """Of samples: that of the network, but at least single precision."""
        return torch.promote_types(self.unet.dtype, torch.float32)

    @torch.no_grad()
    def __call__(self, samples: Tensor, sigmas: Tensor) -> Tensor:
        """The mean of the clean sample given each noisy one (Tweedie's formula): one network call for all rows.

        Args:
            samples: y, (batch, channels, height, width).
            sigmas: (batch,) above 0.

        Returns:
            of the samples' shape and dtype.
        """
        different, which = torch.unique(sigmas.double().cpu(), return_inverse=True)
        rows = torch.tensor([self._row(sigma) for sigma in different.tolist()], dtype=torch.float64)[which]
        scale, ours, said = (beside(column, samples) for column in rows[:, :3].unbind(1))
        times = rows[:, 3].to(samples.device, torch.float32)
        output = self.unet((scale * samples).to(self.unet.dtype), times, return_dict=False)[0]
        self.rows += len(samples)
        said_of: Tensor = ours * samples + said * output.to(samples.dtype)
        return said_of

    def score(self, samples: Tensor, sigmas: Tensor) -> Tensor:
        """The gradient of log p(y; sigma) with regard to y: (E[x0 | y] - y) / sigma^2."""
        return (self(samples, sigmas) - samples) / beside(sigmas, samples).square()

    def _row(self, sigma: float) -> tuple[float, float, float, float]:
        """Factor of y at the network's input, factors of y and of the raw output in x0, and the network's time."""
        frame = self.frame
        noise = sigma / (1 + sigma) if frame.family == "flow" else sigma
        level = frame.level(noise)
        picture, dirt = frame.output_weights(level)
        # output = picture * x0 + dirt * noise and alpha * y = alpha * x0 + sigma * noise, solved for x0.
        divisor = level.sigma * picture - dirt * level.alpha
        time = frame.network_time(noise) if frame.family == "edm" else max(0.0, frame.network_time(noise))
        scale = level.alpha * frame.input_scale(level)
        return scale, -dirt * level.alpha / divisor, level.sigma / divisor, time


def beside(values: Tensor, samples: Tensor) -> Tensor:
    """One number per row, ready to be multiplied with samples."""
    return values.to(samples).view(-1, *(1,) * (samples.ndim - 1))


def _range_of(frame: Frame) -> tuple[float, float]:
    """Smallest and largest noise per picture of a model."""
    smallest = {"edm": frame.smallest_noise, "flow": 1 / frame.train_steps}
    lowest = smallest[frame.family] if frame.family in smallest else frame.training_noise[0]
    return lowest, frame.level(frame.largest_noise).sigma_hat


def _unconditional_unet(pipe: Any) -> Any:
    """The pipeline's network.

    Raises:
        FestinaError: there is none, or it wants to be told more than the time, or says more than a prediction.
    """
    name, unet = type(pipe).__name__, getattr(pipe, "unet", None)
    if unet is None:
        raise FestinaError(f"{name} has no unet. Use an unconditional pipeline such as DDIMPipeline.")
    more = list(inspect.signature(unet.forward).parameters.values())[2:]
    wanted = [one.name for one in more if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if getattr(unet.config, "num_class_embeds", None) is not None:
        wanted.append("class_labels")
    if wanted:
        raise FestinaError(
            f"the network of {name} wants {', '.join(wanted)}: it is conditional. Use an unconditional pipeline such "
            "as DDIMPipeline; one Markov chain serves one condition."
        )
    if unet.config.out_channels != unet.config.in_channels:
        raise FestinaError(
            f"the network of {name} gives {unet.config.out_channels} channels for {unet.config.in_channels}. Use one "
            "that predicts the noise, the picture or v, and no variance."
        )
    return unet
