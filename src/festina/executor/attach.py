"""Attaching a plan to a pipeline, and taking it off again: all or nothing, on instances only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import nn

from festina.cost import values_held
from festina.errors import FestinaError
from festina.executor.compiled import (
    COMPILED_CALL,
    entered,
    entry_point,
    refuse_inside,
    refuse_since,
    refuse_whole,
    uncompiled,
    way_to,
)
from festina.executor.listening import ending_run, listening_context, listening_forward
from festina.executor.patch import Patch, Patches, Wrapper, current
from festina.executor.run import Run
from festina.executor.scheduler import MARK as _MARK
from festina.executor.scheduler import Link, beginning_midway, starting_run
from festina.executor.scheduler import ending_step as _ending_step
from festina.executor.serving import Column, serving_forwards
from festina.names import RESIDUAL
from festina.plan import COMPUTE, REUSE, SKIP, Plan, enclosing_sites
from festina.sites import find_denoiser, resolve


def apply(pipe: Any, plan: Plan | str | PathLike[str]) -> Run:
    """Make a pipeline run by a plan until `remove`.

    Where a pipeline has several denoisers of one class with the plan's sites (two experts for noisy and for clean
    pictures), the plan is applied to all of them.

    Args:
        pipe: a diffusers pipeline, or a bare denoiser (then drive the clock by `Run.start` and `Run.next_step`).
        plan: a plan or the path of a plan file.

    Raises:
        FestinaError: the plan is for another denoiser or cannot be run, or the pipeline is accelerated already. The
            pipeline is then as it was.
    """
    plan = (plan if isinstance(plan, Plan) else Plan.load(plan)).canonical()
    denoisers = denoisers_of(pipe)
    name, first = denoisers[0]
    scheduler = getattr(pipe, "scheduler", None) if pipe is not first else None
    run = Run(plan, first, _columns(uncompiled(first), plan))
    experts = [(name, first)] + [other for other in denoisers[1:] if _has_sites(other[1], plan)]
    for _, denoiser in experts:
        _check_free(denoiser, scheduler)
    attached = _Attached(run, Link(run), pipe)
    try:
        for place, (name, denoiser) in enumerate(experts):
            attached.attach_denoiser(denoiser, place, name)
        if scheduler is not None:
            attached.attach_scheduler(scheduler)
        if pipe is not first:
            attached.attach_pipeline(pipe)
    except BaseException:
        attached.detach()
        raise
    run.before_start = attached.follow
    return run


def remove(pipe: Any) -> None:
    """Take the plan off a pipeline (or bare denoiser): every object is again as it was before `apply`.

    Raises:
        FestinaError: no plan is applied, or somebody replaced what Festina put there (then nothing is changed).
    """
    denoiser = uncompiled(denoisers_of(pipe)[0][1])
    attached = vars(denoiser).get(_MARK)
    if attached is None:
        raise FestinaError(f"no plan is applied to this {type(denoiser).__name__}; nothing to remove.")
    attached.detach()


@contextmanager
def accelerate(pipe: Any, plan: Plan | str | PathLike[str]) -> Iterator[Run]:
    """`apply` on entry, `remove` on exit, also after an exception. Yields the run, for its report."""
    run = apply(pipe, plan)
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


@dataclass(eq=False)
class _Site:
    """A site whose modules are wrapped: where they are, and in which column of the plan."""

    denoiser: nn.Module
    column: Column
    modules: tuple[nn.Module, ...]
    compiled: tuple[Any, ...]
    patches: tuple[Patch, ...]


@dataclass(eq=False)
class _Attached:
    """All that was changed for one plan."""

    run: Run
    link: Link
    pipe: Any
    patches: Patches = field(default_factory=Patches)
    sites: list[_Site] = field(default_factory=list)
    marked: list[Any] = field(default_factory=list)
    denoisers: list[tuple[str, nn.Module, Any]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of an accelerated denoiser is not accelerated."""

    def __reduce__(self) -> Any:
        return type(None), ()

    def attach_denoiser(self, denoiser: nn.Module, place: int, name: str) -> None:
        """Serve the sites of a denoiser, and listen to its calls."""
        columns = [column for column in self.run.columns if not column.always_computes]
        refuse_whole(denoiser, [column.site.path for column in columns])
        parents = enclosing_sites([column.site.name for column in columns])
        # What holds others is put around them, so it comes last.
        for _, column in sorted(zip(parents, columns, strict=True), key=lambda pair: -len(pair[0])):
            self._serve(denoiser, column, _ways(denoiser, column))
        self._put(denoiser, lambda original: listening_forward(original, self.run, place, name if place else ""))
        self.denoisers.append((name, denoiser, vars(denoiser).get(COMPILED_CALL)))
        context = getattr(denoiser, "cache_context", None)
        if context is not None:
            wrapper = Wrapper(listening_context(context, self.run), context)
            self.patches.put(denoiser, "cache_context", wrapper)
        self._mark(uncompiled(denoiser), self)

    def attach_scheduler(self, scheduler: Any) -> None:
        """Let a scheduler start runs and end steps."""
        self.patches.put(scheduler, "set_timesteps", starting_run(self.link, scheduler))
        self.patches.put(scheduler, "step", _ending_step(self.link, scheduler))
        if hasattr(scheduler, "set_begin_index"):
            self.patches.put(scheduler, "set_begin_index", beginning_midway(self.link, scheduler))
        self._mark(scheduler, self.link)

    def attach_pipeline(self, pipe: Any) -> None:
        """Let a pipeline that has done its work end the run, also before the last step."""
        original = getattr(pipe, "maybe_free_model_hooks", None)
        if original is not None:
            self.patches.put(pipe, "maybe_free_model_hooks", Wrapper(ending_run(original, self.run), original))

    def follow(self) -> None:
        """Before a run: move to modules that took the place of others (LoRA), and see that none was compiled."""
        for name, denoiser, compiled in self.denoisers:
            _refuse_cached(denoiser)
            refuse_since(denoiser, compiled, getattr(self.pipe, name, denoiser))
        moved = []
        for site in self.sites:
            ways = _ways(site.denoiser, site.column)
            for way in ways:
                refuse_inside(site.column.site.name, way)
            if all(way[-1][1] is module for way, module in zip(ways, site.modules, strict=True)):
                for module, before in zip(site.modules, site.compiled, strict=True):
                    refuse_since(module, before)
            else:
                moved.append((site, ways))
        # Several sites may wrap one module: the outermost comes off first, and goes on last.
        for site, _ in reversed(moved):
            for patch in reversed(site.patches):
                self.patches.take_off(patch)
            self.sites.remove(site)
        for site, ways in moved:
            self._serve(site.denoiser, site.column, ways)

    def detach(self) -> None:
        """Put everything back; nothing is changed if something of it was replaced."""
        self.patches.restore()
        self.run.release()
        self.run.before_start = lambda: None
        self.link.cut()
        for owner in self.marked:
            vars(owner).pop(_MARK, None)

    def _serve(self, denoiser: nn.Module, column: Column, ways: Sequence[list[tuple[str, nn.Module]]]) -> None:
        for way in ways:
            refuse_inside(column.site.name, way)
        modules = tuple(way[-1][1] for way in ways)
        entries = [entry_point(module) for module in modules]
        seen = [entered(module, called) for module, (_, called) in zip(modules, entries, strict=True)]
        forwards = serving_forwards(seen, column, self.run.clock, self.run.store)
        patches = tuple(
            self.patches.put(module, name, Wrapper(forward, current(module, name)))
            for module, (name, _), forward in zip(modules, entries, forwards, strict=True)
        )
        compiled = tuple(vars(module).get(COMPILED_CALL) for module in modules)
        self.sites.append(_Site(denoiser, column, modules, compiled, patches))

    def _put(self, module: nn.Module, replacing: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Patch:
        """Replace what is called when a module is."""
        name, called = entry_point(module)
        original = current(module, name)
        return self.patches.put(module, name, Wrapper(replacing(called), original))

    def _mark(self, owner: Any, with_what: Any) -> None:
        vars(owner)[_MARK] = with_what
        self.marked.append(owner)


def _ways(denoiser: nn.Module, column: Column) -> list[list[tuple[str, nn.Module]]]:
    return [way_to(denoiser, path) for path in column.site.paths]


def _check_free(denoiser: nn.Module, scheduler: Any) -> None:
    if vars(uncompiled(denoiser)).get(_MARK) is not None:
        raise FestinaError("a plan is already applied to this denoiser; call festina.remove first.")
    _refuse_cached(denoiser)
    if scheduler is not None and vars(scheduler).get(_MARK) is not None:
        raise FestinaError(
            "this scheduler already drives another accelerated denoiser; give each pipeline a scheduler of its own, "
            "e.g. type(scheduler).from_config(scheduler.config)."
        )


def _refuse_cached(denoiser: nn.Module) -> None:
    if getattr(denoiser, "is_cache_enabled", False):
        raise FestinaError(
            "this denoiser runs with diffusers' own cache; call disable_cache() on it before applying a plan."
        )


def _has_sites(denoiser: nn.Module, plan: Plan) -> bool:
    try:
        resolve(uncompiled(denoiser), plan.sites)
    except FestinaError:
        return False
    return True


def _columns(denoiser: nn.Module, plan: Plan) -> tuple[Column, ...]:
    """What a plan says of each site, with one step more than it has: one that computes and keeps everything."""
    name = type(denoiser).__name__
    if plan.denoiser != name:
        raise FestinaError(
            f"the plan is for {plan.denoiser}, this denoiser is a {name}. Use a plan made for this model."
        )
    columns, held = [], values_held(plan) > 0
    for index, site in enumerate(resolve(denoiser, plan.sites)):
        actions = "".join(step.actions[index] for step in plan.steps)
        runnable = COMPUTE + REUSE + (SKIP if site.kind == RESIDUAL else "")
        if unknown := set(actions) - set(runnable):
            raise FestinaError(
                f"{site.name}: this version cannot run the actions {sorted(unknown)}, only {runnable!r}."
            )
        kept = (*(bool(needed) for needed in held[:, index]), True)
        columns.append(Column(site, actions + COMPUTE, kept))
    return tuple(columns)
