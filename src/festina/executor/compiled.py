"""Plans on compiled models: the decision is taken around a compiled module, never inside one.

Inside, it would be compiled with the module: anew for every pattern of steps. `Module.compile` leaves its work in
`_compiled_call_impl` of the instance, and `torch.compile` returns a module around the module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from festina.errors import FestinaError
from festina.executor.patch import current

COMPILED_CALL = "_compiled_call_impl"


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled, as a whole."""
    return vars(module).get(COMPILED_CALL) is not None or uncompiled(module) is not module


def entry_point(module: nn.Module) -> tuple[str, Callable[..., Any]]:
    """The attribute of a module in which its call can be replaced, and what is called there now."""
    compiled = vars(module).get(COMPILED_CALL)
    if compiled is None and uncompiled(module) is module:
        return "forward", current(module, "forward")
    called: Callable[..., Any] = current(module, "forward") if compiled is None else compiled

    # The compiled call takes anything; its parameters have the names of the module's own.
    @functools.wraps(uncompiled(module).forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return called(*args, **kwargs)

    return ("forward" if compiled is None else COMPILED_CALL), call


class Entered:
    """A module as `serving_forward` sees it: its `forward` is what is called at its entry point."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def entered(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """The module, with `forward` for what is called at its entry point."""
    return module if module.forward is forward else cast(nn.Module, Entered(module, forward))


def way_to(denoiser: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The modules on the way from a denoiser to one of its modules, that module last, by path.

    Raises:
        FestinaError: there is no such module, or no more.
    """
    way: list[tuple[str, nn.Module]] = []
    module: Any = uncompiled(denoiser)
    parts = path.split(".")
    for length, part in enumerate(parts, 1):
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            raise FestinaError(
                f"{type(uncompiled(denoiser)).__name__} has no module {path!r} any more; call festina.remove, and "
                f"apply a plan for the model as it is now."
            )
        way.append((".".join(parts[:length]), module))
    return way


def refuse_whole(denoiser: nn.Module, paths: Sequence[str]) -> None:
    """See to it that a denoiser is not compiled as a whole if a plan decides anything inside it, at these paths.

    Raises:
        FestinaError: it is; the message says what to do.
    """
    if paths and is_compiled(denoiser):
        lists = sorted({_list_of(path) for path in paths})
        lines = "; ".join(f"for block in denoiser.{path}: block.compile(fullgraph=True)" for path in lists)
        raise FestinaError(
            f"this {type(uncompiled(denoiser)).__name__} is compiled as a whole, and the plan decides inside it. Load "
            f"it anew and compile its blocks instead, before applying a plan of whole blocks: {lines}"
        )


def refuse_inside(site: str, way: Sequence[tuple[str, nn.Module]]) -> None:
    """See to it that a site does not lie inside a compiled module.

    Args:
        site: its name.
        way: the way to its module, see `way_to`.

    Raises:
        FestinaError: it does; the message says which module it is, and what to do.
    """
    for path, module in way[:-1]:
        if is_compiled(module):
            raise FestinaError(
                f"{path} ({type(uncompiled(module)).__name__}) is compiled, and {site} lies inside it, where nothing "
                f"can be decided without compiling it again in many steps. Use a plan of whole blocks "
                f"({path}:residual), or load the model anew and compile the plan's own modules: for site in "
                f"plan.sites: denoiser.get_submodule(site.partition(':')[0]).compile()"
            )


def refuse_since(module: nn.Module, before: Any, now: Any = None) -> None:
    """See to it that a module was not compiled since a plan was applied.

    Args:
        module: the module.
        before: its compiled call at that time.
        now: what stands in its place now; the module itself if not given.

    Raises:
        FestinaError: it was.
    """
    wrapped = isinstance(now, nn.Module) and now is not module and uncompiled(now) is uncompiled(module)
    if wrapped or vars(module).get(COMPILED_CALL) is not before:
        raise FestinaError(
            f"a {type(uncompiled(module)).__name__} was compiled after the plan was applied, and would be compiled "
            f"together with the plan's decisions. Call festina.remove, compile it again, then festina.apply."
        )


def _list_of(path: str) -> str:
    """The list of blocks in which a module lies."""
    parts = path.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:number])
