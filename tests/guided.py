"""Shared by the tests of guidance: a bare loop that guides in one call or in two, and plans of components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from festina import Plan
from festina.methods.guidance import guided
from festina.sites import component_sites

KINDS = {"a": "all", "c": "conditional", "m": "merged", "d": "difference"}


def table(model: nn.Module, branches: str, letters: str = "", factors: Sequence[float] | None = None) -> Plan:
    """A plan of all components: letters of KINDS and an action for each step."""
    sites = tuple(site.name for site in component_sites(model))
    plan = Plan.computing_all(type(model).__name__, sites, len(branches))
    if letters:
        rows = [[letter == "C"] * len(sites) for letter in letters]
        plan = Plan.from_mask(plan.denoiser, sites, torch.tensor(rows).numpy())
    return guided(plan, factors, [KINDS[letter] for letter in branches])


class Bare:
    """Calls of a PixArt transformer with and without a caption, each step at latents of its own.

    Attributes:
        model: the transformer.
        calls: 1 for both in one call, the one without first, or 2 for a call each, the one with first.
        same: whether all steps have the latents and the time of the first.
        on_step: called after each step with its index.
    """

    def __init__(self, model: nn.Module, calls: int, same: bool = False) -> None:
        self.model, self.calls, self.same = model, calls, same
        self.on_step: Callable[[int], None] = lambda step: None
        generator = torch.Generator().manual_seed(5)
        # With a caption, and without.
        self.texts = torch.randn(2, 1, 5, 16, generator=generator)

    @torch.no_grad()
    def __call__(self, run: Any, steps: int, begin: int = 0) -> list[tuple[Tensor, Tensor]]:
        """For each step what the pipeline is given as the answer with, and without a caption."""
        if run is not None:
            run.start(steps)
            run.begin_at(begin)
        found = []
        for step in range(begin, steps):
            place = 0 if self.same else step
            sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(place))
            time = torch.tensor([900 - 100 * place])
            captioned, empty = self.texts
            if self.calls == 1:
                text = torch.cat([empty, captioned])
                answer = self._ask(torch.cat([sample] * 2), text, time.expand(2))
                other, mine = answer.chunk(2)
            else:
                mine, other = self._ask(sample, captioned, time), self._ask(sample, empty, time)
            found.append((mine, other))
            if run is not None:
                run.next_step()
            self.on_step(step)
        return found

    def _ask(self, sample: Tensor, text: Tensor, time: Tensor) -> Tensor:
        answer: Tensor = self.model(sample, encoder_hidden_states=text, timestep=time, return_dict=False)[0]
        return answer


def ran(model: nn.Module, run: Any) -> list[tuple[int, int]]:
    """Step and rows of every call that really runs, as they come."""
    seen: list[tuple[int, int]] = []
    layer = next(module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    layer.register_forward_pre_hook(
        lambda _, given: None if run.clock.passing else seen.append((run.clock.step, len(given[0])))
    )
    return seen
