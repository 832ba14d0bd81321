"""A small network that tells how noisy a sample is: the Gibbs half of Denoising MCMC (Kim & Ye, arXiv 2209.14593)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from festina.errors import FestinaError
from festina.strict import read_json

_CONFIG, _WEIGHTS = "config.json", "noise_classifier.safetensors"


class NoiseClassifier(nn.Module):
    """Guesses the noise level sigma of samples y = x + sigma * z, x a clean sample and z unit noise.

    Four blocks of convolution, rectifier and average pooling and one linear layer, trained by cross-entropy over
    levels at even steps of the logarithm (the paper's released code: 1000 levels from 0.01 to 50, width 32). Unlike
    there, a sample enters as asinh(d / lowest level), d being each pixel's difference from the mean of those around it:
    without the picture's even parts, and with inputs of one size for the loudest and the faintest noise.

    Args:
        channels: of a sample.
        size: height and width of a sample, a multiple of 16.
        lowest, highest: first and last level, sigma in units of the samples, 0 < lowest < highest.
        levels: how many, at least 2.
        width: channels of the first block; each next one has twice as many.

    Attributes:
        sigmas: the levels, float64 (levels,), rising.

    Raises:
        FestinaError: a size, range or number of levels that cannot be.
    """

    sigmas: Tensor

    def __init__(
        self, channels: int, size: int, lowest: float, highest: float, levels: int = 1000, width: int = 32
    ) -> None:
        super().__init__()
        if not 0 < lowest < highest < math.inf or levels < 2:
            raise FestinaError(
                f"{levels} noise levels from {lowest:g} to {highest:g} cannot be told apart. Give 2 or more levels, "
                "from a number above 0 to a larger one."
            )
        if size < 16 or size % 16:
            raise FestinaError(f"a noise classifier halves its samples four times; a size of {size} does not allow it.")
        self.config: dict[str, float] = {
            "channels": channels,
            "size": size,
            "lowest": lowest,
            "highest": highest,
            "levels": levels,
            "width": width,
        }
        widths = [width * 2**block for block in range(4)]
        blocks: list[nn.Module] = []
        for before, after in zip([channels, *widths], widths, strict=False):
            blocks += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        self.trunk = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(widths[-1] * (size // 16) ** 2, levels)
        ladder = torch.linspace(math.log(lowest), math.log(highest), levels, dtype=torch.float64).exp()
        self.register_buffer("sigmas", ladder, persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Logits (batch, levels) of samples (batch, channels, size, size)."""
        around = functional.avg_pool2d(samples, 3, stride=1, padding=1, count_include_pad=False)
        squeezed = torch.asinh((samples - around) / self.config["lowest"])
        logits: Tensor = self.head(self.trunk(squeezed.to(self.head.weight.dtype)))
        return logits

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a sample."""
        return int(self.config["channels"]), int(self.config["size"]), int(self.config["size"])

    def save(self, folder: Path) -> None:
        """Write `config.json` and the weights, in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(json.dumps(self.config, indent=2) + "\n")
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, folder / _WEIGHTS)


def load_noise_classifier(folder: Path, device: str | torch.device = "cpu") -> NoiseClassifier:
    """The noise classifier that `NoiseClassifier.save` wrote to a folder, in single precision.

    Raises:
        FestinaError: the folder holds none, or one that cannot be read.
    """
    config, weights = folder / _CONFIG, folder / _WEIGHTS
    if not config.is_file() or not weights.is_file():
        raise FestinaError(f"no noise classifier in {folder}: wanted {_CONFIG} and {_WEIGHTS}.")
    found = read_json(config.read_text(encoding="utf-8"), f"the noise classifier {config}")
    try:
        classifier = NoiseClassifier(**found)
        classifier.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    except (TypeError, RuntimeError) as error:
        raise FestinaError(f"{folder} holds no noise classifier: {str(error).splitlines()[0]}") from None
    return classifier.to(device).eval()
