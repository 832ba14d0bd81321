"""The methods that a benchmark tries, each over a range of its knobs.

Ranges go around the published values, from settings that hardly change a picture to such that visibly harm it. Knobs
that a method has besides keep their published defaults.
"""

from __future__ import annotations

from typing import Any

from festina import methods
from festina.benchmark.entries import Entry, Knobs, each, intervals, these
from festina.benchmark.step_levers import STEP_LEVERS
from festina.errors import FestinaError
from festina.methods.pab import kind_of
from festina.plan import Plan
from festina.sites import block_sites, component_sites, find_denoiser


def entries_named(names: str) -> tuple[Entry, ...]:
    """The entries of the catalogue with these names.

    Args:
        names: "all", or names with commas between them.

    Raises:
        FestinaError: there is no such method.
    """
    if names == "all":
        return CATALOGUE
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {entry.method: entry for entry in CATALOGUE}
    if unknown := [name for name in wanted if name not in known]:
        raise FestinaError(f"no such method: {', '.join(unknown)}; wanted 'all', or some of {', '.join(known)}.")
    if not wanted:
        raise FestinaError(f"no method; wanted 'all', or some of {', '.join(known)}.")
    return tuple(entry for name, entry in known.items() if name in wanted)


def _taylorseer(steps: int) -> tuple[Knobs, ...]:
    published: list[dict[str, Any]] = [{"interval": n, "order": order} for order in (1, 2) for n in (2, 3, 4, 5, 6, 8)]
    hermite = [{"interval": n, "order": 2, "basis": "hermite"} for n in (3, 4, 6)]
    newton = [{"interval": n, "order": 2, "basis": "newton"} for n in (3, 4, 6)]
    light = [{"interval": n, "order": 1, "sites": "last"} for n in (2, 3, 4, 6)]
    return tuple(knobs for knobs in (*published, *hermite, *newton, *light) if knobs["interval"] < steps)


def _make_taylorseer(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    basis, sites = knobs.get("basis", "taylor"), knobs.get("sites", "components")
    return methods.taylorseer(pipe, steps, knobs["interval"], knobs["order"], basis=basis, sites=sites)


def _make_pab(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    present = {kind_of(site) for site in component_sites(find_denoiser(pipe))}
    return methods.pab(pipe, steps, {kind: n for kind, n in knobs.items() if kind in present}, (100, 850))


def _tgate(steps: int) -> tuple[Knobs, ...]:
    gates = sorted({max(1, round(share * steps)) for share in (0.3, 0.4, 0.5, 0.6, 0.8)})
    return tuple({"gate_step": gate, "self_interval": interval} for interval in (1, 5) for gate in gates)


def _make_tgate(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    return methods.tgate(pipe, steps, knobs["gate_step"], knobs["self_interval"])


def _step_mask(steps: int) -> tuple[Knobs, ...]:
    return tuple({"warm_up": max(1, steps // 4), "interval": n, "first": 1} for n in (2, 3, 4, 6) if n < steps)


def _make_step_mask(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """A warm-up, then one computed step in so many."""
    warm_up = knobs["warm_up"]
    mask = [int(step < warm_up or (step - warm_up + 1) % knobs["interval"] == 0) for step in range(steps)]
    return methods.step_mask(pipe, mask, knobs["first"])


def _make_block_skipping(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """The middle blocks, so many of each hundred, left out of one step in so many."""
    count = len(block_sites(find_denoiser(pipe)))
    left_out = round(knobs["percent"] * count / 100)
    first = (count - left_out) // 2
    blocks = tuple(range(first, first + left_out))
    every = knobs["every"]
    skipping = {step: blocks for step in range(1, steps) if step % every == every - 1}
    return methods.block_skipping(pipe, steps, skipping)


def _deepcache(steps: int) -> tuple[Knobs, ...]:
    uniform = [{"interval": n, "branch": branch} for branch in (0, 1) for n in (2, 3, 5)]
    # The published centre is step 15 of 50.
    dense = [{"interval": n, "branch": 0, "centre": round(0.3 * steps)} for n in (3, 5)]
    return tuple(knobs for knobs in (*uniform, *dense) if knobs["interval"] < steps)


def _make_deepcache(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    centre = knobs.get("centre")
    return methods.deepcache(pipe, steps, knobs["interval"], knobs["branch"], centre is None, centre)


def _faster_diffusion(steps: int) -> tuple[Knobs, ...]:
    multiples = [{"keys": n, "parallel": parallel} for parallel in (False, True) for n in (2, 3, 4) if n < steps]
    return (*multiples, *({"keys": "published", "parallel": parallel} for parallel in (False, True)))


def _make_faster_diffusion(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    keys = None if knobs["keys"] == "published" else knobs["keys"]
    return methods.faster_diffusion(pipe, steps, keys, knobs["parallel"])


def _token_steps(steps: int) -> tuple[Knobs, ...]:
    intervals = [n for n in (3, 4, 6) if n < steps]
    return tuple({"interval": n, "ratio": ratio} for ratio in (0.1, 0.3) for n in intervals)


def _make_first_block_cache(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    return methods.first_block_cache(pipe, steps, knobs["threshold"], decider=knobs.get("decider", "call"))


def _dbcache(steps: int) -> tuple[Knobs, ...]:
    warm_up = min(8, steps // 5)
    kinds = [{"first": 2, "order": 0}, {"first": 2, "order": 1}, {"first": 4, "order": 0}]
    return tuple({"threshold": value, **kind, "warm_up": warm_up} for kind in kinds for value in (0.08, 0.15, 0.3))


def _make_dbcache(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    threshold, first, warm_up, order = (knobs[name] for name in ("threshold", "first", "warm_up", "order"))
    return methods.dbcache(pipe, steps, threshold, first, warm_up=warm_up, order=order)


def _make_magcache(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    return methods.magcache(pipe, steps, calibration, knobs["threshold"], knobs["longest"])


CATALOGUE: tuple[Entry, ...] = (
    Entry("fora", intervals(2, 3, 4, 5, 6), lambda pipe, steps, knobs, _: methods.fora(pipe, steps, knobs["interval"])),
    Entry("taylorseer", _taylorseer, _make_taylorseer),
    Entry(
        "pab",
        these(*({"spatial": n, "temporal": n + 1, "cross": across} for n, across in ((2, 4), (2, 6), (3, 6), (4, 8)))),
        _make_pab,
    ),
    Entry("tgate", _tgate, _make_tgate),
    Entry(
        "toca",
        _token_steps,
        lambda pipe, steps, knobs, _: methods.toca(pipe, steps, knobs["interval"], knobs["ratio"]),
    ),
    Entry(
        "duca",
        _token_steps,
        lambda pipe, steps, knobs, _: methods.duca(pipe, steps, knobs["interval"], knobs["ratio"]),
    ),
    Entry(
        "step_mask",
        _step_mask,
        _make_step_mask,
    ),
    Entry(
        "block_skipping",
        these(*({"percent": percent, "every": every} for percent, every in ((25, 3), (25, 2), (50, 3), (50, 2)))),
        _make_block_skipping,
    ),
    Entry("deepcache", _deepcache, _make_deepcache),
    Entry("faster_diffusion", _faster_diffusion, _make_faster_diffusion),
    Entry(
        "first_block_cache",
        these(
            *({"threshold": value} for value in (0.05, 0.08, 0.12, 0.2, 0.3, 0.5)),
            *({"threshold": value, "decider": "row"} for value in (0.12, 0.3)),
        ),
        _make_first_block_cache,
    ),
    Entry("dbcache", _dbcache, _make_dbcache),
    Entry(
        "teacache",
        each("threshold", 0.1, 0.2, 0.4, 0.6, 0.8, 1.2),
        lambda pipe, steps, knobs, calibration: methods.teacache(pipe, steps, knobs["threshold"], calibration),
        needs_calibration=True,
    ),
    Entry(
        "dicache",
        each("threshold", 0.05, 0.1, 0.2, 0.4, 0.8),
        lambda pipe, steps, knobs, _: methods.dicache(pipe, steps, knobs["threshold"]),
    ),
    Entry(
        "confident_taylor",
        each("threshold", 0.01, 0.03, 0.06, 0.13, 0.3),
        lambda pipe, steps, knobs, _: methods.confident_taylor(pipe, steps, knobs["threshold"]),
    ),
    Entry(
        "smoothcache",
        each("threshold", 0.08, 0.12, 0.18, 0.25, 0.35, 0.5),
        lambda pipe, steps, knobs, calibration: methods.smoothcache(pipe, steps, calibration, knobs["threshold"]),
        needs_calibration=True,
    ),
    Entry(
        "magcache",
        these(*({"threshold": value, "longest": most} for value, most in ((0.06, 3), (0.12, 3), (0.24, 5), (0.5, 5)))),
        _make_magcache,
        needs_calibration=True,
    ),
    Entry(
        "cachequant",
        intervals(2, 3, 4, 5, 8),
        lambda pipe, steps, knobs, calibration: methods.cachequant(pipe, steps, calibration, knobs["interval"]),
        needs_calibration=True,
    ),
    *STEP_LEVERS,
)
"""Every method, in the order of the pages."""
