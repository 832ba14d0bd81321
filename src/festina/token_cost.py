"""What computing a site for some of its tokens costs: multiply-accumulates per token, and what is kept to choose them.

Tokens are chosen by how much they are attended to (`festina.tokens`). If a later step needs the map of an attention, it
is made once more where the attention is computed, head by head: another QK^T, half of the attention's products.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from festina.errors import FestinaError
from festina.plan import COMPUTE, PARTIAL, Plan, enclosing_sites
from festina.sites import Site, component_sites, resolve, self_attentions
from festina.sites.discovery import CROSS, FEED_FORWARD
from festina.tokens import IMPORTANCE, computed_tokens, kept_after
from festina.trace import CallTrace, Macs, Returned

BY_TOKEN = (FEED_FORWARD, CROSS)
"""Roles of components whose output for a token depends on no other token of the picture."""

_OF_THE_TEXT = frozenset({"k", "v", "kv", "key", "value"})
"""Words in the names of layers that make keys and values, which in a cross-attention are of the text."""

_SCORE = 4
"""Bytes of a number kept for choosing."""


@dataclass(frozen=True)
class TokenPrice:
    """What a site costs by token.

    Attributes:
        tokens: tokens that a call gives it, of one row, in each of its visits.
        each: MACs for one of them, in all rows.
        attention: name of the block's first self-attention, "" if it has none.
    """

    tokens: tuple[int, ...]
    each: Macs
    attention: str

    def passed_by(self, share: float) -> Macs:
        """What a call saves by computing no more than this share of the tokens."""
        return self.each * sum(count - computed_tokens(share, count) for count in self.tokens)


@dataclass(frozen=True)
class SideTensor:
    """Something that is kept between steps to choose tokens.

    Attributes:
        place: when in a call it is made or renewed, as a place in the order of all modules' ends.
        during, after: whether it is there after that place in each step, and after the step.
        bytes: its size.
    """

    place: int
    during: tuple[bool, ...]
    after: tuple[bool, ...]
    bytes: int


def token_prices(denoiser: nn.Module, traced: CallTrace) -> dict[str, TokenPrice]:
    """What the components that can be computed by token cost, by name; those that a call does not reach are missing.

    A cross-attention makes the keys and values of the text whatever the tokens are.
    """
    attentions = self_attentions(denoiser)
    found = {}
    for site in component_sites(denoiser):
        returned = traced.returned.get(site.path, ())
        shapes = [tensor.shape for tensors in returned for tensor in tensors]
        if site.role not in BY_TOKEN or not returned or any(len(shape) != 3 for shape in shapes):
            continue
        tokens = tuple(shape[1] for shape in shapes)
        whole, times = traced.within[site.path] - _of_the_text(site, traced), max(1, sum(tokens))
        each = Macs(whole.linear // times, whole.attention // times)
        attention = attentions.get(site.block)
        found[site.name] = TokenPrice(tokens, each, "" if attention is None else attention.name)
    return found


def partial_sites(plan: Plan) -> dict[str, NDArray[np.bool_]]:
    """In which steps of a canonical plan each site computes for some tokens, bool (steps,); only those that ever do."""
    partial = plan.table() == PARTIAL
    return {site: partial[:, index] for index, site in enumerate(plan.sites) if partial[:, index].any()}


def map_steps(plan: Plan, attention: str, sites: Sequence[str]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """In which steps an attention is computed, and after which its map is kept.

    Args:
        plan: a plan in canonical form.
        attention: name of the attention, whether the plan has it or not.
        sites: the sites whose tokens are chosen by its map.
    """
    table, known = plan.table(), partial_sites(plan)
    # A site that the plan does not name computes wherever its block does.
    outer = enclosing_sites((*plan.sites, attention) if attention not in plan.sites else plan.sites)
    own = plan.sites.index(attention) if attention in plan.sites else len(plan.sites)
    involved = [*outer[own], *([own] if attention in plan.sites else [])]
    # Where the denoiser is not called nothing computes, also what the plan does not name.
    called = np.array([step.visits for step in plan.steps])
    computes = (table[:, involved] == COMPUTE).all(axis=1) & called
    read = np.logical_or.reduce([known[site] for site in sites])
    return tuple(computes.tolist()), kept_after(read.tolist(), computes.tolist())


def maps_of(plan: Plan, attentions: Mapping[str, str]) -> dict[str, tuple[tuple[bool, ...], tuple[bool, ...]]]:
    """`map_steps` of each attention whose map a canonical plan needs, by name.

    Args:
        plan: the plan.
        attentions: the attention of each site that computes for some tokens; "" or missing where there is none.

    Raises:
        FestinaError: a site's tokens are to be chosen by an attention that there is not.
    """
    if plan.tokens is None or plan.tokens.choice != IMPORTANCE:
        return {}
    sites: dict[str, list[str]] = {}
    for site in partial_sites(plan):
        if not attentions.get(site):
            raise FestinaError(
                f"the tokens of {site!r} are to be chosen by how much they are attended to, but its block has no "
                f"self-attention. Choose them at random."
            )
        sites.setdefault(attentions[site], []).append(site)
    return {attention: map_steps(plan, attention, read) for attention, read in sites.items()}


def age_steps(plan: Plan, site: str) -> tuple[bool, ...]:
    """After which steps of a canonical plan the ages of a site's tokens are kept: from one that computes some of them
    to the last such one before all are."""
    if plan.tokens is None or not plan.tokens.age:
        return (False,) * len(plan.steps)
    column = plan.table()[:, plan.sites.index(site)]
    wanted = kept_after((column == PARTIAL).tolist(), (column == COMPUTE).tolist())
    there, found = False, []
    for step, action in enumerate(column):
        there = (there or action == PARTIAL) and wanted[step]
        found.append(there)
    return tuple(found)


def side_tensors(plan: Plan, denoiser: nn.Module, traced: CallTrace) -> Iterator[SideTensor]:
    """What a run by the plan keeps to choose tokens, for one branch.

    Args:
        plan: a plan in canonical form.
        denoiser: the denoiser.
        traced: one call of it.
    """
    names = tuple(partial_sites(plan))
    blocks, attentions = resolve(denoiser, names), self_attentions(denoiser)
    own = {site.name: attentions[site.block].name for site in blocks if site.block in attentions}
    for site in names:
        kept = age_steps(plan, site)
        for place, returned in _visits(site, traced):
            yield SideTensor(place, kept, kept, _score_bytes(returned))
    for attention, (computes, kept) in maps_of(plan, own).items():
        there, during, after = False, [], []
        for step, computed in enumerate(computes):
            during.append(there or (computed and kept[step]))
            there = during[-1] and kept[step]
            after.append(there)
        for place, returned in _visits(attention, traced):
            yield SideTensor(place, tuple(during), tuple(after), _score_bytes(returned))


def _visits(path: str, traced: CallTrace) -> Iterator[tuple[int, Sequence[Returned]]]:
    places = [place for place, visited in enumerate(traced.visits) if visited == path]
    return zip(places, traced.returned.get(path, ()), strict=True)


def _score_bytes(returned: Sequence[Returned]) -> int:
    """Bytes of a score per token of what a module returned, in one tensor or in one per stream."""
    apart = {tensor.same_as: tensor.shape for tensor in returned}
    return sum(int(np.prod(shape[:-1])) * _SCORE for shape in apart.values())


def _of_the_text(site: Site, traced: CallTrace) -> Macs:
    """What a cross-attention multiplies without looking at the picture's tokens."""
    total = Macs(0, 0)
    if site.role == CROSS:
        for path, macs in traced.within.items():
            inner = path.removeprefix(f"{site.path}.")
            if path != inner and "." not in inner and _OF_THE_TEXT & set(re.split(r"[_\d]+", inner.lower())):
                total += macs
    return total
