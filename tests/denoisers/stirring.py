"""Noise on the weights of a tiny denoiser, so that parts that start at zero do not hide what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def stirred(model: Any) -> nn.Module:
    """Return the freshly built denoiser with 0.1 * normal noise added to every parameter, in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
