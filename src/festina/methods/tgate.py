"""T-GATE: once the layout has settled, freeze cross-attention and stop guiding (arXiv 2404.02747)."""

from __future__ import annotations

from typing import Any

from festina.errors import FestinaError
from festina.plan import ALL, COMPUTE, MERGED, REUSE, Plan, Step, even_noise
from festina.sites import component_sites, find_denoiser, sampler_of


def tgate(
    pipe: Any, steps: int, gate_step: int = 10, self_interval: int = 5, late_interval: int = 1, warm_up: int = 2
) -> Plan:
    """The schedule of T-GATE (arXiv 2404.02747; rule and defaults of the released code for SDXL at 25 steps).

    Before the gate step cross-attention computes, and self-attention does in the first `warm_up` steps, in step
    `warm_up`, in the multiples of `self_interval` and in the last step before the gate. From the gate step on
    cross-attention is served the mean of what it said with and without the caption, self-attention computes in the
    multiples of `late_interval`, and the denoiser runs for one branch of guidance only. All else always computes.

    Args:
        pipe: a diffusers pipeline or its denoiser, with cross-attention.
        steps: sampling steps.
        gate_step: the first step without guidance, 1 to `steps`; `steps` never stops guiding.
        self_interval, late_interval: intervals of self-attention before and after the gate, at least 1.
        warm_up: first steps in which self-attention computes, at least 0.

    Raises:
        FestinaError: the denoiser has no cross-attention, or a knob is out of its range.
    """
    denoiser = find_denoiser(pipe)
    roles = {site.name: site.role for site in component_sites(denoiser) if site.role.endswith("-attention")}
    if "cross-attention" not in roles.values():
        raise FestinaError(
            f"T-GATE freezes cross-attention, and {type(denoiser).__name__} has none: its attention sees text and "
            f"picture together. To stop guiding alone, give the steps of a plan the branches 'conditional'."
        )
    if not 1 <= gate_step <= steps or min(self_interval, late_interval) < 1 or warm_up < 0:
        raise FestinaError(
            f"gate step {gate_step} of {steps}, intervals {self_interval} and {late_interval}, warm-up {warm_up}; "
            f"wanted a gate step from 1 to {steps}, intervals of at least 1 and a warm-up of at least 0."
        )
    rows = []
    for step, noise in enumerate(even_noise(steps)):
        late = step >= gate_step
        if late:
            itself = step % late_interval == 0
        else:
            itself = step <= warm_up or step % self_interval == 0 or step == gate_step - 1
        computes = {"cross-attention": not late, "self-attention": itself}
        actions = "".join(COMPUTE if computes[role] else REUSE for role in roles.values())
        rows.append(Step(noise, actions, MERGED if late else ALL))
    settings = {
        "gate_step": gate_step,
        "self_interval": self_interval,
        "late_interval": late_interval,
        "warm_up": warm_up,
    }
    name, sampler = type(denoiser).__name__, sampler_of(pipe)
    return Plan(name, tuple(roles), tuple(rows), "tgate", settings, sampler)
