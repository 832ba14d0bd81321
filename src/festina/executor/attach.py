"""Attaching a plan to a pipeline, and taking it off again: all or nothing, on instances only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from festina.errors import FestinaError
from festina.executor.ahead import check_ahead
from festina.executor.attached import Attached
from festina.executor.compiled import uncompiled
from festina.executor.fitting import check_free, check_gate, check_models, columns_of, has_sites
from festina.executor.replay import check_replay
from festina.executor.run import Run
from festina.executor.scheduler import MARK, Link
from festina.executor.solving import solving
from festina.plan import Plan
from festina.sites import find_denoiser

if TYPE_CHECKING:
    from festina.executor.teleporting import Teleport
    from festina.samplers.teleportation import GaussianStatistics


def apply(
    pipe: Any,
    plan: Plan | str | PathLike[str],
    models: Mapping[str, nn.Module] = MappingProxyType({}),
    statistics: GaussianStatistics | str | PathLike[str] | None = None,
) -> Run:
    """Make a pipeline run by a plan until `remove`.

    Where a pipeline has several denoisers of one class with the plan's sites (two experts for noisy and for clean
    pictures), the plan is applied to all of them. Where the plan has a solver, the pipeline's scheduler is another one
    until `remove`.

    Args:
        pipe: a diffusers pipeline, or a bare denoiser (then drive the clock by `Run.start` and `Run.next_step`).
        plan: a plan or the path of a plan file.
        models: the denoisers that the plan calls in the place of the pipeline's own, by the names that it has for them.
        statistics: of the model's clean latents, or the path of their file, where the plan's solver starts "gaussian".

    Raises:
        FestinaError: the plan is for another denoiser or cannot be run, models or statistics are missing or not used,
            or the pipeline is accelerated already. The pipeline is then as it was.
    """
    plan = (plan if isinstance(plan, Plan) else Plan.load(plan)).canonical()
    denoisers = denoisers_of(pipe)
    name, first = denoisers[0]
    own = getattr(pipe, "scheduler", None) if pipe is not first else None
    # First of all whether the plan is for this denoiser: that another one's table does not fit says little.
    columns = columns_of(uncompiled(first), plan)
    scheduler = solving(own, plan)
    carries = _carrying(plan, scheduler, statistics)
    run = Run(plan, first, columns, pipe if pipe is not first else None, models)
    check_gate(uncompiled(first), plan)
    check_ahead(uncompiled(first), plan, run.columns)
    check_replay(scheduler, plan)
    experts = [(name, first)] + [other for other in denoisers[1:] if has_sites(other[1], plan)]
    for _, denoiser in experts:
        check_free(denoiser, own)
    check_models([denoiser for _, denoiser in experts], plan, models)
    attached = Attached(run, Link(run), pipe)
    try:
        for place, (name, denoiser) in enumerate(experts):
            attached.attach_denoiser(denoiser, place, name)
        if scheduler is not None:
            attached.attach_scheduler(scheduler)
        if scheduler is not own:
            attached.exchange_scheduler(own, scheduler)
        if pipe is not first:
            attached.attach_pipeline(pipe)
    except BaseException:
        attached.detach()
        raise
    run.before_start, run.teleport = attached.follow, carries
    return run


def _carrying(
    plan: Plan, scheduler: Any, statistics: GaussianStatistics | str | PathLike[str] | None
) -> Teleport | None:
    """What carries the first sample of a run; see `festina.executor.teleporting.teleporting`."""
    if plan.solver is None and statistics is None:
        return None
    # It wants diffusers' schedulers, which take seconds to import.
    from festina.executor.teleporting import teleporting

    return teleporting(plan, scheduler, statistics)


def remove(pipe: Any) -> None:
    """Take the plan off a pipeline (or bare denoiser): every object is again as it was before `apply`.

    Raises:
        FestinaError: no plan is applied, or somebody replaced what Festina put there (then nothing is changed).
    """
    denoiser = uncompiled(denoisers_of(pipe)[0][1])
    attached = vars(denoiser).get(MARK)
    if attached is None:
        raise FestinaError(f"no plan is applied to this {type(denoiser).__name__}; nothing to remove.")
    attached.detach()


@contextmanager
def accelerate(
    pipe: Any,
    plan: Plan | str | PathLike[str],
    models: Mapping[str, nn.Module] = MappingProxyType({}),
    statistics: GaussianStatistics | str | PathLike[str] | None = None,
) -> Iterator[Run]:
    """`apply` on entry, `remove` on exit, also after an exception. Yields the run, for its report."""
    run = apply(pipe, plan, models, statistics)
    try:
        yield run
    finally:
        remove(pipe)


def denoisers_of(pipe: Any) -> list[tuple[str, nn.Module]]:
    """Name and module of the denoiser that a plan is for, and of all others of its class in the pipeline.

    Raises:
        FestinaError: there is no denoiser in it.
    """
    components = getattr(pipe, "components", None) if not isinstance(pipe, nn.Module) else None
    modules = {name: part for name, part in (components or {}).items() if isinstance(part, nn.Module)}
    # Of two experts the first may be left out.
    only = modules.get("transformer_2") if not {"transformer", "unet"} & modules.keys() else None
    first = find_denoiser(pipe) if only is None else only
    kind = type(uncompiled(first))
    own = next((name for name, part in modules.items() if part is first), "")
    return [(own, first)] + [
        (name, part) for name, part in modules.items() if part is not first and type(uncompiled(part)) is kind
    ]
