"""Parts that the tiny image pipelines share: prompts, pictures, seeded weights and the autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from denoisers.tiny_class import with_noise
from diffusers import AutoencoderKL
from torch import nn

HEIGHT, WIDTH = 8, 16
"""The smallest picture that most pipelines take; the sides differ so that mixing them up is noticed."""

NEGATIVE = "blue circle"

PROMPTS = (
    "a small red circle left of a large blue square on a white background",
    "a large green triangle above a small yellow circle on a black background",
    "a blue square on a white background",
    "a small yellow triangle right of a red square on a black background",
)


def prompts(batch: int) -> list[str]:
    """As many prompts as asked for; neighbours differ in words and in length."""
    return [PROMPTS[row % len(PROMPTS)] for row in range(batch)]


def run(steps: int, **others: Any) -> dict[str, Any]:
    """Arguments of any run: the number of steps, fixed noise, and those of the family."""
    return {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), **others}


def pictures(batch: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Pictures of noise between 0 and 1, another one in every row."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def images_of(result: Any) -> torch.Tensor:
    """The latents or pictures of a pipeline's result."""
    images = result.images
    return images.float() if isinstance(images, torch.Tensor) else torch.from_numpy(images).float()


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `build` makes, always with the same weights, in eval mode."""
    torch.manual_seed(seed)
    return build().eval()


def denoiser(build: Callable[[], nn.Module]) -> nn.Module:
    """Like `seeded`, with noise on every parameter, so that no gate that starts at zero hides what is computed."""
    return seeded(lambda: with_noise(build()), 0)


def quiet(pipe: Any) -> Any:
    """The pipeline without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vae(latent_channels: int = 4, levels: int = 2, **config: Any) -> nn.Module:
    """An autoencoder which shrinks a picture by two to the power of `levels` - 1."""
    return seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(8,) * levels,
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            shift_factor=0.0,
            sample_size=16,
            **config,
        ),
        1,
    )
