"""The plan: everything that changes about a sampling run, as one small, strict, versioned JSON file.

A plan holds a header (denoiser class, its sites, how the plan came about, what was measured) and one record per
sampling step. A record says where its step lies on the noise axis and what each site does in it:

    `C`      compute
    `R`      reuse: serve the last computed value
    `1`-`9`  forecast: extrapolate from the last k + 1 computed values (`festina.forecasts`)
    `S`      skip: the identity (a zero residual)
    `G`      the plan's gate decides during the run: compute or serve (`festina.gates`)
    `T`      compute for some tokens, and reuse for all others (`festina.tokens`)

This module imports no model code and no torch. The text of the file is made and read by `festina.plan_file`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.forecasts import BASES, NEWTON, TAYLOR
from festina.gates import Gate
from festina.names import OUTPUT, parse
from festina.noise import even_noise as even_noise
from festina.noise import nearest, respaced
from festina.strict import brief, is_number, is_unicode, plain
from festina.strict import write_whole as write_whole
from festina.tokens import Tokens, check_shares

COMPUTE, REUSE, SKIP, GATED, PARTIAL = "C", "R", "S", "G", "T"
FORECASTS = "123456789"
ACTIONS = COMPUTE + REUSE + SKIP + GATED + PARTIAL + FORECASTS

ALL, CONDITIONAL, MERGED = "all", "conditional", "merged"
BRANCHES = (ALL, CONDITIONAL, MERGED)
"""Which branches of guidance the denoiser runs for: all that the pipeline asks for; only the one with the caption,
whose answer stands for the other; or only one, with the mean of what was stored of both (T-GATE, arXiv 2404.02747)."""

MAX_BYTES = 16 * 2**20
"""Largest plan file that is read; a plan of 1000 steps and 1000 sites has about 1 MB."""

MAX_STEPS, MAX_SITES, MAX_NAME = 10_000, 20_000, 512


@dataclass(frozen=True)
class Step:
    """One sampling step.

    Attributes:
        noise: place on the noise axis as a share of the training schedule, 1 = pure noise, 0 = clean; falls from
            step to step. Records belong to noise levels: `Plan.resample` looks a new step up by it.
        actions: one character of `ACTIONS` per site of the plan, in the plan's order of sites.
        branches: which branches of guidance run, one of `BRANCHES`.
        injected: how much of the initial latents is added to the latents after this step.
        ahead: for how many of the steps that follow the denoiser answers too, all in one call (Faster Diffusion, arXiv
            2312.09608). For U-Nets, where these serve all that comes of the latents.
        shares: for each site whose action is `T` the share of its tokens that is computed, in [0, 1], and 0 for all
            others; () in a step without `T`.
    """

    noise: float
    actions: str
    branches: str = ALL
    injected: float = 0.0
    ahead: int = 0
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One measured figure of a plan.

    Attributes:
        name: what was measured, e.g. "reward".
        value: the figure.
        unit: its unit, "" for a pure number.
        conditions: prompts, hardware, library versions, ... in a sentence.
    """

    name: str
    value: float
    unit: str
    conditions: str

    def __post_init__(self) -> None:
        words = (self.name, self.unit, self.conditions)
        want(all(isinstance(word, str) for word in words), "the words of a measurement are texts")
        want(is_number(self.value), f"the measured {self.name!r} is no finite number")


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

    Raises:
        FestinaError: on construction, if the records do not fit the sites, the noise levels do not fall, an action is
            `G` without a gate or `T` without a choice of tokens, or something could not be written to a plan file and
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

    def __post_init__(self) -> None:
        want(0 < len(self.sites) <= MAX_SITES, f"{len(self.sites)} sites; a plan has 1 to {MAX_SITES}")
        want(0 < len(self.steps) <= MAX_STEPS, f"{len(self.steps)} steps; a plan has 1 to {MAX_STEPS}")
        _name(self.denoiser, "'denoiser'")
        _name(self.method, "'method'")
        short = isinstance(self.sampler, str) and len(self.sampler) <= MAX_NAME
        want(short, f"'sampler' is a text of at most {MAX_NAME} letters")
        for site in self.sites:
            _name(site, "a site")
            parse(site)
        object.__setattr__(self, "settings", plain(self.settings))
        want(len(set(self.sites)) == len(self.sites), "a plan names each site once; found a name twice")
        last = math.inf
        for index, step in enumerate(self.steps):
            if len(step.actions) != len(self.sites):
                raise FestinaError(
                    f"step {index} has {len(step.actions)} actions for {len(self.sites)} sites; wanted one each."
                )
            if unknown := set(step.actions) - set(ACTIONS):
                raise FestinaError(
                    f"step {index} has unknown actions {sorted(unknown)}; wanted letters of {ACTIONS!r}."
                )
            want(step.branches in BRANCHES, f"step {index} has branches {step.branches!r:.40}, none of {BRANCHES}")
            want(is_number(step.injected), f"what is injected after step {index} is no finite number")
            whole = type(step.ahead) is int and 0 <= step.ahead <= MAX_STEPS
            want(whole, f"the steps that step {index} answers ahead are no whole number from 0 to {MAX_STEPS}")
            check_shares(index, step.shares, [action == PARTIAL for action in step.actions])
            if not 0 <= step.noise <= 1 or not step.noise < last:
                raise FestinaError(
                    f"step {index} lies at noise {step.noise}; wanted shares in [0, 1] that fall from step to step."
                )
            last = step.noise
        want(self.basis in BASES, f"unknown basis of forecasts {self.basis!r:.40}; wanted one of {', '.join(BASES)}")
        gated = any(GATED in step.actions for step in self.steps)
        want(self.gate is not None or not gated, "some actions are 'G', but there is no gate to decide")
        chosen = any(PARTIAL in step.actions for step in self.steps)
        want(self.tokens is not None or not chosen, "some actions are 'T', but nothing says which tokens")
        texts = [self.denoiser, self.method, self.sampler, *self.sites, json.dumps(self.settings, ensure_ascii=False)]
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

    def table(self) -> NDArray[np.str_]:
        """The schedule: actions as a (steps, sites) array of single characters."""
        return np.array([list(step.actions) for step in self.steps])

    def mask(self) -> NDArray[np.bool_]:
        """Which site computes in which step, bool (steps, sites)."""
        computes: NDArray[np.bool_] = self.table() == COMPUTE
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
        order 0 is `R`; what a gate may have computed does not count. Where nothing is gated there is no gate, and where
        all forecasts are the same in every basis, it is the usual one. `T` with a share of 0 is `R`, and where there
        is no `T`, no tokens are chosen. `ahead` is cut to what one call can answer (`festina.answering`). Two plans
        with the same canonical form run identically.
        """
        from festina.answering import cut_ahead

        parents = enclosing_sites(self.sites)
        computed = [0] * len(self.sites)
        rows = []
        for index, step in enumerate(self.steps):
            before = self.steps[index - 1].branches
            anew = index == 0 or (step.branches != before and before != ALL)
            row = [COMPUTE] * len(self.sites) if anew else list(step.actions)
            for site in _outermost_first(parents):
                action = row[site]
                if any(row[parent] not in COMPUTE + GATED for parent in parents[site]):
                    action = REUSE
                elif action in FORECASTS:
                    order = min(int(action), computed[site] - 1)
                    action = str(order) if order > 0 else REUSE
                elif action == PARTIAL and not step.shares[site]:
                    action = REUSE
                row[site] = action
                certain = all(row[parent] == COMPUTE for parent in parents[site])
                computed[site] += action == COMPUTE and certain
            # A step without `T` has no shares.
            kept = [share if action == PARTIAL else 0.0 for action, share in zip(row, step.shares, strict=False)]
            rows.append(replace(step, actions="".join(row), shares=tuple(kept) if PARTIAL in row else ()))
        rows = cut_ahead(self.sites, rows)
        used = set().union(*(step.actions for step in rows))
        gate, tokens = self.gate if GATED in used else None, self.tokens if PARTIAL in used else None
        # A line through two values is one line, whether written by Newton or by Taylor.
        order = max([int(action) for action in used & set(FORECASTS)] + [gate.order if gate else 0])
        plain_basis = order == 0 or (order == 1 and self.basis == TAYLOR)
        basis = NEWTON if plain_basis else self.basis
        return replace(self, steps=tuple(rows), gate=gate, tokens=tokens, basis=basis)

    def key(self) -> str:
        """SHA-256 (hex) of what the plan does: denoiser, sites, canonical actions, and how forecasts and the gate work
        where there are any. Provenance does not enter."""
        plan = self.canonical()
        what = [plan.denoiser, *plan.sites, *(step.actions for step in plan.steps)]
        what += [] if plan.basis == NEWTON else [plan.basis]
        if any(step.branches != ALL for step in plan.steps):
            what += [step.branches for step in plan.steps]
        if any(step.injected for step in plan.steps):
            what += [repr(float(step.injected)) for step in plan.steps]
        if any(step.ahead for step in plan.steps):
            what += [f"{step.ahead} ahead" for step in plan.steps]
        if plan.tokens is not None:
            what += [repr([float(share) for share in step.shares]) for step in plan.steps]
            what += [json.dumps(plan.tokens.to_record(), sort_keys=True)]
        what += [] if plan.gate is None else [json.dumps(plan.gate.to_record(), sort_keys=True)]
        return hashlib.sha256("\n".join(what).encode()).hexdigest()

    def resample(self, steps: int) -> Plan:
        """The plan for another number of steps: each new step takes the record nearest in noise level.

        New steps are spread over the same range of noise, spaced like the old ones. Ties go to the noisier record.
        Nothing is answered ahead (`Step.ahead`): how far that can go depends on the steps that follow, now others.

        Raises:
            FestinaError: `steps` is less than 1 or more than a plan can have.
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
        return replace(self, steps=records, settings=settings, measured=())

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
        where = Path(path)
        try:
            with where.open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
            text = content.decode("utf-8")
        except (OSError, ValueError) as error:
            raise FestinaError(f"cannot read the plan {where}: {brief(error)}") from None
        if len(content) > MAX_BYTES:
            raise FestinaError(f"{where}: larger than a plan can be ({MAX_BYTES} bytes).")
        try:
            return Plan.from_json(text)
        except FestinaError as error:
            raise FestinaError(f"{where}: {error}") from None


def enclosing_sites(sites: Sequence[str]) -> list[list[int]]:
    """For each site the indices of the sites that contain it, read off the names (`festina.names`)."""
    names = [parse(site) for site in sites]
    wide = [(index, name) for index, name in enumerate(names) if name.kind != OUTPUT]
    return [[index for index, outer in wide if outer.encloses(inner)] for inner in names]


def _outermost_first(parents: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(parents)), key=lambda site: len(parents[site]))


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _name(value: Any, what: str) -> None:
    want(isinstance(value, str) and 0 < len(value) <= MAX_NAME, f"{what} is a text of 1 to {MAX_NAME} letters")


def want(holds: bool, message: str) -> None:
    """Raise a `FestinaError` that says what a valid plan has, unless it holds."""
    if not holds:
        raise FestinaError(f"not a valid plan: {message}.")
