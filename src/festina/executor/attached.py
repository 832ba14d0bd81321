"""What is changed on a pipeline for one plan, how it follows what others change, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

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
from festina.executor.fitting import refuse_cached
from festina.executor.listening import ending_run, listening_context, listening_forward
from festina.executor.patch import Patch, Patches, Wrapper, current
from festina.executor.run import Run
from festina.executor.scheduler import MARK, Link, beginning_midway, ending_step, starting_run
from festina.executor.serving import Column, serving_forwards
from festina.executor.solving import Exchange
from festina.names import parse
from festina.plan import enclosing_sites

Forwards = Callable[[Sequence[nn.Module]], Sequence[Callable[..., Any]]]
"""Makes what takes the place of the forwards of modules."""


@dataclass(frozen=True)
class _Target:
    """Modules to wrap: what the plan calls them, where they are, and in what."""

    name: str
    paths: tuple[str, ...]
    forwards: Forwards


@dataclass(eq=False)
class _Wrapped:
    """A target whose modules are wrapped."""

    denoiser: nn.Module
    target: _Target
    modules: tuple[nn.Module, ...]
    compiled: tuple[Any, ...]
    patches: tuple[Patch, ...]


@dataclass(eq=False)
class Attached:
    """All that was changed for one plan."""

    run: Run
    link: Link
    pipe: Any
    patches: Patches = field(default_factory=Patches)
    wrapped: list[_Wrapped] = field(default_factory=list)
    marked: list[Any] = field(default_factory=list)
    exchange: Exchange | None = None
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
        # What watches an attention sees only what is really computed, so that serving is put around it.
        targets = self._watched() + [
            self._served(column)
            for _, column in sorted(zip(parents, columns, strict=True), key=lambda pair: -len(pair[0]))
        ]
        # What the gate looks at may be a site too; then it has to see what comes in before that site is served.
        targets += self._tapped()
        for target in targets:
            self._wrap(denoiser, target, _ways(denoiser, target))
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
        self.patches.put(scheduler, "step", ending_step(self.link, scheduler))
        if hasattr(scheduler, "set_begin_index"):
            self.patches.put(scheduler, "set_begin_index", beginning_midway(self.link, scheduler))
        self._mark(scheduler, self.link)

    def exchange_scheduler(self, own: Any, scheduler: Any) -> None:
        """Put another scheduler in the place of the pipeline's own."""
        self.exchange = Exchange(self.pipe, own, scheduler)
        self.exchange.put()
        self._mark(own, self.link)

    def attach_pipeline(self, pipe: Any) -> None:
        """Let a pipeline that has done its work end the run, also before the last step."""
        original = getattr(pipe, "maybe_free_model_hooks", None)
        if original is not None:
            self.patches.put(pipe, "maybe_free_model_hooks", Wrapper(ending_run(original, self.run), original))

    def follow(self) -> None:
        """Before a run: move to modules that took the place of others (LoRA), and see that none was compiled."""
        for name, denoiser, compiled in self.denoisers:
            refuse_cached(denoiser)
            refuse_since(denoiser, compiled, getattr(self.pipe, name, denoiser))
        moved = []
        for wrapped in self.wrapped:
            ways = _ways(wrapped.denoiser, wrapped.target)
            for way in ways:
                refuse_inside(wrapped.target.name, way)
            if all(way[-1][1] is module for way, module in zip(ways, wrapped.modules, strict=True)):
                for module, before in zip(wrapped.modules, wrapped.compiled, strict=True):
                    refuse_since(module, before)
            else:
                moved.append((wrapped, ways))
        # Several targets may share a module: the outermost comes off first, and goes on last.
        for wrapped, _ in reversed(moved):
            for patch in reversed(wrapped.patches):
                self.patches.take_off(patch)
            self.wrapped.remove(wrapped)
        for wrapped, ways in moved:
            self._wrap(wrapped.denoiser, wrapped.target, ways)

    def detach(self) -> None:
        """Put everything back; nothing is changed if something of it was replaced."""
        if self.exchange is not None:
            self.exchange.check()
        self.patches.restore()
        if self.exchange is not None:
            self.exchange.take_back()
        self.run.release()
        self.run.before_start = lambda: None
        self.link.cut()
        for owner in self.marked:
            vars(owner).pop(MARK, None)

    def _served(self, column: Column) -> _Target:
        """The modules of a site, to be served as its column says."""
        run = self.run
        return _Target(
            column.site.name,
            column.site.paths,
            lambda modules: serving_forwards(modules, column, run.clock, run.store, run.gate, run.tokens),
        )

    def _watched(self) -> list[_Target]:
        """The attentions by which tokens are chosen, where they are."""
        tokens = self.run.tokens
        if tokens is None:
            return []

        def watching(column: Column) -> _Target:
            return _Target(
                column.site.name,
                column.site.paths,
                lambda modules: [tokens.watching_forward(modules[0].forward, column)],
            )

        return [watching(column) for column in tokens.maps]

    def _tapped(self) -> list[_Target]:
        """The module that the gate looks at, if there is a gate."""
        gate = self.run.gate
        if gate is None:
            return []
        path = parse(gate.gate.probe).first
        return [_Target(gate.gate.probe, (path,), lambda modules: [gate.tapping_forward(modules[0].forward)])]

    def _wrap(self, denoiser: nn.Module, target: _Target, ways: Sequence[list[tuple[str, nn.Module]]]) -> None:
        for way in ways:
            refuse_inside(target.name, way)
        modules = tuple(way[-1][1] for way in ways)
        entries = [entry_point(module) for module in modules]
        seen = [entered(module, called) for module, (_, called) in zip(modules, entries, strict=True)]
        patches = tuple(
            self.patches.put(module, name, Wrapper(forward, current(module, name)))
            for module, (name, _), forward in zip(modules, entries, target.forwards(seen), strict=True)
        )
        compiled = tuple(vars(module).get(COMPILED_CALL) for module in modules)
        self.wrapped.append(_Wrapped(denoiser, target, modules, compiled, patches))

    def _put(self, module: nn.Module, replacing: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Patch:
        """Replace what is called when a module is."""
        name, called = entry_point(module)
        original = current(module, name)
        return self.patches.put(module, name, Wrapper(replacing(called), original))

    def _mark(self, owner: Any, with_what: Any) -> None:
        vars(owner)[MARK] = with_what
        self.marked.append(owner)


def _ways(denoiser: nn.Module, target: _Target) -> list[list[tuple[str, nn.Module]]]:
    return [way_to(denoiser, path) for path in target.paths]
