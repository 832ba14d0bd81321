"""DiCache: shallow probes say when to serve, and how far to prolong what is served (arXiv 2508.17356)."""

from __future__ import annotations

from typing import Any

from festina.gates import Gate
from festina.methods.gated import gated_plan, share_of_steps
from festina.plan import Plan
from festina.sites import find_denoiser, first_blocks, stack_runs


def dicache(
    pipe: Any,
    steps: int,
    threshold: float,
    depth: int = 1,
    retention: float = 0.2,
    beyond_input: bool = False,
    stretch: tuple[float, float] = (1.0, 1.5),
    decider: str = "call",
) -> Plan:
    """DiCache (arXiv 2508.17356; rule of the released code for FLUX).

    The first `depth` blocks run in every step. The relative changes of their output from step to step add up; below
    the threshold the other blocks are served, else they compute and the sum begins anew. What is served is the last
    change of their residual, R2 + g (R1 - R2), where g is by how much the probe's own residual q has gone beyond:
    mean|q - q2| / mean|q1 - q2|, kept within `stretch`. The steps up to floor(retention * steps) and the last one
    compute everything.

    Args:
        pipe: a diffusers pipeline with a transformer, or the transformer.
        steps: sampling steps, at least 1.
        threshold: at least 0; at 0 everything computes. Published: 0.4 for FLUX with 30 steps.
        depth: blocks of the probe, at least 1.
        retention: share of the steps at the beginning that compute, from 0 to 1.
        beyond_input: count the difference between the change of the probe's output and that of its input, the released
            code's "delta_minus"; published with the threshold 0.08 and retention 0.
        stretch: least and largest g.
        decider: who decides in a step, see `festina.gates.Gate`; not "row".

    Raises:
        FestinaError: the denoiser has no stack of more than `depth` blocks, or a knob is out of its range.
    """
    denoiser = find_denoiser(pipe)
    gate = Gate(
        first_blocks(denoiser, depth),
        "output",
        "previous",
        threshold,
        summed=True,
        beyond_input=beyond_input,
        stretch=stretch,
        decider=decider,
    )
    computing = {*range(share_of_steps(retention, steps) + 1), steps - 1}
    settings = {
        "threshold": threshold,
        "depth": depth,
        "retention": retention,
        "beyond_input": beyond_input,
        "stretch": stretch,
        "decider": decider,
    }
    return gated_plan(pipe, steps, stack_runs(denoiser, first=depth), computing, gate, "dicache", settings)
