"""What step-level levers buy on a pipeline that ships, at equal network calls.

Draws the same captions from the same noise with the pipeline's own scheduler at several numbers of steps; with some
steps replayed (LTC-Accel with measured factors, replay with the factor 1), carried on in the latents (with the weight 1
and the released ratio, or with measured weights) or deleted from the grid, each with everything computed and with every
second call cached; with guidance in an interval, by a table or by its last difference; with a smaller denoiser in the
first steps (T-Stitch, where one ships); and with the first steps left out, the noise carried over them by Gaussian
statistics (teleportation). Prints, in Markdown, network calls, MACs, the reward of the judge, the PSNR to the uncached
pictures and to those of many steps, and the Frechet distance of the judge's features to those of real renders. Nothing
is timed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from models import computing_all
from timing import Figures, at_least, device_named, judging_command, markdown, run_program, save_record, tell
from torch import Tensor, nn

from festina import methods
from festina.calibration.coherence import measure_coherence
from festina.calibration.gaussian import generated_statistics
from festina.cli.judging import fidelity_of, load_reward
from festina.errors import FestinaError
from festina.executor import accelerate
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.reward import scores_of
from festina.plan import Plan
from festina.samplers import SolverTable
from festina.samplers.latent_scale import fit_latent_scales
from festina.samplers.own import own_table
from festina.samplers.teleportation import GaussianStatistics
from festina.search import Workload
from festina.search.generation import generate, strength_and_call
from festina.sites import find_denoiser
from festina.zoo import SHIPPED, call_arguments, load, load_denoiser
from festina.zoo.loading import small_for
from festina.zoo.shipped import shipped

FIRST_SEED, CAPTIONS, FIT_CAPTIONS = 6_000_000, 600, 601
STARTS = (0.25, 0.65)
"""Shares of the run after which every second step makes no call."""

_FACTOR_PICTURES = 4
"""Pictures that factors of replayed answers, and weights of extrapolated latents, are measured on."""

LEFT_OUT = (1, 2, 4, 6)
"""First steps that teleportation leaves out."""


@dataclass(frozen=True)
class Way:
    """One way to run the pipeline.

    Attributes:
        lever: what is used.
        name: with which setting.
        steps: sampling steps that the pipeline is asked for.
        plan: None for the untouched sampler.
        models, statistics: as `festina.accelerate` takes them.
    """

    lever: str
    name: str
    steps: int
    plan: Plan | None = None
    models: Mapping[str, nn.Module] | None = None
    statistics: GaussianStatistics | None = None

    @property
    def calls(self) -> int:
        """Steps in which a denoiser is called."""
        return self.steps if self.plan is None else self.plan.calls


@dataclass(frozen=True)
class Row:
    """What a way reaches; MACs per picture, PSNR in dB, None for the same pictures."""

    lever: str
    name: str
    calls: int
    macs: int
    reward: float
    psnr_uncached: float | None
    psnr_converged: float | None
    frechet: float


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    asked = _parser().parse_args(arguments)
    rows = measure(asked)
    likeness = ("PSNR to uncached", f"PSNR to {asked.reference_steps} steps")
    heads = ("lever", "setting", "network calls", "MACs per picture", "reward", *likeness, "Frechet distance")
    cells = [
        (
            row.lever,
            row.name,
            row.calls,
            f"{row.macs / 1e9:.2f} G",
            f"{row.reward:.3f}",
            _decibels(row.psnr_uncached),
            _decibels(row.psnr_converged),
            f"{row.frechet:.0f}",
        )
        for row in rows
    ]
    print(markdown(heads, cells))
    found = {"rows": [asdict(row) for row in rows]}
    save_record(asked, "levers", found, torch.device(asked.device))
    return found


def measure(asked: argparse.Namespace) -> list[Row]:
    """Draw and judge every way.

    Raises:
        FestinaError: no such pipeline.
    """
    ours = shipped(asked.name)
    if ours is None:
        raise FestinaError(f"{asked.name!r} does not ship; there are {', '.join(SHIPPED)}.")
    device = device_named(asked.device)
    pipe = load(asked.name, device)
    captions = ours.captions(asked.images, CAPTIONS)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(captions)))
    work = Workload(captions, seeds, asked.steps, asked.guidance, asked.batch, call_arguments(pipe))
    fit = ours.captions(asked.fit_images, FIT_CAPTIONS, without=captions)
    reward, fidelity = load_reward("judge", asked.device, asked.name), fidelity_of(asked.name, captions, device)
    uncached = generate(pipe, work.pictures(), work)
    converged = generate(pipe, work.pictures(), replace(work, steps=asked.reference_steps))
    rows = []
    for way in ways(pipe, asked.name, work, fit):
        if asked.levers and way.lever not in asked.levers:
            continue
        pictures, macs = drawn(pipe, way, work)
        score = sum(scores_of(reward, pictures, captions, asked.batch)) / len(captions)
        distance = frechet_distance(fidelity.features(pictures), fidelity.reference)
        likeness = (_psnr(pictures, uncached), _psnr(pictures, converged))
        rows.append(Row(way.lever, way.name, way.calls, macs, score, *likeness, distance))
        tell(f"{way.lever}, {way.name}: {score:.3f} at {way.calls} calls")
    return rows


def drawn(pipe: Any, way: Way, work: Workload) -> tuple[Tensor, int]:
    """Pictures, and the denoiser's MACs per picture of the last batch's run."""
    plan = way.plan or computing_all(find_denoiser(pipe), way.steps)
    with accelerate(pipe, plan, way.models or {}, way.statistics) as run:
        pictures = generate(pipe, work.pictures(), replace(work, steps=way.steps))
        rows = len(work.pictures()) - (len(work.pictures()) - 1) // work.batch * work.batch
        return pictures, round(run.report().macs / rows)


def ways(pipe: Any, name: str, work: Workload, fit: Sequence[str]) -> Iterator[Way]:
    """Every way there is."""
    steps = work.steps
    called = {steps - len(_left(steps, start)) for start in STARTS} | {steps - left for left in LEFT_OUT}
    counts = sorted(called | {round(share * steps) for share in (0.25, 0.4, 0.5)} | {steps})
    for count in counts:
        yield Way("fewer steps", f"{count} steps", count)
    yield from _skipping(pipe, work, fit)
    yield from _guided(pipe, steps)
    device = next(find_denoiser(pipe).parameters()).device
    if small := {known: load_denoiser(source, device) for known, source in small_for(name).items()}:
        for share in (0.2, 0.4, 0.6, 0.8, 1.0):
            yield Way("T-Stitch", f"small for {share:.0%}", steps, methods.t_stitch(pipe, steps, share), small)
    yield from _teleported(pipe, work, fit)


def _skipping(pipe: Any, work: Workload, fit: Sequence[str]) -> Iterator[Way]:
    """Steps without a call, in five ways, each with and without a cache."""
    steps, table = work.steps, _own_table(pipe, work)
    for start in STARTS:
        left = _left(steps, start)
        if not left:
            continue
        measured = _factors(pipe, work, fit, left)
        going_on = _with_call(table, left, "extrapolate")
        tables = {
            "extrapolated latents": going_on,
            "extrapolated latents, measured": _with_weights(pipe, work, fit, going_on),
            "deleted steps": _with_call(table, left, "delete"),
        }
        for interval, words in ((1, ""), (2, ", every second call cached")):
            after = f"after {start:.0%}{words}"
            plan = _cached(pipe, steps, left, interval)
            yield Way("replay", after, steps, plan.replaying(dict.fromkeys(left, 1.0)))
            yield Way("LTC-Accel", after, steps, plan.replaying(measured))
            for lever, changed in tables.items():
                schedule = methods.fora(pipe, changed.calls, interval)
                made = methods.solver(pipe, changed)
                rows = zip(made.steps, schedule.steps, strict=True)
                steps_made = tuple(replace(step, actions=row.actions) for step, row in rows)
                yield Way(lever, after, changed.calls, replace(made, steps=steps_made))
    for interval in (2, 3):
        yield Way("FORA", f"interval {interval}", steps, methods.fora(pipe, steps, interval))


def _cached(pipe: Any, steps: int, left: Sequence[int], interval: int) -> Plan:
    """FORA's schedule over the steps that make a call; the others have none of their own."""
    called = [step for step in range(steps) if step not in left]
    rows = iter(methods.fora(pipe, len(called), interval).steps)
    plan = computing_all(find_denoiser(pipe), steps)
    made = [
        step if place in left else replace(step, actions=next(rows).actions) for place, step in enumerate(plan.steps)
    ]
    return replace(plan, steps=tuple(made), method="fora")


def _guided(pipe: Any, steps: int) -> Iterator[Way]:
    """Less guidance, and other guidance."""
    for first, last in ((0, steps // 2), (0, 3 * steps // 4), (steps // 4, steps - 1), (steps // 4, 3 * steps // 4)):
        plan = methods.guidance_interval(pipe, steps, first, last)
        yield Way("guidance interval", f"steps {first} to {last}", steps, plan)
    for every, factor in ((2, 1.0), (2, 1.5), (2, 2.0), (3, 2.0)):
        factors = [0.0 if step % every else factor for step in range(steps)]
        plan = methods.guidance_table(pipe, factors)
        yield Way("guidance table", f"every {every}, times {factor:g}", steps, plan)
    for interval in (2, 3, 4):
        plan = methods.guidance_reuse(pipe, steps, interval)
        yield Way("guidance difference", f"every {interval}", steps, plan)


def _teleported(pipe: Any, work: Workload, fit: Sequence[str]) -> Iterator[Way]:
    """The first steps left out: the noise carried by statistics of drawn pictures, and as if all pictures were grey."""
    table = _own_table(pipe, work)
    strength, call = strength_and_call(pipe, work, fit)
    statistics = generated_statistics(pipe, table, fit, len(fit) // 2, range(len(fit)), strength, call)
    nothing = replace(statistics, mean=0 * statistics.mean, variances=0 * statistics.variances)
    for left in LEFT_OUT:
        plan = methods.teleportation(pipe, table, left)
        yield Way("teleportation", f"{left} steps left out", plan.calls, plan, None, statistics)
        yield Way("teleportation by nothing", f"{left} steps left out", plan.calls, plan, None, nothing)


def _own_table(pipe: Any, work: Workload) -> SolverTable:
    """The pipeline's own sampler as a table, found in a run of one picture."""
    return own_table(pipe, work.steps, lambda: generate(pipe, work.pictures()[:1], work))


def _with_call(table: SolverTable, places: Sequence[int], call: str) -> SolverTable:
    """The table with these steps making no call."""
    steps = (replace(step, call=call) if place in places else step for place, step in enumerate(table.steps))
    return replace(table, steps=tuple(steps))


def _factors(pipe: Any, work: Workload, fit: Sequence[str], left: tuple[int, ...]) -> Mapping[int, float]:
    strength, call = strength_and_call(pipe, work, fit)
    prompts, seeds = fit[:_FACTOR_PICTURES], range(_FACTOR_PICTURES)
    return measure_coherence(pipe, prompts, work.steps, left, seeds, strength, call).mean_factors()


def _with_weights(pipe: Any, work: Workload, fit: Sequence[str], table: SolverTable) -> SolverTable:
    """The table with weights of its extrapolated steps that are measured on as many pictures as LTC-Accel's factors."""
    pictures = tuple(zip(fit[:_FACTOR_PICTURES], range(_FACTOR_PICTURES), strict=True))
    return fit_latent_scales(pipe, table, lambda: generate(pipe, pictures, work))


def _left(steps: int, start: float) -> tuple[int, ...]:
    return methods.replayed_steps(methods.released_interval(steps, start))


def _psnr(pictures: Tensor, reference: Tensor) -> float | None:
    """Of the mean squared error over all pictures; None if they are the same."""
    error = float((10 ** (psnr(pictures, reference) / -10)).mean())
    return -10 * math.log10(error) if error else None


def _decibels(value: float | None) -> str:
    return "the same" if value is None else f"{value:.1f} dB"


def _parser() -> argparse.ArgumentParser:
    parser = judging_command(__doc__)
    parser.add_argument("--levers", nargs="+", help="names as in the table (all)")
    parser.add_argument("--steps", type=at_least(8), default=20, help="sampling steps (20)")
    parser.add_argument("--images", type=at_least(2), default=64, help="pictures of each row (64)")
    parser.add_argument("--fit-images", type=at_least(4), default=32, help="that statistics are made from (32)")
    return parser


if __name__ == "__main__":
    run_program(main)
