"""Shared by the tests of the executor's life cycle: plans, snapshots, a reference by another route, a loop to drive."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from festina import Plan
from festina.executor.attach import denoisers_of
from festina.sites import component_sites, site_modules

STEPS = 4


def all_compute(pipe: Any, steps: int = STEPS) -> Plan:
    """The plan that changes nothing."""
    denoiser = denoisers_of(pipe)[0][1]
    return Plan.computing_all(type(denoiser).__name__, [site.name for site in component_sites(denoiser)], steps)


def random_plan(pipe: Any, seed: int = 0, steps: int = STEPS, density: float = 0.5, sites: Any = None) -> Plan:
    """A plan of computing and reusing drawn by a seed."""
    denoiser = denoisers_of(pipe)[0][1]
    names = [site.name for site in sites or component_sites(denoiser)]
    mask = np.random.default_rng(seed).random((steps, len(names))) < density
    return Plan.from_mask(type(denoiser).__name__, names, mask).canonical()


def reusing_plan(pipe: Any, steps: int = STEPS) -> Plan:
    """The plan that computes in the first step only: it shows whose values are served."""
    return random_plan(pipe, steps=steps, density=0.0)


def snapshot(pipe: Any) -> list[dict[str, int]]:
    """Every attribute of every object Festina may touch, by identity."""
    owners: list[Any] = [module for _, denoiser in denoisers_of(pipe) for module in denoiser.modules()]
    if not isinstance(pipe, nn.Module):
        owners += [pipe.scheduler, pipe]
    return [{name: id(value) for name, value in vars(owner).items()} for owner in owners]


class Serving:
    """The same schedule by another route: hooks that let everything compute and then swap the remembered output in.

    Attributes:
        row: row of the plan of the step under way; counted up by whoever drives the loop.
        branch: name of the denoiser call under way.
    """

    def __init__(self, denoisers: list[nn.Module], plan: Plan, row: int = 0) -> None:
        self.row, self.branch = row, ""
        self._first, self._plan = row, plan
        self._memory: dict[Any, tuple[int, Any]] = {}
        self._visits: dict[tuple[int, str], int] = {}
        self._handles = []
        for denoiser in denoisers:
            for column, site in enumerate(component_sites(denoiser)):
                hook = self._hook(id(denoiser), site.name, column)
                self._handles.append(site_modules(denoiser, site)[0].register_forward_hook(hook))

    def _hook(self, denoiser: int, site: str, column: int) -> Callable[..., Any]:
        def swap(module: nn.Module, args: Any, output: Any) -> Any:
            # Some denoisers send a call through the same module several times.
            visit = self._visits[denoiser, site] = self._visits.get((denoiser, site), -1) + 1
            slot = (denoiser, site, self.branch, visit)
            row, remembered = self._memory.get(slot, (-1, None))
            # A branch that was not called in a step in which the site computes has nothing to reuse.
            due = max((place for place in range(self.row + 1) if self._computes(place, column)), default=0)
            if remembered is None or row < due:
                row, remembered = self._memory[slot] = (self.row, output)
            return remembered

        return swap

    def _computes(self, row: int, column: int) -> bool:
        return row == self._first or self._plan.steps[row].actions[column] == "C"

    def begin_call(self, branch: str) -> None:
        """A denoiser is called for this branch."""
        self.branch = branch
        self._visits.clear()

    def end_step(self) -> None:
        """The next row of the plan."""
        self.row += 1

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def reference(pipe: Any, plan: Plan, row: int = 0, name: Callable[[int], str] = str) -> Iterator[Serving]:
    """Serve a pipeline by hooks: `name` says which branch a call is by its place in the step; `step` ends a step."""
    denoisers = [denoiser for _, denoiser in denoisers_of(pipe)]
    serving, kind = Serving(denoisers, plan, row), type(pipe.scheduler)
    calls = [0]
    original = kind.step

    def count(*_: Any) -> None:
        serving.begin_call(name(calls[0]))
        calls[0] += 1

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        serving.end_step()
        calls[0] = 0
        return original(self, *args, **kwargs)

    step.__signature__ = inspect.signature(original)  # pipelines read the names of its parameters
    handles = [denoiser.register_forward_pre_hook(count) for denoiser in denoisers]
    kind.step = step
    try:
        yield serving
    finally:
        kind.step = original
        serving.remove()
        for handle in handles:
            handle.remove()


class Ran:
    """Which step of the plan each site really ran in: by hooks on the first layer inside it.

    Attributes:
        steps: by site name, for each time it ran: step and branch.
    """

    def __init__(self, pipe: Any, run: Any) -> None:
        self.steps: dict[str, list[tuple[int, str]]] = {}
        self._handles = []
        for _, denoiser in denoisers_of(pipe):
            for site in component_sites(denoiser):
                module = site_modules(denoiser, site)[0]
                leaf = next(child for child in module.modules() if isinstance(child, nn.Linear))
                # A site that is a single layer is its own first layer: its hooks see calls, not whether it ran.
                if leaf is not module:
                    seen = self.steps.setdefault(site.name, [])
                    note = self._note(seen, run)
                    self._handles.append(leaf.register_forward_hook(note))

    @staticmethod
    def _note(seen: list[tuple[int, str]], run: Any) -> Callable[..., None]:
        return lambda *_: seen.append((run.clock.step, run.clock.branch))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class Loop:
    """A sampling loop like those of the pipelines, around one or more PixArt transformers, with everything in the open.

    Attributes:
        transformer, transformer_2: the denoisers; the second takes over at `boundary`, if there is one.
        scheduler: the scheduler.
        calls: for each step the prompts of its denoiser calls; the last entry holds for all further steps.
        fresh: whether the conditioning is made anew for each call.
        named: whether each call is made in a cache context that has the prompt's name.
        hidden: whether denoiser and scheduler are given copies of the timesteps.
        on_call: called before each denoiser call with the index of the step and of the call within it.
        on_step: called after each step with its index.
        seen: what the denoiser returned in each call of the last run.
        drive: the scheduler that the loop steps with; the pipeline's own if None.
    """

    def __init__(self, transformer: nn.Module, scheduler: Any, transformer_2: nn.Module | None = None) -> None:
        self.transformer, self.transformer_2, self.scheduler = transformer, transformer_2, scheduler
        self.calls: list[list[str]] = [["cond"]]
        self.boundary: int | None = None
        self.fresh = self.named = self.hidden = False
        self.drive: Callable[[], Any] = lambda: self.scheduler
        self.on_call: Callable[[int, int], None] = lambda step, call: None
        self.on_step: Callable[[int], None] = lambda step: None
        self.seen: list[Tensor] = []

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "transformer_2": self.transformer_2, "scheduler": self.scheduler}

    def maybe_free_model_hooks(self) -> None:
        """The end of a run, as in every pipeline."""

    def conditioning(self, prompt: str, rows: int = 1) -> Tensor:
        """The embedding of a prompt: noise from its letters."""
        generator = torch.Generator().manual_seed(sum(ord(letter) * 7**place for place, letter in enumerate(prompt)))
        return torch.randn(1, 5, 16, generator=generator).repeat(rows, 1, 1)

    @torch.no_grad()
    def __call__(
        self,
        steps: int = STEPS,
        begin: int = 0,
        end: int | None = None,
        tell: bool = False,
        rows: int = 1,
        seed: int = 0,
    ) -> Tensor:
        """Sample; `tell` sets the begin index as image-to-image pipelines do."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        scheduler = self.drive()
        scheduler.set_timesteps(steps)
        if tell:
            scheduler.set_begin_index(begin)
        latents = torch.randn(rows, 4, 8, 8, generator=generator)
        prompts = {name: self.conditioning(name, rows) for step in self.calls for name in step}
        self.seen = []
        for place, entry in enumerate(scheduler.timesteps[begin:end]):
            timestep = entry.clone() if self.hidden else entry
            after = self.boundary is not None and place + begin >= self.boundary
            model = self.transformer_2 if after else self.transformer
            scaled = getattr(scheduler, "scale_model_input", None)
            given = latents if scaled is None else scaled(latents, timestep)
            total = torch.zeros_like(latents)
            for number, name in enumerate(self.calls[min(place, len(self.calls) - 1)]):
                self.on_call(place, number)
                text = prompts[name].clone() if self.fresh else prompts[name]
                with model.cache_context(name) if self.named else nullcontext():
                    out = model(given, encoder_hidden_states=text, timestep=timestep.expand(rows), return_dict=False)[0]
                self.seen.append(out)
                total = total + out * (1.5 if number == 0 else -0.5)
            latents = scheduler.step(total, timestep, latents, return_dict=False)[0]
            self.on_step(place)
        self.maybe_free_model_hooks()
        return latents
