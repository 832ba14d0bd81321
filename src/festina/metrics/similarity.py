"""How alike two pictures are to the eye: SSIM and LPIPS, by torchmetrics.

Both are optional: torchmetrics comes with the extra `metrics`, and LPIPS also wants torchvision and the weights of
AlexNet (extra `lpips`), which torchvision downloads once. What is missing is said by a `FestinaError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.strict import brief

CHUNK = 16
"""Pictures that are compared at a time, so that many large ones fit into memory."""

SMALLEST_SSIM, SMALLEST_LPIPS = 6, 31
"""Least height and width of a picture: more than half of SSIM's window, and one number in AlexNet's last layers."""

Similarity = Callable[[Tensor, Tensor], float]
"""From pictures (batch, 3, height, width) or videos (batch, frames, 3, height, width) in [0, 1] and as many references
to one number, the mean over pictures and frames."""


def ssim_measure() -> Similarity:
    """The structural similarity index, in [-1, 1] and 1 for equal pictures (Wang et al. 2004, IEEE Transactions on
    Image Processing 13(4), section III): a Gaussian window of 11 pixels with a deviation of 1.5, K1 = 0.01, K2 = 0.03.

    Raises:
        FestinaError: torchmetrics is not installed; from the measure itself, if the shapes differ or the pictures are
            smaller than `SMALLEST_SSIM`.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise FestinaError("SSIM needs torchmetrics; run `pip install festina[metrics]`.") from None

    def measure(images: Tensor, reference: Tensor) -> float:
        pairs = _chunks(images, reference)
        _want_pixels("SSIM", images, SMALLEST_SSIM)
        found = []
        for pair in pairs:
            scores = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
            assert isinstance(scores, Tensor)
            found.append(scores.double().flatten())
        return float(torch.cat(found).mean())

    return measure


def lpips_measure(device: str | torch.device = "cpu") -> Similarity:
    """The learned perceptual distance on AlexNet, 0 for equal pictures, higher is further apart (Zhang et al., arXiv
    1801.03924, version 0.1 of its released weights).

    Args:
        device: where it runs.

    Raises:
        FestinaError: torchmetrics or torchvision is not installed, or the weights of AlexNet are neither on this
            machine nor to be had from the network; from the measure itself, if the shapes differ or the pictures are
            smaller than `SMALLEST_LPIPS`.
    """
    try:
        import torchvision  # noqa: F401
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except (ImportError, RuntimeError) as error:
        # A torchvision made for another torch fails with a RuntimeError.
        raise FestinaError(
            f"LPIPS needs torchmetrics and a torchvision made for this torch ({brief(error)}); run `pip install "
            f"festina[lpips]`."
        ) from None
    try:
        network: Any = LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(device)
    except (OSError, RuntimeError) as error:
        raise FestinaError(
            f"LPIPS needs the weights of AlexNet, which torchvision could not get ({brief(error)}); run it once with a "
            f"network."
        ) from None

    @torch.no_grad()
    def measure(images: Tensor, reference: Tensor) -> float:
        network.reset()
        pairs = _chunks(images, reference)
        _want_pixels("LPIPS", images, SMALLEST_LPIPS)
        for first, second in pairs:
            network.update(first.to(device), second.to(device))
        return float(network.compute())

    return measure


def _chunks(images: Tensor, reference: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs of (some, 3, height, width) within [0, 1]; of videos every frame is a picture."""
    if images.shape != reference.shape or images.ndim not in (4, 5) or not len(images):
        raise FestinaError(
            f"pictures of shape {tuple(images.shape)} against {tuple(reference.shape)}; wanted two of one shape "
            f"(batch, 3, height, width), or (batch, frames, 3, height, width)."
        )
    height, width = images.shape[-2:]
    flat = [each.float().clamp(0, 1).reshape(-1, 3, height, width) for each in (images, reference)]
    return list(zip(flat[0].split(CHUNK), flat[1].split(CHUNK), strict=True))


def _want_pixels(measure: str, images: Tensor, least: int) -> None:
    if min(images.shape[-2:]) < least:
        height, width = images.shape[-2:]
        raise FestinaError(f"{measure} wants pictures of {least} pixels or more each way; found {height} x {width}.")
