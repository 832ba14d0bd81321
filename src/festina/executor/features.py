"""Value kind `feature`: what a run of a U-Net's regions returns, kept as it is.

Serving everything below a level is DeepCache (arXiv 2312.00858), serving the encoder is Faster Diffusion (arXiv
2312.09608). Of a run only what is read outside of it is kept: what its last region returns, and those skip connections
that no region within the run takes up. The rest is answered with placeholders of the right shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from festina.executor.blending import read
from festina.executor.clock import StepClock
from festina.executor.serving import Column
from festina.executor.store import Store
from festina.plan import COMPUTE
from festina.sites.regions import kept_leaves, skips_taken


class FeatureRun:
    """Serves one region, or a run of consecutive ones."""

    def __init__(self, modules: Sequence[nn.Module], column: Column, clock: StepClock, store: Store) -> None:
        self.column, self.clock, self.store = column, clock, store
        self.originals = [module.forward for module in modules]
        self.key = ""
        self.served: tuple[tuple[tuple[Any, ...], Any], ...] | None = None
        self.leaves: list[list[Any]] = []
        self.forms: list[TreeSpec] = []
        self.taken: list[int] = []

    def forward(self, place: int) -> Callable[..., Any]:
        """The forward of the region at this place of the run."""
        last = place == len(self.originals) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.clock.passing:
                return self.originals[place](*args, **kwargs)
            if place == 0:
                self._decide()
            if self.served is not None:
                value = self._placed(place)
                if last:
                    self._leave()
                return value
            taken = skips_taken(args, kwargs)
            after = self.originals[place](*args, **kwargs)
            leaves, form = tree_flatten(after)
            self.leaves.append(leaves)
            self.forms.append(form)
            self.taken.append(taken)
            if last:
                self._remember()
            return after

        return forward

    def _decide(self) -> None:
        column, step = self.column, self.clock.step
        self.key = column.visit(self.clock)
        self.leaves, self.forms, self.taken = [], [], []
        action, entries = column.actions[step], self.store.get(self.clock.branch, self.key)
        self.served = None if action == COMPUTE else read(entries, action, step, column.basis)
        if self.served is None:
            column.computed[self.clock.signature] += 1
        else:
            column.served[self.clock.signature] += 1

    def _remember(self) -> None:
        leaves, forms, taken = self.leaves, self.forms, self.taken
        self.leaves, self.forms, self.taken = [], [], []
        step = self.clock.step
        if not self.column.held[step]:
            return
        kept = kept_leaves([len(each) for each in leaves], taken)
        value = tuple(
            (tuple(leaf if index in wanted else _placeholder(leaf) for index, leaf in enumerate(each)), form)
            for each, wanted, form in zip(leaves, kept, forms, strict=True)
        )
        self.store.put(self.clock.branch, self.key, step, value, self.column.held[step])

    def _placed(self, place: int) -> Any:
        assert self.served is not None
        leaves, form = self.served[place]
        return tree_unflatten([leaf.filled() if isinstance(leaf, Placeholder) else leaf for leaf in leaves], form)

    def _leave(self) -> None:
        self.served = None
        self.store.trim(self.clock.branch, self.key, self.column.held[self.clock.step])


@dataclass(frozen=True)
class Placeholder:
    """Stands for a tensor that nobody reads: one zero, spread out."""

    zero: Tensor
    shape: tuple[int, ...]

    def filled(self) -> Tensor:
        """A tensor of that shape without memory of its own."""
        return self.zero.expand(self.shape)


def _placeholder(leaf: Any) -> Any:
    return Placeholder(leaf.new_zeros(()), tuple(leaf.shape)) if isinstance(leaf, Tensor) else leaf
