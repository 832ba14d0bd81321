"""The first population: heuristic schedules in the families that ECAD starts from (arXiv 2506.15682, appendix)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.methods.fora import every
from festina.plan import Plan
from festina.search.genome import Genome
from festina.search.settings import SearchSettings
from festina.sites import Site

INTERVALS = (2, 3, 4, 5, 7, 10, 20)
"""Intervals of the FORA families."""

GATE_INTERVALS = (1, 2, 3, 5)
"""Intervals at which cross-attention computes before the gate step."""

GRID = 8
"""Most values of "how many blocks" and of "how many steps" in the families of blocks."""

Mask = NDArray[np.bool_]


def kind_of(site: Site) -> str:
    """The kind of a site: "self-attention", "cross-attention", "feed-forward", "convolution" or, for a whole block or
    region, "block" or "region".

    Joint attention, as in FLUX, counts as self-attention. FLUX thus has ECAD's three families: all, attention only,
    MLP only.
    """
    return site.role


def seed_pool(genome: Genome) -> tuple[Plan, ...]:
    """Every heuristic plan, each once, FORA on all components first, the uncached plan not among them.

    Families: FORA on everything; FORA on one kind of component with the rest always computed; cross-attention that
    computes at an interval up to a gate step and never after (TGATE without its averaging, arXiv 2404.02747); and one
    kind reused in k evenly spaced or k middle blocks on m evenly spaced, centred steps.
    """
    plans: dict[bytes, Plan] = {}
    for method, settings, mask in _families(genome):
        bits = genome.bits(mask)
        if not bits.all():
            plan = Plan.from_mask(genome.denoiser, genome.names, genome.mask(bits), method=method, settings=settings)
            plans.setdefault(bits.tobytes(), plan)
    return tuple(plans.values())


def choose_seeds(pool: Sequence[Plan], count: int, price: Callable[[Plan], int]) -> tuple[Plan, ...]:
    """`count` plans of a pool (all of it, if it has fewer), spread over cost.

    Plans of FORA on everything are always in: they span the costs and are what a search has to beat. The others are
    taken at even quantiles of the pool's MACs, since nothing is known of their quality yet. If there are more FORA
    plans than places, they are chosen by the same rule.
    """
    if len(pool) <= count:
        return tuple(pool)
    kept = [plan for plan in pool if plan.method == "fora"]
    if len(kept) >= count:
        return _spread(kept, count, price)
    others = [plan for plan in pool if plan.method != "fora"]
    return (*kept, *_spread(others, count - len(kept), price))


def first_population(
    genome: Genome, settings: SearchSettings, price: Callable[[Plan], int], start: Sequence[Plan] = ()
) -> Mask:
    """The first population as bits (population, genes), every row another.

    It holds the plans of `start`, then the chosen heuristics, then fair coins for the places left. ECAD puts the
    uncached plan in, although its constraint rules it out and it loses every tournament; here that place goes to a
    plan that can have children, and the uncached plan is measured beside the search.

    Args:
        genome: what is searched.
        settings: population, minimal difference, family and random seed.
        price: MACs of a plan.
        start: plans to begin with, such as the front of a search on a similar model.

    Raises:
        FestinaError: a plan of `start` does not fit the genome, or the genome has fewer distinct feasible candidates
            than the population has places.
    """
    rows: dict[bytes, Mask] = {}

    def add(bits: Mask) -> None:
        if genome.difference(bits) >= settings.min_difference and len(rows) < settings.population:
            rows.setdefault(bits.tobytes(), bits)

    for plan in start:
        add(genome.encode(plan))
    if settings.seeds == "heuristics":
        feasible = [
            plan for plan in seed_pool(genome) if genome.difference(genome.encode(plan)) >= settings.min_difference
        ]
        for plan in choose_seeds(feasible, settings.population, price):
            add(genome.encode(plan))
    coins = np.random.default_rng(settings.seed)
    for _ in range(100 * settings.population):
        if len(rows) == settings.population:
            break
        add(coins.random(genome.length) < 0.5)
    if len(rows) < settings.population:
        raise FestinaError(
            f"found only {len(rows)} distinct feasible candidates of {genome.length} genes for a population of "
            f"{settings.population}; lower the population or min_difference."
        )
    return np.array(list(rows.values()))


def _families(genome: Genome) -> Iterator[tuple[str, dict[str, Any], Mask]]:
    kinds = [kind_of(site) for site in genome.sites]
    present = list(dict.fromkeys(kinds))
    for interval in INTERVALS:
        settings = {"interval": interval, "countdown": False}
        yield "fora", settings, _where(genome, every(genome.steps, interval), np.ones(len(kinds), bool))
    for kind in present:
        of_kind = np.array([name == kind for name in kinds])
        for interval in INTERVALS:
            yield (
                "fora_kind",
                {"kind": kind, "interval": interval},
                _where(genome, every(genome.steps, interval), of_kind),
            )
        if kind == "cross-attention":
            yield from _gated(genome, of_kind)
        yield from _blocks(genome, kind, of_kind)


def _gated(genome: Genome, of_kind: Mask) -> Iterator[tuple[str, dict[str, Any], Mask]]:
    for gate in range(1, genome.steps):
        for interval in GATE_INTERVALS:
            computes = every(genome.steps, interval) & (np.arange(genome.steps) < gate)
            yield "gated", {"gate": gate, "interval": interval}, _where(genome, computes, of_kind)


def _blocks(genome: Genome, kind: str, of_kind: Mask) -> Iterator[tuple[str, dict[str, Any], Mask]]:
    blocks = list(dict.fromkeys((site.stack, site.block) for site in genome.sites))
    place = np.array([blocks.index((site.stack, site.block)) for site in genome.sites])
    for count in _grid(len(blocks)):
        start = (len(blocks) - count) // 2
        choices = {"spread": spaced(len(blocks), count), "middle": tuple(range(start, start + count))}
        for layout, chosen in choices.items():
            sites = of_kind & np.isin(place, chosen)
            for reused in _grid(genome.steps - 1):
                computes = np.ones(genome.steps, dtype=bool)
                computes[[1 + step for step in spaced(genome.steps - 1, reused)]] = False
                settings = {"kind": kind, "layout": layout, "blocks": count, "steps": reused}
                yield "blocks", settings, _where(genome, computes, sites)


def spaced(places: int, count: int) -> tuple[int, ...]:
    """`count` of `places` positions, evenly spaced and centred: the middles of `count` equal parts."""
    return tuple((2 * part + 1) * places // (2 * count) for part in range(count))


def _grid(most: int) -> list[int]:
    return sorted({max(1, round(most * part / GRID)) for part in range(1, GRID + 1)})


def _where(genome: Genome, computes: Mask, sites: Mask) -> Mask:
    """The table in which `sites` compute in the steps marked in `computes` and all others always."""
    mask: Mask = computes[:, None] | ~sites[None, :]
    assert mask.shape == (genome.steps, len(genome.sites))
    return mask


def _spread(plans: Sequence[Plan], count: int, price: Callable[[Plan], int]) -> tuple[Plan, ...]:
    if not plans:
        return ()
    by_cost = sorted(plans, key=lambda plan: (price(plan), plan.key()))
    places = np.linspace(0, len(by_cost) - 1, min(count, len(by_cost))).round().astype(int)
    return tuple(by_cost[place] for place in places)
