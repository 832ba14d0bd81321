"""Confidence-Gated Taylor: forecast the stack where the forecast of its first block is right (arXiv 2508.02240)."""

from __future__ import annotations

from typing import Any

from festina.forecasts import TAYLOR
from festina.gates import Gate
from festina.methods.gated import first_steps, gated_plan
from festina.plan import Plan
from festina.sites import find_denoiser, first_blocks, stack_runs


def confident_taylor(
    pipe: Any, steps: int, threshold: float, order: int = 1, warm_up: int = 5, decider: str = "call"
) -> Plan:
    """Confidence-Gated Taylor ("Forecasting When to Forecast", arXiv 2508.02240; rule of the released code for DiT).

    The first block computes in every step and is forecast too. If the forecast is off by less than the threshold,
    mean|forecast - output| / mean|output|, the residual of all other blocks is forecast from its last computed values;
    else they compute. Forecasts are TaylorSeer's (arXiv 2503.06923). The first `warm_up` steps and the last one compute
    everything.

    Args:
        pipe: a diffusers pipeline with a transformer, or the transformer.
        steps: sampling steps, at least 1.
        threshold: at least 0; at 0 everything computes. Published: 0.01 for DiT, 0.13 for FLUX.
        order: order of both forecasts, 0 to 9.
        warm_up: first steps that compute everything; 5 for FLUX and DiT, 6 for Wan in the released code.
        decider: who decides in a step, see `festina.gates.Gate`; "row" only with order 0.

    Raises:
        FestinaError: the denoiser has no stack of at least two blocks, or a knob is out of its range.
    """
    denoiser = find_denoiser(pipe)
    gate = Gate(first_blocks(denoiser), "output", "forecast", threshold, order=order, decider=decider)
    computing = {*first_steps(warm_up), steps - 1}
    settings = {"threshold": threshold, "order": order, "warm_up": warm_up, "decider": decider}
    runs = stack_runs(denoiser, first=1)
    return gated_plan(pipe, steps, runs, computing, gate, "confident_taylor", settings, TAYLOR)
