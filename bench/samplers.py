"""Quality against network calls, of every solver and every grid, on a pipeline that ships.

Draws the same captions from the same noise with the pipeline's own scheduler, with every solver of `PlanScheduler` on
the scheduler's own grid, with one solver on every grid, with GITS' grid and with OLSS' weights, each at several numbers
of network calls. Prints, in Markdown, the reward of the judge, the PSNR to the own scheduler's pictures of many steps,
and the Frechet distance of the judge's features to those of real renders. `--png` receives a plot of the reward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Figures, at_least, device_named, judging_command, markdown, run_program, save_record, tell
from torch import Tensor

from festina.benchmark.looks import looks_of
from festina.cli.judging import fidelity_of, load_reward
from festina.errors import FestinaError
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.reward import scores_of
from festina.report.canvas import INK, figure_of, frame, headings, save
from festina.samplers import KINDS, Frame, PlanScheduler
from festina.samplers.gits import gits_noises
from festina.samplers.olss import fit_on_policy
from festina.samplers.recording import Trajectory, record
from festina.samplers.times import GRIDS, align_your_steps, table_on, uniform_time
from festina.search import Workload
from festina.search.generation import generate
from festina.zoo import SHIPPED, call_arguments, load
from festina.zoo.shipped import shipped

OWN, ON_GITS, OLSS = "own scheduler", "data 2 on GITS", "OLSS"
FIRST_SEED, FIT_SEED = 4_000_000, 5_000_000
CAPTIONS, FIT_CAPTIONS = 500, 501
"""Seeds of the captions, and of those that GITS and OLSS learn from."""

Sampler = Callable[[int], Any]
"""From network calls to a scheduler; None for the pipeline's own."""


@dataclass(frozen=True)
class Row:
    """What a sampler reaches with so many network calls: reward, PSNR in dB, Frechet distance."""

    sampler: str
    calls: int
    reward: float
    psnr: float
    frechet: float


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    asked = _parser().parse_args(arguments)
    rows = measure(asked)
    cells = [
        (row.sampler, row.calls, f"{row.reward:.3f}", f"{row.psnr:.2f}", f"{row.frechet:.2f}")
        for row in sorted(rows, key=lambda row: row.calls)
    ]
    print(markdown(("sampler", "network calls", "reward", "PSNR, dB", "Frechet distance"), cells))
    found = {"rows": [asdict(row) for row in rows]}
    save_record(asked, "samplers", found, torch.device(asked.device))
    if asked.png is not None:
        write_plot(asked.name, rows, Path(asked.png))
        tell(f"wrote {asked.png}")
    return found


def measure(asked: argparse.Namespace) -> list[Row]:
    """Draw and judge with every sampler that is asked for.

    Raises:
        FestinaError: no such pipeline or sampler, a reference of no more steps than a sampler's calls, or a teacher of
            fewer steps than these.
    """
    ours, most = shipped(asked.name), max(asked.calls)
    if ours is None:
        raise FestinaError(f"{asked.name!r} does not ship; there are {', '.join(SHIPPED)}.")
    if asked.reference_steps <= most:
        raise FestinaError(
            f"the reference has {asked.reference_steps} steps and a sampler {most} calls; give --reference-steps more."
        )
    if asked.teacher_steps < most and {ON_GITS, OLSS} & set(asked.samplers or (ON_GITS, OLSS)):
        raise FestinaError(
            f"GITS and OLSS learn from {asked.teacher_steps} steps, and a sampler has {most} calls; give "
            "--teacher-steps more."
        )
    device = device_named(asked.device)
    pipe = load(asked.name, device)
    captions = ours.captions(asked.images, CAPTIONS)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(captions)))
    work = Workload(captions, seeds, asked.reference_steps, asked.guidance, asked.batch, call_arguments(pipe))
    fit_captions = ours.captions(asked.fit_images, FIT_CAPTIONS, without=captions)
    fit_seeds = tuple(range(FIT_SEED, FIT_SEED + len(fit_captions)))
    known = samplers(pipe, replace(work, prompts=fit_captions, seeds=fit_seeds), asked.teacher_steps)
    if unknown := sorted(set(asked.samplers or ()) - set(known)):
        raise FestinaError(f"no sampler is called {', '.join(unknown)}; there are {', '.join(known)}.")
    reward, fidelity = load_reward("judge", asked.device, asked.name), fidelity_of(asked.name, captions, device)
    reference, rows = generate(pipe, work.pictures(), work), []
    for name in asked.samplers or known:
        for calls in asked.calls:
            found, made = drawn(pipe, known[name](calls), replace(work, steps=calls))
            score = sum(scores_of(reward, found, captions, asked.batch)) / len(captions)
            distance = frechet_distance(fidelity.features(found), fidelity.reference)
            rows.append(Row(name, made, score, psnr(found, reference).mean().item(), distance))
        tell(f"{name}: {', '.join(f'{row.reward:.3f} ({row.calls})' for row in rows if row.sampler == name)}")
    return rows


def samplers(pipe: Any, fit: Workload, teacher_steps: int) -> Mapping[str, Sampler]:
    """Every sampler by name.

    Args:
        pipe: the pipeline.
        fit: what GITS and OLSS learn from.
        teacher_steps: steps of the run that they learn from.
    """
    source = pipe.scheduler
    plain = PlanScheduler.from_scheduler(source).frame
    known: dict[str, Sampler] = {OWN: lambda calls: None, "data 1": partial(_solver, source, "data", 1, False)}
    for name, kind in KINDS.items():
        corrected = name.startswith("unipc")
        for order in range(2, kind.highest + 1):
            label = f"{name} {order}{' with corrector' if corrected else ''}"
            known[label] = partial(_solver, source, name, order, corrected)
    for name, grid in GRIDS.items():
        # Its nodes are of SD 1.5 unless another model is named, and there are none of a pipeline that ships.
        fitted = " of SD 1.5" if grid is align_your_steps else ""
        known[f"data 2 on {name}{fitted}"] = partial(_gridded, source, plain, grid)
    learner = _Learner(pipe, fit, teacher_steps)
    known[ON_GITS] = lambda calls: _on(source, plain, gits_noises(learner.teacher(), calls))
    known[OLSS] = lambda calls: PlanScheduler.from_scheduler(source, learner.weights(calls))
    return known


def _gridded(source: Any, plain: Frame, grid: Callable[[Frame, int], Sequence[float]], calls: int) -> PlanScheduler:
    """The second-order solver on a grid."""
    return _on(source, plain, grid(plain, calls))


class _Learner:
    """What GITS and OLSS learn from, recorded once it is needed."""

    def __init__(self, pipe: Any, work: Workload, steps: int) -> None:
        self.pipe, self.work, self.steps = pipe, work, steps
        self._teacher: Trajectory | None = None

    def teacher(self) -> Trajectory:
        """A first-order run on even times."""
        if self._teacher is None:
            plain = PlanScheduler.from_scheduler(self.pipe.scheduler).frame
            table = table_on(plain, uniform_time(plain, self.steps), order=1)
            self._teacher = record(self.pipe, table, partial(self._draw, self.steps))
        return self._teacher

    def weights(self, calls: int) -> Any:
        """OLSS' table on even steps of the teacher."""
        nodes = [round(place * self.steps / calls) for place in range(calls + 1)]
        return fit_on_policy(self.pipe, self.teacher(), nodes, partial(self._draw, calls))

    def _draw(self, steps: int) -> None:
        generate(self.pipe, self.work.pictures(), replace(self.work, steps=steps))


def _solver(source: Any, solver: str, order: int, corrector: bool, calls: int) -> PlanScheduler:
    return PlanScheduler.from_scheduler(source, solver=solver, solver_order=order, corrector=corrector)


def _on(source: Any, plain: Any, noises: Sequence[float]) -> PlanScheduler:
    return PlanScheduler.from_scheduler(source, table_on(plain, noises))


def drawn(pipe: Any, scheduler: Any, work: Workload) -> tuple[Tensor, int]:
    """Pictures drawn with a scheduler (None: the pipeline's own), and the network calls of each."""
    with _using(pipe, scheduler or pipe.scheduler):
        return generate(pipe, work.pictures(), work), len(pipe.scheduler.timesteps)


@contextmanager
def _using(pipe: Any, scheduler: Any) -> Iterator[None]:
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def write_plot(name: str, rows: Sequence[Row], path: Path) -> None:
    """Write reward against network calls as a PNG file, a line for each sampler."""
    figure = figure_of((11.0, 7.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.69, top=0.86, bottom=0.09)
    frame(axes, "Network calls")
    axes.set_ylabel("Reward", color=INK)
    axes.set_xticks(sorted({row.calls for row in rows}))
    for label, look in looks_of(tuple(dict.fromkeys(row.sampler for row in rows))).items():
        own = [row for row in rows if row.sampler == label]
        axes.plot(
            [row.calls for row in own],
            [row.reward for row in own],
            label=label,
            color=look.light,
            marker=look.marker,
            linewidth=1.2,
            markersize=5,
        )
    headings(figure, f"Samplers on {name}", "Up and to the left is better.", 0.9)
    figure.legend(loc="upper left", bbox_to_anchor=(0.7, 0.87), frameon=False, fontsize=8.5)
    save(figure, path)


def _parser() -> argparse.ArgumentParser:
    parser = judging_command(__doc__)
    parser.add_argument("--samplers", nargs="+", help="names as in the table (all)")
    parser.add_argument("--calls", nargs="+", type=at_least(2), default=[3, 4, 5, 7, 10, 14, 20], help="(3 to 20)")
    parser.add_argument("--images", type=at_least(2), default=128, help="pictures of each row (128)")
    parser.add_argument("--fit-images", type=at_least(1), default=16, help="that GITS and OLSS learn from (16)")
    parser.add_argument("--teacher-steps", type=at_least(2), default=60, help="of the run they learn from (60)")
    parser.add_argument("--png", help="picture file that receives the plot")
    return parser


if __name__ == "__main__":
    run_program(main)
