"""Distances between pictures or videos and between sets of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from festina.errors import FestinaError


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture to its reference; of a video, over all of its frames.

    Args:
        images, reference: (batch, 3, height, width) or (batch, frames, 3, height, width) in [0, 1], of one shape.

    Returns:
        (batch,) in dB, 10 log10(1 / mean squared error); infinite for equal pictures.

    Raises:
        FestinaError: the shapes differ.
    """
    if images.shape != reference.shape:
        raise FestinaError(f"pictures of shape {tuple(images.shape)} against {tuple(reference.shape)}.")
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * torch.log10(error)


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Frechet distance between two sets of feature vectors, each taken as a Gaussian.

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al., arXiv 1706.08500, section 3).

    Args:
        features, reference: (count, dimensions), at least two vectors each.

    Raises:
        FestinaError: fewer than two vectors, or different dimensions.
    """
    if min(len(features), len(reference)) < 2 or features.shape[1] != reference.shape[1]:
        raise FestinaError(
            f"a Frechet distance needs two or more vectors of one length on each side; found {tuple(features.shape)} "
            f"and {tuple(reference.shape)}."
        )
    first, second = (values.double().cpu().numpy() for values in (features, reference))
    mean_first, mean_second = first.mean(0), second.mean(0)
    covariance_first = np.atleast_2d(np.cov(first, rowvar=False))
    covariance_second = np.atleast_2d(np.cov(second, rowvar=False))
    gap = float(np.square(mean_first - mean_second).sum())
    # tr (C1 C2)^(1/2) = tr (S C2 S)^(1/2) with S = C1^(1/2): symmetric, so its root is real and stable.
    root = _symmetric_root(covariance_first)
    cross = np.trace(_symmetric_root(root @ covariance_second @ root))
    return max(0.0, gap + float(np.trace(covariance_first) + np.trace(covariance_second) - 2 * cross))


def _symmetric_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = linalg.eigh((matrix + matrix.T) / 2)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
