"""What a benchmark tries of the methods that decide which network calls happen at all, and by which sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from festina import methods
from festina.benchmark.entries import Carried, Entry, Knobs, Settings, each, intervals, these
from festina.calibration import Calibration
from festina.calibration.coherence import measure_coherence
from festina.calibration.gaussian import generated_statistics
from festina.calibration.running import call_arguments
from festina.errors import FestinaError
from festina.plan import Plan
from festina.samplers import Frame, PlanScheduler, SolverTable
from festina.samplers.gits import gits_noises
from festina.samplers.olss import fit_on_policy
from festina.samplers.own import own_table
from festina.samplers.recording import Trajectory, record
from festina.samplers.teleportation import GaussianStatistics
from festina.samplers.times import GRIDS, table_on, uniform_time

_FIT_PICTURES = 4
"""Pictures of the calibration on which factors of replayed answers are measured, and samplers fitted."""

_TEACHER_STEPS = 60
"""Fewest steps of the run that samplers are fitted to; it has three times those of the benchmark if these are more."""


def _frame(pipe: Any) -> Frame:
    if getattr(pipe, "scheduler", None) is None:
        raise FestinaError("a solver wants a pipeline with a scheduler.")
    return PlanScheduler.from_scheduler(pipe.scheduler).frame


def _calls(steps: int, *shares: float) -> tuple[int, ...]:
    """Numbers of network calls, three at least and fewer than the run has steps."""
    return tuple(sorted({max(3, round(share * steps)) for share in shares} & set(range(3, steps))))


def _guidance_interval(steps: int) -> tuple[Knobs, ...]:
    """As shares of the run; the published interval, in noise levels, leaves out its beginning and its end."""
    shares = ((0.0, 0.5), (0.0, 0.75), (0.25, 1.0), (0.25, 0.75))
    ends = dict.fromkeys((round(first * (steps - 1)), round(last * (steps - 1))) for first, last in shares)
    return tuple({"first": first, "last": last} for first, last in ends)


def _make_guidance_table(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """Guided in every so many steps only, there by more."""
    factors = [0.0 if step % knobs["every"] else knobs["factor"] for step in range(steps)]
    return methods.guidance_table(pipe, factors)


def _make_ltc_accel(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """Replaying after a first share of the steps, by the factor 1 or one that is measured on the first pictures."""
    interval = methods.released_interval(steps, knobs["start"])
    if knobs["factors"] == "one":
        return methods.ltc_accel(pipe, steps, interval)
    prompts, seeds = zip(*calibration.pictures[:_FIT_PICTURES], strict=True)
    replayed = methods.replayed_steps(interval)
    measured = measure_coherence(pipe, prompts, steps, replayed, seeds, calibration.guidance, calibration.call)
    return methods.ltc_accel(pipe, steps, interval, coherence=measured)


def _solver(steps: int) -> tuple[Knobs, ...]:
    """Solvers on even times, and one on other grids, each with fewer network calls than the run has steps."""
    kinds: list[dict[str, Any]] = [
        {"solver": "data", "order": 1},
        {"solver": "data", "order": 2},
        {"solver": "data", "order": 3},
        {"solver": "unipc_bh2", "order": 3},
        {"solver": "adams_bashforth", "order": 2},
        {"solver": "data", "order": 2, "grid": "uniform_log_snr"},
        {"solver": "data", "order": 2, "grid": "arctan"},
    ]
    return tuple({**kind, "calls": calls} for kind in kinds for calls in _calls(steps, 0.25, 0.4, 0.6, 0.8))


def _make_solver(pipe: Any, steps: int, knobs: Knobs, calibration: Any) -> Plan:
    """A solver's table as a plan; UniPC with its corrector."""
    frame, grid = _frame(pipe), knobs.get("grid", "uniform_time")
    corrected = knobs["solver"].startswith("unipc")
    table = table_on(frame, GRIDS[grid](frame, knobs["calls"]), knobs["solver"], knobs["order"], corrected)
    # Even times are those before a flow model's shift, which may depend on the size of the picture.
    before = frame.family == "flow" and grid == "uniform_time"
    return methods.solver(pipe, replace(table, before_shift=before))


@dataclass(frozen=True)
class _Taught:
    """A fine run of some pictures, and what draws the same ones in so many steps."""

    teacher: Trajectory
    draw: Callable[[int], None]


def _draw(pipe: Any, calibration: Calibration, pictures: int, steps: int) -> None:
    for picture in calibration.pictures[:pictures]:
        pipe(**call_arguments(pipe, picture, steps, calibration.guidance, calibration.call))


def _teach(pipe: Any, steps: int, calibration: Calibration) -> _Taught:
    """A first-order run on even times of the first pictures."""
    frame, draw, fine = _frame(pipe), partial(_draw, pipe, calibration, _FIT_PICTURES), max(_TEACHER_STEPS, 3 * steps)
    table = table_on(frame, uniform_time(frame, fine), order=1)
    return _Taught(record(pipe, table, partial(draw, fine)), draw)


def _counts(*shares: float) -> Settings:
    return lambda steps: tuple({"calls": calls} for calls in _calls(steps, *shares))


def _make_gits(pipe: Any, steps: int, knobs: Knobs, taught: _Taught) -> Plan:
    return methods.solver(pipe, table_on(_frame(pipe), gits_noises(taught.teacher, knobs["calls"])))


def _make_olss(pipe: Any, steps: int, knobs: Knobs, taught: _Taught) -> Plan:
    """Weights fitted to the few-step sampler's own outputs, on even steps of the teacher."""
    calls = knobs["calls"]
    nodes = [round(place * taught.teacher.calls / calls) for place in range(calls + 1)]
    return methods.solver(pipe, fit_on_policy(pipe, taught.teacher, nodes, partial(taught.draw, calls)))


@dataclass(frozen=True)
class _Measured:
    """The pipeline's own sampler, and the statistics of what it draws."""

    table: SolverTable
    statistics: GaussianStatistics


def _measure(pipe: Any, steps: int, calibration: Calibration) -> _Measured:
    """Of the pictures of the calibration; of the covariance as many directions as half of these."""
    table = own_table(pipe, steps, partial(_draw, pipe, calibration, 1, steps))
    prompts, seeds = zip(*calibration.pictures, strict=True)
    rank = len(prompts) // 2
    guidance, call = calibration.guidance, calibration.call
    return _Measured(table, generated_statistics(pipe, table, prompts, rank, seeds, guidance, call))


def _make_teleportation(pipe: Any, steps: int, knobs: Knobs, measured: _Measured) -> Carried:
    return Carried(methods.teleportation(pipe, measured.table, knobs["left_out"]), measured.statistics)


STEP_LEVERS: tuple[Entry, ...] = (
    Entry(
        "guidance_interval",
        _guidance_interval,
        lambda pipe, steps, knobs, _: methods.guidance_interval(pipe, steps, knobs["first"], knobs["last"]),
    ),
    Entry(
        "guidance_table",
        these(*({"every": n, "factor": factor} for n, factor in ((2, 1.0), (2, 1.5), (2, 2.0), (3, 2.0)))),
        _make_guidance_table,
    ),
    Entry(
        "guidance_reuse",
        intervals(2, 3, 4),
        lambda pipe, steps, knobs, _: methods.guidance_reuse(pipe, steps, knobs["interval"]),
    ),
    Entry(
        "joint_conditions",
        lambda steps: tuple({"first": first, "last": steps - 1} for first in (0, steps // 4, steps // 2)),
        lambda pipe, steps, knobs, _: methods.joint_conditions(pipe, steps, knobs["first"], knobs["last"]),
    ),
    Entry(
        "ltc_accel",
        these(*({"start": start, "factors": kind} for kind in ("one", "measured") for start in (0.25, 0.45, 0.65))),
        _make_ltc_accel,
        needs_calibration=True,
    ),
    Entry("solver", _solver, _make_solver),
    Entry("gits", _counts(0.25, 0.4, 0.6, 0.8), _make_gits, needs_calibration=True, prepare=_teach),
    Entry("olss", _counts(0.15, 0.25, 0.4, 0.6), _make_olss, needs_calibration=True, prepare=_teach),
    Entry(
        "teleportation",
        lambda steps: tuple({"left_out": left} for left in (1, 2, 4, 6) if left < steps),
        _make_teleportation,
        needs_calibration=True,
        prepare=_measure,
    ),
    Entry(
        "t_stitch",
        each("share", 0.2, 0.4, 0.6, 0.8),
        lambda pipe, steps, knobs, _: methods.t_stitch(pipe, steps, knobs["share"]),
    ),
)
"""The entries, in the order of the pages."""
