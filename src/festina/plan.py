"""The plan: everything that changes about a sampling run, as one small, strict, versioned JSON file.

A plan holds a header (denoiser class, its sites, how the plan came about, what was measured) and one record per
sampling step. A record says where its step lies on the noise axis and what each site does in it:

    `C`      compute
    `R`      reuse: serve the last computed value
    `1`-`9`  forecast: extrapolate from the last k + 1 computed values (`festina.forecasts`)
    `S`      skip: the identity (a zero residual)
    `G`      the plan's gate decides during the run: compute or serve (`festina.gates`)
    `T`      compute for some tokens, and reuse for all others (`festina.tokens`)

This module imports no model code and no torch. Steps are in `festina.records`, the normal form in `festina.canonical`;
the text of the file is made and read by `festina.plan_file`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from festina.canonical import canonical, key_of
from festina.errors import FestinaError
from festina.forecasts import BASES, NEWTON
from festina.gates import Gate
from festina.names import parse
from festina.noise import even_noise, nearest, respaced
from festina.records import (
    ACTIONS,
    ALL,
    BRANCHES,
    COMPUTE,
    CONDITIONAL,
    FORECASTS,
    GATED,
    MAX_NAME,
    MAX_STEPS,
    MERGED,
    PARTIAL,
    REUSE,
    SKIP,
    Measurement,
    Step,
    check_steps,
    enclosing_sites,
    want,
)
from festina.strict import is_unicode, plain, read_whole, write_whole
from festina.tokens import Tokens

if TYPE_CHECKING:
    from festina.samplers.table import SolverTable

__all__ = [
    "ACTIONS",
    "ALL",
    "BRANCHES",
    "COMPUTE",
    "CONDITIONAL",
    "FORECASTS",
    "GATED",
    "MAX_BYTES",
    "MAX_NAME",
    "MAX_SITES",
    "MAX_STEPS",
    "MERGED",
    "PARTIAL",
    "REUSE",
    "SKIP",
    "Measurement",
    "Plan",
    "Step",
    "enclosing_sites",
    "even_noise",
    "want",
    "write_whole",
]

MAX_BYTES = 16 * 2**20
"""Largest plan file that is read; a plan of 1000 steps and 1000 sites has about 1 MB."""

MAX_SITES = 20_000


@dataclass(frozen=True)
class Plan:
    """What a denoiser computes, reuses or predicts in each step of a run.

    Attributes:
        denoiser: class name of the denoiser the plan is for.
        sites: names of its sites, see `festina.names`.
        steps: one record per sampling step, noisiest first.
        method: what made the plan, e.g. "fora" or "search".
        settings: the maker's settings: JSON values by name.
        sampler: class name of the scheduler the plan was made with, "" if none.
        measured: figures measured with this plan.
        basis: how forecasts extrapolate, one of `festina.forecasts.BASES`.
        gate: what decides where an action is `G`; None where there is no such action.
        tokens: what chooses the tokens where an action is `T`; None where there is no such action.
        solver: at which noise levels the network is called and what sample is made of its outputs: a table with one
            network call for each step of the plan (`festina.samplers`); None to leave that to the pipeline's scheduler.

    Raises:
        FestinaError: on construction, if the records do not fit the sites, the noise levels do not fall, an action is
            `G` without a gate or `T` without a choice of tokens, the solver's table makes another number of network
            calls than there are steps, or something could not be written to a plan file and
            read back (a name that is empty, too long or not Unicode, a setting that is not JSON). What can be
            constructed can be saved and loaded.
    """

    denoiser: str
    sites: tuple[str, ...]
    steps: tuple[Step, ...]
    method: str = "manual"
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = ""
    measured: tuple[Measurement, ...] = ()
    basis: str = NEWTON
    gate: Gate | None = None
    tokens: Tokens | None = None
    solver: SolverTable | None = None

    def __post_init__(self) -> None:
        want(0 < len(self.sites) <= MAX_SITES, f"{len(self.sites)} sites; a plan has 1 to {MAX_SITES}")
        _name(self.denoiser, "'denoiser'")
        _name(self.method, "'method'")
        short = isinstance(self.sampler, str) and len(self.sampler) <= MAX_NAME
        want(short, f"'sampler' is a text of at most {MAX_NAME} letters")
        for site in self.sites:
            _name(site, "a site")
            parse(site)
        object.__setattr__(self, "settings", plain(self.settings))
        want(len(set(self.sites)) == len(self.sites), "a plan names each site once; found a name twice")
        check_steps(len(self.sites), self.steps)
        want(self.basis in BASES, f"unknown basis of forecasts {self.basis!r:.40}; wanted one of {', '.join(BASES)}")
        gated = any(GATED in step.actions for step in self.steps)
        want(self.gate is not None or not gated, "some actions are 'G', but there is no gate to decide")
        chosen = any(PARTIAL in step.actions for step in self.steps)
        want(self.tokens is not None or not chosen, "some actions are 'T', but nothing says which tokens")
        calls = len(self.steps) if self.solver is None else self.solver.calls
        want(calls == len(self.steps), f"the solver's table makes {calls} network calls in {len(self.steps)} steps")
        texts = [self.denoiser, self.method, self.sampler, *self.sites, json.dumps(self.settings, ensure_ascii=False)]
        texts += [step.model for step in self.steps if step.model]
        texts += [text for figure in self.measured for text in (figure.name, figure.unit, figure.conditions)]
        want(is_unicode(texts), "a text in it has letters that are not Unicode (lone surrogates)")

    @staticmethod
    def from_mask(
        denoiser: str,
        sites: Sequence[str],
        mask: NDArray[np.bool_],
        noise: Sequence[float] | None = None,
        method: str = "manual",
        settings: Mapping[str, Any] | None = None,
    ) -> Plan:
        """A plan of computing (True) and reusing (False).

        Args:
            denoiser: class name of the denoiser.
            sites: names of the sites.
            mask: bool array (steps, sites).
            noise: noise level per step; evenly spaced from 1 if not given.
            method, settings: see `Plan`.

        Raises:
            FestinaError: the mask is not (steps, sites).
        """
        if mask.ndim != 2 or mask.shape[1] != len(sites):
            raise FestinaError(f"a mask of shape {mask.shape} for {len(sites)} sites; wanted (steps, {len(sites)}).")
        levels = even_noise(len(mask)) if noise is None else noise
        rows = ("".join(COMPUTE if bit else REUSE for bit in row) for row in mask)
        steps = tuple(Step(float(level), row) for level, row in zip(levels, rows, strict=True))
        return Plan(denoiser, tuple(sites), steps, method, dict(settings or {}))

    @staticmethod
    def computing_all(denoiser: str, sites: Sequence[str], steps: int) -> Plan:
        """The plan that changes nothing: every site computes in each of `steps` steps."""
        return Plan.from_mask(denoiser, sites, np.ones((steps, len(sites)), dtype=bool), method="uncached")

    @property
    def models(self) -> frozenset[str]:
        """Names of the denoisers that are called in the place of the pipeline's own."""
        called = (step for place, step in enumerate(self.steps) if not (step.replays and place))
        return frozenset(step.model for step in called if step.model)

    @property
    def calls(self) -> int:
        """In how many steps a denoiser is called, its own or another, and not the last answer replayed."""
        return sum(not (step.replays and place) for place, step in enumerate(self.steps))

    def table(self) -> NDArray[np.str_]:
        """The schedule: actions as a (steps, sites) array of single characters."""
        return np.array([list(step.actions) for step in self.steps])

    def mask(self) -> NDArray[np.bool_]:
        """Which site computes in which step, bool (steps, sites)."""
        called = np.array([step.visits for step in self.steps])
        computes: NDArray[np.bool_] = (self.table() == COMPUTE) & called[:, None]
        return computes

    def computed_steps(self, site: str | None = None) -> tuple[int, ...]:
        """The steps in which `site` computes; without a site, those in which any site does.

        Raises:
            FestinaError: the plan has no such site.
        """
        mask = self.mask()
        if site is None:
            return tuple(int(step) for step in np.flatnonzero(mask.any(axis=1)))
        if site not in self.sites:
            raise FestinaError(f"this plan has no site {site!r}; its sites are {_some(self.sites)}.")
        return tuple(int(step) for step in np.flatnonzero(mask[:, self.sites.index(site)]))

    def canonical(self) -> Plan:
        """The same run in its one normal form.

        The first step computes everything, as does one that runs for other branches than the step before it, unless it
        is the first to run for fewer. A site inside a site that does not compute has no action of its own and is
        written `R`. A forecast of order k needs k + 1 computed values; with fewer it falls to what they allow, and
        order 0 is `R`; what a gate may have computed does not count, nor does what was before a step that computes
        everything for other branches. Where nothing is gated there is no gate, and where
        all forecasts are the same in every basis, it is the usual one. `T` with a share of 0 is `R`, and where there
        is no `T`, no tokens are chosen. `ahead` is cut to what one call can answer (`festina.answering`). A step that
        replays has nothing to say of sites, and runs for the branches of the step before it; the first replays nothing.
        Without a difference of guidance to use again all branches run. Nor has a step that calls another model anything
        to say of sites, and the pipeline's own computes everything after it. The solver takes no more of the outputs
        before a step than fit it (`festina.samplers.composing`). Two plans with this form in common are one run.
        """
        return canonical(self)

    def replaying(self, factors: Mapping[int, float]) -> Plan:
        """This plan with the denoiser's call left out of some steps, where its last answer is given again.

        Args:
            factors: by step what the answer is multiplied with there, see `Step.replay`.

        Raises:
            FestinaError: the plan has no such step, or it is the first, which has nothing to replay.
        """
        if outside := [step for step in factors if not 0 < step < len(self.steps)]:
            raise FestinaError(f"nothing can be replayed in step {outside[0]}; wanted 1 to {len(self.steps) - 1}.")
        steps = (
            replace(step, replay=factors[place]) if place in factors else step for place, step in enumerate(self.steps)
        )
        return replace(self, steps=tuple(steps), measured=())

    def key(self) -> str:
        """SHA-256 (hex) of what the plan does: denoiser, sites, canonical steps, and how forecasts and the gate work
        where there are any. Provenance does not enter."""
        return key_of(self.canonical())

    def resample(self, steps: int) -> Plan:
        """The plan for another number of steps: each new step takes the record nearest in noise level.

        New steps are spread over the same range of noise, spaced like the old ones. Ties go to the noisier record.
        Nothing is answered ahead (`Step.ahead`): how far that can go depends on the steps that follow, now others.
        What replays does so over the same range of noise, by the same factor: in several steps where there are more.
        A solver's table gets levels between its own (`festina.samplers.composing.resampled`).

        Raises:
            FestinaError: `steps` is less than 1 or more than a plan can have, or the solver's table holds for its own
                number of steps only.
        """
        if not 1 <= steps <= MAX_STEPS:
            raise FestinaError(f"cannot resample a plan to {steps} steps; wanted 1 to {MAX_STEPS}.")
        if steps == len(self.steps):
            return self
        old = np.array([step.noise for step in self.steps])
        records = tuple(
            replace(self.steps[nearest(old, level)], noise=level, ahead=0) for level in respaced(old, steps)
        )
        settings = {**self.settings, "resampled_from_steps": len(self.steps)}
        solver = self.solver
        if solver is not None:
            from festina.samplers.composing import resampled

            solver = resampled(solver, steps)
        return replace(self, steps=records, settings=settings, measured=(), solver=solver)

    def to_json(self) -> str:
        """The plan file's text; equal plans give equal text."""
        from festina.plan_file import text_of

        return text_of(self)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan file's text, strictly.

        Raises:
            FestinaError: not JSON, another schema version, a key too many or too few, or a value of the wrong kind.
        """
        from festina.plan_file import read_text

        return read_text(text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan file, whole or not at all.

        Raises:
            FestinaError: the folder does not exist or cannot be written, or the plan is too large to be read back.
        """
        text = self.to_json()
        if len(text.encode()) > MAX_BYTES:
            raise FestinaError(f"cannot write {path}: larger than a plan can be ({MAX_BYTES} bytes).")
        write_whole(Path(path), text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan file.

        Raises:
            FestinaError: the file cannot be read or is not a valid plan.
        """
        return read_whole(Path(path), "plan", MAX_BYTES, Plan.from_json)


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _name(value: Any, what: str) -> None:
    want(isinstance(value, str) and 0 < len(value) <= MAX_NAME, f"{what} is a text of 1 to {MAX_NAME} letters")
