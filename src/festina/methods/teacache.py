"""TeaCache: the change of the first block's modulated input, as an estimate of the output's (arXiv 2411.19108)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from festina.calibration import Calibration
from festina.calibration.record import CHANGES
from festina.errors import FestinaError
from festina.gates import Gate
from festina.methods.calibrated import want_fit
from festina.methods.gated import gated_plan
from festina.plan import Plan
from festina.sites import find_denoiser, first_attention, stack_runs

PUBLISHED: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "FluxTransformer2DModel": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
        "HunyuanVideoTransformer3DModel": (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
        "ConsisIDTransformer3DModel": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
        "MochiTransformer3DModel": (-3512.41319, 811.675948, -60.9400215, 2.42429681, 0.00305291719),
        "LTXVideoTransformer3DModel": (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326),
        "LuminaNextDiT2DModel": (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
        "HiDreamImageTransformer2DModel": (-31360.5009, -712.425503, 49.1363285, 8.2651549, 0.108053901),
        "LatteTransformer3DModel": (-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402),
    }
)
"""Coefficients in TeaCache's released code (github.com/ali-vilab/TeaCache) by denoiser class, the highest power first.
Classes that serve several models with coefficients of their own (CogVideoX, Cosmos, Lumina 2) are left out, and Wan,
whose coefficients are for another signal."""

DEGREE = 4
"""Degree of the published polynomials."""


def teacache(
    pipe: Any,
    steps: int,
    threshold: float,
    curve: Calibration | Sequence[float] | None = None,
    longest: int = 0,
    decider: str = "call",
) -> Plan:
    """TeaCache (arXiv 2411.19108).

    The signal is the first block's input after norm and modulation by the timestep, taken where its attention is given
    it. Its relative changes from step to step, mean|new - old| / mean|old|, go through a polynomial that estimates the
    relative change of the output, and add up. Below the threshold the residual of the whole stack is served, else it
    computes and the sum begins anew. The first and the last step compute.

    Args:
        pipe: a diffusers pipeline with a transformer, or the transformer.
        steps: sampling steps, at least 1.
        threshold: at least 0; at 0 everything computes. Published: 0.25 to 0.8 for FLUX, 0.1 and 0.15 for HunyuanVideo.
        curve: coefficients of the polynomial, the highest power first (`fit_curve`), or a calibration to fit it to;
            those published for the denoiser's class if not given. Where it is below zero it counts as zero.
        longest: most steps served in a row; 0, as published, for any number.
        decider: who decides in a step, see `festina.gates.Gate`.

    Raises:
        FestinaError: the denoiser has no stack with an attention, no curve is given or published, the calibration does
            not fit, or a knob is out of its range.
    """
    denoiser = find_denoiser(pipe)
    probe, runs = first_attention(denoiser), stack_runs(denoiser)
    told: dict[str, Any] = {}
    if isinstance(curve, Calibration):
        want_fit(curve, pipe, steps, CHANGES)
        told, chosen = {"calibration": curve.told()}, fit_curve(curve)
    else:
        chosen = _published(type(denoiser).__name__) if curve is None else tuple(float(number) for number in curve)
    if not chosen:
        raise FestinaError("a curve without coefficients; wanted those of a polynomial, (1.0, 0.0) for the identity.")
    gate = Gate(
        probe,
        "input",
        "previous",
        threshold,
        summed=True,
        curve=chosen,
        longest=longest,
        decider=decider,
    )
    settings = {"threshold": threshold, "curve": chosen, "longest": longest, "decider": decider, **told}
    return gated_plan(pipe, steps, runs, {0, steps - 1}, gate, "teacache", settings)


def fit_curve(calibration: Calibration, degree: int = DEGREE) -> tuple[float, ...]:
    """The polynomial from changes of the modulated input to changes of the output, by least squares over all steps,
    pictures and branches of guidance.

    Args:
        calibration: what was measured; TeaCache's authors advise at least 50 prompts.
        degree: degree of the polynomial, 0 to 9; 4 as published.

    Returns:
        `degree` + 1 coefficients, the highest power first.

    Raises:
        FestinaError: the degree is out of range, or there are too few different pairs for it.
    """
    if not 0 <= degree <= 9:
        raise FestinaError(f"a polynomial of degree {degree}; wanted 0 to 9.")
    pairs = calibration.changes()
    different = len(set(pairs[:, 0].tolist()))
    if different <= degree:
        raise FestinaError(
            f"{different} different changes for a polynomial of degree {degree}; wanted at least {degree + 1}. "
            f"Calibrate with more prompts."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.RankWarning)
        try:
            fitted = np.polyfit(pairs[:, 0], pairs[:, 1], degree)
        except np.exceptions.RankWarning:
            raise FestinaError(
                f"the changes measured lie too close together for a polynomial of degree {degree}; calibrate with "
                f"more prompts, or fit one of a lower degree."
            ) from None
    return tuple(fitted.tolist())


def _published(denoiser: str) -> tuple[float, ...]:
    if denoiser not in PUBLISHED:
        raise FestinaError(
            f"no curve is published for {denoiser} alone; give a curve, or a calibration: "
            f"teacache(pipe, steps, threshold, festina.calibrate(pipe, prompts, steps)). Published are those of "
            f"{', '.join(sorted(PUBLISHED))}."
        )
    return PUBLISHED[denoiser]
