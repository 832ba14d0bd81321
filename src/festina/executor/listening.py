"""What Festina puts around a denoiser's and a pipeline's own methods, to know what goes on. Nothing is changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from festina.executor.run import Run


def listening_forward(original: Callable[..., Any], run: Run, place: int, name: str) -> Callable[..., Any]:
    """A denoiser's forward that lets the run answer each call, and ends it if one fails."""

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if run.clock.passing:
            return original(*args, **kwargs)
        try:
            return run.call(original, args, kwargs, place, name)
        except BaseException:
            run.abort()
            raise

    return forward


def listening_context(original: Callable[..., AbstractContextManager[None]], run: Run) -> Callable[..., Any]:
    """A denoiser's `cache_context` that tells the clock its name."""

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


def ending_run(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    """A pipeline's `maybe_free_model_hooks`, which it calls when it has done its work, that ends the run."""

    @functools.wraps(original)
    def maybe_free_model_hooks(*args: Any, **kwargs: Any) -> Any:
        # A pipeline that calls it before its loop has started nothing yet.
        if run.clock.calls:
            run.abort()
        return original(*args, **kwargs)

    return maybe_free_model_hooks
