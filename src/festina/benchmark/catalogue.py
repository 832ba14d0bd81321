"""The methods that a benchmark tries, each over a range of its knobs.

Ranges go around the published values, from settings that hardly change a picture to such that visibly harm it. Knobs
that a method has besides keep their published defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from festina import methods
from festina.calibration.coherence import measure_coherence
from festina.errors import FestinaError
from festina.methods.pab import kind_of
from festina.plan import Plan
from festina.samplers import PlanScheduler
from festina.samplers.times import GRIDS, table_on
from festina.sites import block_sites, component_sites, find_denoiser

Knobs = Mapping[str, Any]
"""A method's settings: JSON values by name."""

_REPLAYED_PICTURES = 4
"""Pictures on which factors of replayed answers are measured."""

Calibrate = Callable[[], Any]
"""Gives the calibration of the pipeline: made when it is first asked for, the same from then on."""


@dataclass(frozen=True)
class Entry:
    """A method and what of it is tried.

    Attributes:
        method: its name.
        settings: its knobs for a number of sampling steps, one mapping per plan.
        make: the plan of a pipeline, a number of steps, knobs, and the calibration or None.
        needs_calibration: whether it is made from a calibration.
    """

    method: str
    settings: Callable[[int], tuple[Knobs, ...]]
    make: Callable[[Any, int, Knobs, Any], Plan]
    needs_calibration: bool = False


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


def _each(knob: str, *values: Any) -> Callable[[int], tuple[Knobs, ...]]:
    """One knob at each of these values."""
    return lambda steps: tuple({knob: value} for value in values)


def _these(*settings: Knobs) -> Callable[[int], tuple[Knobs, ...]]:
    return lambda steps: settings


def _intervals(*values: int) -> Callable[[int], tuple[Knobs, ...]]:
    """Intervals that are shorter than the run."""
    return lambda steps: tuple({"interval": value} for value in values if value < steps)


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


def _make_ltc_accel(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """Replaying after a first share of the steps, by the factor 1 or one that is measured on the first pictures."""
    interval = methods.released_interval(steps, knobs["start"])
    if knobs["factors"] == "one":
        return methods.ltc_accel(pipe, steps, interval)
    prompts, seeds = zip(*calibration.pictures[:_REPLAYED_PICTURES], strict=True)
    replayed = methods.replayed_steps(interval)
    measured = measure_coherence(pipe, prompts, steps, replayed, seeds, calibration.guidance, calibration.call)
    return methods.ltc_accel(pipe, steps, interval, coherence=measured)


def _guidance_interval(steps: int) -> tuple[Knobs, ...]:
    """As shares of the run; the published interval, in noise levels, leaves out its beginning and its end."""
    shares = ((0.0, 0.5), (0.0, 0.75), (0.25, 1.0), (0.25, 0.75))
    ends = dict.fromkeys((round(first * (steps - 1)), round(last * (steps - 1))) for first, last in shares)
    return tuple({"first": first, "last": last} for first, last in ends)


def _make_guidance_table(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """Guided in every so many steps only, there by more."""
    factors = [0.0 if step % knobs["every"] else knobs["factor"] for step in range(steps)]
    return methods.guidance_table(pipe, factors)


def _solver(steps: int) -> tuple[Knobs, ...]:
    """Solvers on even times, and one on other grids, each with fewer network calls than the run has steps."""
    kinds: list[dict[str, Any]] = [
        {"solver": "data", "order": 2},
        {"solver": "data", "order": 3},
        {"solver": "unipc_bh2", "order": 3},
        {"solver": "adams_bashforth", "order": 4},
        {"solver": "data", "order": 2, "grid": "uniform_log_snr"},
        {"solver": "data", "order": 2, "grid": "arctan"},
    ]
    counts = sorted({max(3, round(share * steps)) for share in (0.25, 0.4, 0.6)} & set(range(3, steps)))
    return tuple({**kind, "calls": calls} for kind in kinds for calls in counts)


def _make_solver(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """A solver's table as a plan; UniPC with its corrector."""
    if getattr(pipe, "scheduler", None) is None:
        raise FestinaError("a solver wants a pipeline with a scheduler.")
    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    grid = knobs.get("grid", "uniform_time")
    corrected = knobs["solver"].startswith("unipc")
    table = table_on(frame, GRIDS[grid](frame, knobs["calls"]), knobs["solver"], knobs["order"], corrected)
    # Even times are those before a flow model's shift, which may depend on the size of the picture.
    before = frame.family == "flow" and grid == "uniform_time"
    return methods.solver(pipe, replace(table, before_shift=before))


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "fora", _intervals(2, 3, 4, 5, 6), lambda pipe, steps, knobs, _: methods.fora(pipe, steps, knobs["interval"])
    ),
    Entry("taylorseer", _taylorseer, _make_taylorseer),
    Entry(
        "pab",
        _these(*({"spatial": n, "temporal": n + 1, "cross": across} for n, across in ((2, 4), (2, 6), (3, 6), (4, 8)))),
        _make_pab,
    ),
    Entry("tgate", _tgate, _make_tgate),
    Entry(
        "guidance_interval",
        _guidance_interval,
        lambda pipe, steps, knobs, _: methods.guidance_interval(pipe, steps, knobs["first"], knobs["last"]),
    ),
    Entry(
        "guidance_table",
        _these(*({"every": n, "factor": factor} for n, factor in ((2, 1.0), (2, 1.5), (2, 2.0), (3, 2.0)))),
        _make_guidance_table,
    ),
    Entry(
        "guidance_reuse",
        _intervals(2, 3, 4),
        lambda pipe, steps, knobs, _: methods.guidance_reuse(pipe, steps, knobs["interval"]),
    ),
    Entry(
        "joint_conditions",
        lambda steps: tuple({"first": first, "last": steps - 1} for first in (0, steps // 4, steps // 2)),
        lambda pipe, steps, knobs, _: methods.joint_conditions(pipe, steps, knobs["first"], knobs["last"]),
    ),
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
        _these(*({"percent": percent, "every": every} for percent, every in ((25, 3), (25, 2), (50, 3), (50, 2)))),
        _make_block_skipping,
    ),
    Entry("solver", _solver, _make_solver),
    Entry(
        "t_stitch",
        _each("share", 0.2, 0.4, 0.6, 0.8),
        lambda pipe, steps, knobs, _: methods.t_stitch(pipe, steps, knobs["share"]),
    ),
    Entry("deepcache", _deepcache, _make_deepcache),
    Entry("faster_diffusion", _faster_diffusion, _make_faster_diffusion),
    Entry(
        "first_block_cache",
        _these(
            *({"threshold": value} for value in (0.05, 0.08, 0.12, 0.2, 0.3, 0.5)),
            *({"threshold": value, "decider": "row"} for value in (0.12, 0.3)),
        ),
        _make_first_block_cache,
    ),
    Entry("dbcache", _dbcache, _make_dbcache),
    Entry(
        "teacache",
        _each("threshold", 0.1, 0.2, 0.4, 0.6, 0.8, 1.2),
        lambda pipe, steps, knobs, calibration: methods.teacache(pipe, steps, knobs["threshold"], calibration),
        needs_calibration=True,
    ),
    Entry(
        "dicache",
        _each("threshold", 0.05, 0.1, 0.2, 0.4, 0.8),
        lambda pipe, steps, knobs, _: methods.dicache(pipe, steps, knobs["threshold"]),
    ),
    Entry(
        "confident_taylor",
        _each("threshold", 0.01, 0.03, 0.06, 0.13, 0.3),
        lambda pipe, steps, knobs, _: methods.confident_taylor(pipe, steps, knobs["threshold"]),
    ),
    Entry(
        "smoothcache",
        _each("threshold", 0.08, 0.12, 0.18, 0.25, 0.35, 0.5),
        lambda pipe, steps, knobs, calibration: methods.smoothcache(pipe, steps, calibration, knobs["threshold"]),
        needs_calibration=True,
    ),
    Entry(
        "magcache",
        _these(*({"threshold": value, "longest": most} for value, most in ((0.06, 3), (0.12, 3), (0.24, 5), (0.5, 5)))),
        _make_magcache,
        needs_calibration=True,
    ),
    Entry(
        "ltc_accel",
        _these(*({"start": start, "factors": kind} for kind in ("one", "measured") for start in (0.25, 0.45, 0.65))),
        _make_ltc_accel,
        needs_calibration=True,
    ),
    Entry(
        "cachequant",
        _intervals(2, 3, 4, 5, 8),
        lambda pipe, steps, knobs, calibration: methods.cachequant(pipe, steps, calibration, knobs["interval"]),
        needs_calibration=True,
    ),
)
"""Every method, in the order of the pages."""
