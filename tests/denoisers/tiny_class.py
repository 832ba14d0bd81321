"""What a fixture of a denoiser class is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class TinyClass:
    """A tiny denoiser of one diffusers class.

    Attributes:
        build: makes it (random weights, float32; the caller seeds torch and calls eval()).
        inputs: keyword arguments of one forward call, made after torch.manual_seed by the caller; batch of 2 rows.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
