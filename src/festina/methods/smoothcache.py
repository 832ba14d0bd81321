"""SmoothCache: reuse a component as long as it was measured to stay the same (arXiv 2411.10510)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.calibration import Calibration
from festina.calibration.record import LAG_ERRORS, LAGS
from festina.methods.calibrated import want_fit, want_threshold
from festina.methods.columns import letters, plan_of_columns, want_whole
from festina.plan import Plan
from festina.sites import component_sites, find_denoiser


def smoothcache(pipe: Any, steps: int, calibration: Calibration, threshold: float, longest: int = LAGS) -> Plan:
    """The schedule of SmoothCache (arXiv 2411.10510), one for each component of each list of blocks.

    A component that computes in step i is reused for as many steps as the measured error at their far end allows: the
    relative L1 change of its output, the mean over all blocks. First and last step compute.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, as many as calibrated.
        calibration: lag errors of this pipeline (`festina.calibrate`).
        threshold: largest error that is reused, at least 0. Published for DiT-XL with 50 steps: 0.08 and 0.18.
        longest: most steps reused in a row, 1 to 3.

    Raises:
        FestinaError: the calibration does not fit, or a knob is out of its range.
    """
    want_fit(calibration, pipe, steps, LAG_ERRORS)
    want_threshold(threshold)
    want_whole("the longest reuse", longest, 1, LAGS)
    sites = component_sites(find_denoiser(pipe))
    groups: dict[str, list[str]] = {}
    for site in sites:
        groups.setdefault(site.group, []).append(site.name)
    computing = {
        group: computed_steps(calibration.lag_errors(names)[:longest], threshold) for group, names in groups.items()
    }
    settings = {"threshold": threshold, "longest": longest, "calibration": calibration.told()}
    columns = {site.name: letters(computing[site.group]) for site in sites}
    return plan_of_columns(pipe, columns, "smoothcache", settings)


def computed_steps(errors: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """SmoothCache's greedy rule.

    Args:
        errors: float (lags, steps): row j - 1 has at step i the error of serving in step i + j what step i computed;
            NaN where none was measured.
        threshold: largest error that is reused.

    Returns:
        which steps compute, bool (steps,).
    """
    lags, steps = errors.shape
    computing = np.zeros(steps, dtype=np.bool_)
    step = 0
    while step < steps:
        computing[step] = True
        # Only the error at the far end of a lag is looked at, as in the released code.
        near = [lag for lag in range(1, lags + 1) if step + lag < steps and errors[lag - 1, step] <= threshold]
        step += max(near, default=0) + 1
    computing[-1] = True
    return computing
