"""What a fixture of a denoiser class is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def with_noise(model: Model) -> Model:
    """Add noise to every parameter in place, so that gates and projections which start at zero hide nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@dataclass(frozen=True)
class TinyClass:
    """A tiny denoiser of one diffusers class.

    Attributes:
        fresh: makes it as the class itself does, with parameters that start at zero.
        inputs: keyword arguments of one forward call, made after torch.manual_seed by the caller; batch of 2 rows.
    """

    fresh: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]

    def build(self) -> nn.Module:
        """The denoiser with noise on its parameters (float32; the caller seeds torch and calls eval())."""
        return with_noise(self.fresh())
