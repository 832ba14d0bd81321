"""Noise levels of steps, as shares of the training schedule: 1 = pure noise, 0 = clean. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def even_noise(steps: int) -> list[float]:
    """`steps` noise levels evenly spaced from 1 towards 0 (which is left out)."""
    return [(steps - step) / steps for step in range(steps)]


def respaced(old: NDArray[np.float64], steps: int) -> list[float]:
    """`steps` noise levels over the range of the old ones, spaced like them."""
    # The grid with one more point, the clean end, so that evenly spaced levels stay evenly spaced; it may be there.
    end = [] if old[-1] == 0 else [max(0.0, 2 * old[-1] - old[-2]) if len(old) > 1 else 0.0]
    places = np.arange(steps) * (len(old) / steps if end else (len(old) - 1) / max(1, steps - 1))
    return [float(level) for level in np.interp(places, np.arange(len(old) + len(end)), [*old, *end])]


def nearest(old: NDArray[np.float64], level: float) -> int:
    """Index of the nearest old level; of two as near, the noisier one, however their difference was rounded."""
    distance = np.abs(old - level)
    return int(np.argmax(distance <= distance.min() + 1e-9))
