"""Attaching a plan to a pipeline, and taking it off again: all or nothing, on instances only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from typing import Any

from torch import nn

from festina.cost import values_held
from festina.errors import FestinaError
from festina.executor.patch import Patches
from festina.executor.run import Run
from festina.executor.serving import Column, serving_forward
from festina.plan import COMPUTE, REUSE, SKIP, Plan
from festina.sites import find_denoiser, resolve, site_module

_MARK = "_festina"
"""Attribute of an accelerated denoiser (and scheduler): its run and what was replaced."""


def apply(pipe: Any, plan: Plan | str | PathLike[str]) -> Run:
    """Make a pipeline run by a plan until `remove`.

    Args:
        pipe: a diffusers pipeline, or a bare denoiser (then drive the clock by `Run.start` and `Run.next_step`).
        plan: a plan or the path of a plan file.

    Raises:
        FestinaError: the plan is for another denoiser or cannot be run, or the pipeline is accelerated already. The
            pipeline is then as it was.
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    denoiser = find_denoiser(pipe)
    scheduler = getattr(pipe, "scheduler", None) if pipe is not denoiser else None
    _check_free(denoiser, scheduler)
    run = Run(plan.canonical(), denoiser, _columns(denoiser, plan.canonical()))
    patches = Patches()
    try:
        for column in run.columns:
            if not column.always_computes:
                module = site_module(denoiser, column.site)
                patches.set(module, "forward", serving_forward(module, column, run.clock, run.store))
        patches.set(denoiser, "forward", _denoiser_forward(denoiser, run))
        context: Any = getattr(denoiser, "cache_context", None)
        if context is not None:
            patches.set(denoiser, "cache_context", _listening_context(context, run))
        if scheduler is not None:
            patches.set(scheduler, "set_timesteps", _starting_run(scheduler, run))
            patches.set(scheduler, "step", _ending_step(scheduler.step, run))
            scheduler.__dict__[_MARK] = denoiser
        denoiser.__dict__[_MARK] = (run, patches, scheduler)
    except BaseException:
        patches.restore()
        raise
    return run


def remove(pipe: Any) -> None:
    """Take the plan off a pipeline (or bare denoiser): every object is again as it was before `apply`.

    Raises:
        FestinaError: no plan is applied, or somebody replaced what Festina put there (then nothing is changed).
    """
    denoiser = find_denoiser(pipe)
    if _MARK not in denoiser.__dict__:
        raise FestinaError(f"no plan is applied to this {type(denoiser).__name__}; nothing to remove.")
    run, patches, scheduler = denoiser.__dict__[_MARK]
    patches.restore()
    run.abort()
    del denoiser.__dict__[_MARK]
    if scheduler is not None:
        del scheduler.__dict__[_MARK]


@contextmanager
def accelerate(pipe: Any, plan: Plan | str | PathLike[str]) -> Iterator[Run]:
    """`apply` on entry, `remove` on exit, also after an exception. Yields the run, for its report."""
    run = apply(pipe, plan)
    try:
        yield run
    finally:
        remove(pipe)


def _check_free(denoiser: nn.Module, scheduler: Any) -> None:
    if _MARK in denoiser.__dict__:
        raise FestinaError("a plan is already applied to this denoiser; call festina.remove first.")
    if getattr(denoiser, "is_cache_enabled", False):
        raise FestinaError(
            "this denoiser runs with diffusers' own cache; call disable_cache() on it before applying a plan."
        )
    if scheduler is not None and _MARK in scheduler.__dict__:
        raise FestinaError(
            "this scheduler already drives another accelerated denoiser; give each pipeline a scheduler of its own, "
            "e.g. type(scheduler).from_config(scheduler.config)."
        )


def _columns(denoiser: nn.Module, plan: Plan) -> tuple[Column, ...]:
    name = type(denoiser).__name__
    if plan.denoiser != name:
        raise FestinaError(
            f"the plan is for {plan.denoiser}, this denoiser is a {name}. Use a plan made for this model."
        )
    columns, held = [], values_held(plan) > 0
    for index, site in enumerate(resolve(denoiser, plan.sites)):
        actions = "".join(step.actions[index] for step in plan.steps)
        runnable = COMPUTE + REUSE + (SKIP if site.component is None else "")
        if unknown := set(actions) - set(runnable):
            raise FestinaError(
                f"{site.name}: this version cannot run the actions {sorted(unknown)}, only {runnable!r}."
            )
        columns.append(Column(site, actions, tuple(bool(needed) for needed in held[:, index])))
    return tuple(columns)


def _denoiser_forward(denoiser: nn.Module, run: Run) -> Callable[..., Any]:
    original = denoiser.forward

    @functools.wraps(original)
    def forward(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        text = kwargs.get("encoder_hidden_states", args[0] if args else None)
        run.begin_call(hidden_states, text)
        try:
            return original(hidden_states, *args, **kwargs)
        except BaseException:
            run.abort()
            raise

    return forward


def _listening_context(original: Callable[..., AbstractContextManager[None]], run: Run) -> Callable[..., Any]:
    @contextmanager
    @functools.wraps(original)
    def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        before, run.clock.context = run.clock.context, name
        try:
            with original(name, *args, **kwargs):
                yield
        finally:
            run.clock.context = before

    return cache_context


def _starting_run(scheduler: Any, run: Run) -> Callable[..., Any]:
    original = scheduler.set_timesteps

    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if scheduler.order != 1:
            raise FestinaError(
                f"{type(scheduler).__name__} calls the denoiser {scheduler.order} times a step; plans are made for "
                f"schedulers of order 1, such as DPMSolverMultistepScheduler or FlowMatchEulerDiscreteScheduler."
            )
        run.start(len(scheduler.timesteps))
        return result

    return set_timesteps


def _ending_step(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        try:
            result = original(*args, **kwargs)
        except BaseException:
            run.abort()
            raise
        run.next_step()
        return result

    return step
