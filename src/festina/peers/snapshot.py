"""What a peer changes on a pipeline, and putting it back.

Peers replace `forward` of modules, hang attributes on modules, on the pipeline and on its class, and do not always take
everything off again. A snapshot from before tells what they touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from festina.executor.attach import denoisers_of

_MISSING = object()

Key = tuple[str, str, bool]
"""Path of an owner, name of what it holds, and whether that is a module of a module."""


class Snapshot:
    """The attributes of a pipeline, of its class and of all modules of its denoisers, by identity.

    Args:
        pipe: a diffusers pipeline or a bare denoiser.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.denoisers = denoisers_of(pipe)
        self.before = self._state()
        self.order = {path: list(owner._modules) for path, owner in self._modules()}

    def touched(self) -> set[Key]:
        """What is other than it was."""
        now = self._state()
        return {key for key in self.before.keys() | now.keys() if self._get(self.before, key) is not now.get(key)}

    def replaced(self) -> tuple[str, ...]:
        """Paths of the modules of the denoisers that have another `forward` than they had."""
        return tuple(sorted(owner for owner, name, module in self.touched() if name == "forward" and not module))

    def restore(self, touched: set[Key]) -> tuple[str, ...]:
        """Put back of `touched` what is not as it was.

        Returns:
            the names of what was left and could change results: not a bound method or a value that the class has
            anyway, and not a registry of hooks without hooks; and modules whose children stood in another order, by
            which sites are found.
        """
        left, owners = [], self._owners()
        for key in sorted(touched):
            path, name, module = key
            owner, was = owners.get(path), self._get(self.before, key)
            if owner is None:
                continue
            held = owner._modules if module else vars(owner)
            now = held.get(name, _MISSING)
            if now is was:
                continue
            if module or was is not _MISSING or not _harmless(owner, name, now):
                left.append(f"{path}.{name}" if path else name)
            _put(owner, held, name, was)
        return (*left, *self._reordered())

    def _reordered(self) -> Iterator[str]:
        """Bring the children of modules into the order they had; says of which."""
        for path, owner in self._modules():
            known = [name for name in self.order.get(path, []) if name in owner._modules]
            if known != [name for name in owner._modules if name in known]:
                for name in [*known, *(name for name in owner._modules if name not in known)]:
                    owner._modules[name] = owner._modules.pop(name)
                yield f"order of the modules in {path}"

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for path, owner in self._owners().items():
            if isinstance(owner, nn.Module):
                yield path, owner

    def _owners(self) -> dict[str, Any]:
        owners: dict[str, Any] = {}
        if not isinstance(self.pipe, nn.Module):
            owners = {"pipeline": self.pipe, type(self.pipe).__name__: type(self.pipe)}
        for name, denoiser in self.denoisers:
            for path, module in denoiser.named_modules(prefix=name or type(denoiser).__name__):
                owners[path] = module
        return owners

    def _state(self) -> dict[Key, Any]:
        state: dict[Key, Any] = {}
        for path, owner in self._owners().items():
            state.update({(path, name, False): value for name, value in vars(owner).items()})
        for path, owner in self._modules():
            state.update({(path, name, True): value for name, value in owner._modules.items()})
        return state

    def _get(self, state: dict[Key, Any], key: Key) -> Any:
        return state.get(key, _MISSING)


def _put(owner: Any, held: Any, name: str, was: Any) -> None:
    if isinstance(owner, type):
        if was is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, was)
    elif was is _MISSING:
        del held[name]
    else:
        held[name] = was


def _harmless(owner: Any, name: str, now: Any) -> bool:
    """Whether what was added says nothing but what the class says."""
    usual = getattr(type(owner), name, _MISSING)
    if now is usual:
        return True
    if getattr(now, "__self__", None) is owner and getattr(now, "__func__", None) is usual:
        return True
    return name == "_diffusers_hook" and not now.hooks
