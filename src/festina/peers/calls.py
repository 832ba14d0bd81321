"""Telling the hooks of diffusers what its pipelines do not always tell: which call of a step it is, and when.

The hooks of First-Block-Cache and TaylorSeer want a *cache context*, a name for each denoiser call of a step. Fewer
than a fifth of the pipelines of diffusers 0.42 set one, and the other classes are not reset between two runs either.
Pyramid Attention Broadcast and FasterCache ask for the time step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from festina.errors import FestinaError


class Calls:
    """Listens to the calls of a denoiser.

    Where the pipeline gives no cache context, calls in a row at the same time step get the contexts "call 0",
    "call 1" and so on, and a time step above the last one starts a new run, for which all hooks are reset. A scheduler
    that comes by a time step twice is taken for two calls of one step.

    Args:
        pipe: the pipeline, or its denoiser alone.
        denoiser: a denoiser with hooks of diffusers.

    Raises:
        FestinaError: during a run, if the denoiser is called without a `timestep`.
    """

    def __init__(self, pipe: Any, denoiser: nn.Module) -> None:
        self.pipe, self.denoiser = pipe, denoiser
        self._given: Any = None
        self._last: float | None = None
        self._place = 0
        self._named = 0
        self._open: AbstractContextManager[None] | None = None
        self._parameters = tuple(inspect.signature(denoiser.forward).parameters)
        self._handles = [
            denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
            denoiser.register_forward_hook(self._after, always_call=True),
        ]
        # Only classes with diffusers' CacheMixin have it, and only their pipelines use it.
        self._context = getattr(denoiser, "cache_context", None)
        if self._context is not None:
            vars(denoiser)["cache_context"] = self._noting(self._context)

    @property
    def timestep(self) -> float:
        """The present time step: the scheduler's where the pipeline tells it, otherwise what the denoiser is given."""
        told = getattr(self.pipe, "current_timestep", None)
        return self._noise if told is None else float(told)

    @property
    def _noise(self) -> float:
        # Of one time step per token, as in Wan 2.2, the noisiest.
        return float(self._given.max()) if isinstance(self._given, Tensor) else float(self._given)

    def stop(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        vars(self.denoiser).pop("cache_context", None)

    def _noting(self, original: Callable[..., AbstractContextManager[None]]) -> Callable[..., Any]:
        @contextmanager
        def cache_context(name: str, **where: Any) -> Iterator[None]:
            self._named += 1
            try:
                with original(name, **where):
                    yield
            finally:
                self._named -= 1

        return cache_context

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from diffusers import CacheMixin
        from diffusers.hooks import HookRegistry

        self._given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}.get("timestep")
        if self._given is None:
            raise FestinaError(f"{type(module).__name__} was called without a `timestep`, so no step is known.")
        if self._named:
            return
        last, self._last = self._last, self._noise
        self._place = self._place + 1 if self._last == last else 0
        if last is not None and self._last > last:
            HookRegistry.check_if_exists_or_initialize(module).reset_stateful_hooks(recurse=True)
        # The method works on any module; the class only lends it.
        self._open = CacheMixin.cache_context(module, f"call {self._place}")
        self._open.__enter__()

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
