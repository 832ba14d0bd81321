"""Training a denoiser of any family on the latents of the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from festina.zoo.family import Conditions, Family
from festina.zoo.stages import Schedule, Stage, fit


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Matrix products in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


@torch.no_grad()
def conditions_of(family: Family, encoders: nn.ModuleDict, captions: Sequence[str]) -> Conditions:
    """What the denoiser is told of all captions, encoded once; floats in half precision to save memory."""
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(captions), 512):
        for name, value in family.conditions(encoders, captions[start : start + 512]).items():
            parts.setdefault(name, []).append(value.half().cpu() if value.is_floating_point() else value.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def latent_scaling(latents: Tensor) -> float:
    """The factor that gives latents unit variance, as the autoencoder's `scaling_factor`."""
    return 1 / latents[:4096].float().std().item()


def train_denoiser(
    family: Family,
    model: nn.Module,
    schedule: Schedule,
    latents: Tensor,
    conditions: Conditions,
    folder: Path,
    device: torch.device,
    caption_dropout: float,
    ema_decay: float,
    compiled: bool,
) -> nn.Module:
    """Train a family's denoiser.

    Args:
        family: what is trained.
        model: its denoiser, to begin with.
        schedule: how it is optimised.
        latents: of the training pictures, unit variance, (count, ...).
        conditions: of their captions, and behind them of the empty caption: (count + 1, ...).
        folder: where checkpoint and log live.
        device: where to train.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        ema_decay: decay of the moving average of the weights.
        compiled: run the denoiser through `torch.compile`.

    Returns:
        the moving average.
    """
    model, average = model.to(device), family.denoiser().to(device)
    average.load_state_dict(model.state_dict())
    run = torch.compile(model) if compiled else model

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        noisy, wanted, times = family.corrupt(latents[indices].float(), generator)
        dropped = torch.rand(len(indices), generator=generator) < caption_dropout
        rows = torch.where(dropped, len(latents), indices)
        told = {name: value[rows].to(device) for name, value in conditions.items()}
        told = {name: value.float() if value.is_floating_point() else value for name, value in told.items()}
        with autocast(device):
            predicted = family.predict(run, noisy.to(device), times.to(device), told)
        errors = functional.mse_loss(predicted.float(), wanted.to(device), reduction="none").flatten(1).mean(1)
        return (errors * family.weights(times).to(device)).mean(), {}

    stage, following = Stage(folder, "denoiser"), moving_average(average, model, ema_decay)
    fit(stage, schedule, {"model": model}, len(latents), loss_of, {"average": average}, following)
    return average.eval()


def moving_average(average: nn.Module, model: nn.Module, ema_decay: float) -> Callable[[int], None]:
    """What moves the weights of `average` towards those of `model`, told the number of steps done; a mean over all of
    them at first, which then forgets at `ema_decay`."""

    def move(done: int) -> None:
        decay = min(ema_decay, done / (done + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)

    return move
