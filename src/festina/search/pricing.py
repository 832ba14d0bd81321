"""The price of a plan on a pipeline: multiply-accumulates per picture, from the shapes of one short probing run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from festina.cost import held_bytes, mac_table, plan_macs
from festina.errors import FestinaError
from festina.executor import accelerate
from festina.layers import Shape
from festina.plan import Plan
from festina.search.workload import Workload
from festina.sites import component_sites, find_denoiser

PROBE_STEPS = 2


def probe(pipe: Any, workload: Workload) -> Mapping[Shape, int]:
    """The shapes of the denoiser's calls in one step for one picture, and how many calls have each.

    Runs two sampling steps on the workload's first prompt.

    Raises:
        FestinaError: the pipeline cannot be called with this workload's arguments.
    """
    denoiser = find_denoiser(pipe)
    names = [site.name for site in component_sites(denoiser)]
    with accelerate(pipe, Plan.computing_all(type(denoiser).__name__, names, PROBE_STEPS)) as run:
        try:
            pipe(
                prompt=[workload.prompts[0]],
                num_inference_steps=PROBE_STEPS,
                guidance_scale=workload.guidance_scale,
                output_type="latent",
                **workload.call,
            )
        except TypeError as error:
            raise FestinaError(f"{type(pipe).__name__} cannot be called for this search: {error}.") from None
        shapes = run.report().shapes
    return {shape: calls // PROBE_STEPS for shape, calls in shapes.items()}


def pricing(pipe: Any, workload: Workload) -> Callable[[Plan], int]:
    """A function from a plan to its MACs per picture, attention products included. Raises like `probe`."""
    denoiser = find_denoiser(pipe)
    tables = [(mac_table(denoiser, shape), calls) for shape, calls in probe(pipe, workload).items()]

    def price(plan: Plan) -> int:
        return sum(plan_macs(plan, table).total * calls for table, calls in tables)

    return price


def holding(pipe: Any, workload: Workload) -> Callable[[Plan], int]:
    """A function from a plan to the bytes it holds at most, per picture. Raises like `probe`."""
    denoiser = find_denoiser(pipe)
    shapes = probe(pipe, workload)
    itemsize = next(denoiser.parameters()).element_size()

    def hold(plan: Plan) -> int:
        return max(held_bytes(plan, denoiser, shape, itemsize, branches=calls) for shape, calls in shapes.items())

    return hold
