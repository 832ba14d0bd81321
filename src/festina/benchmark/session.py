"""A whole benchmark in one folder: started, stopped, resumed and finished by the same call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from festina.benchmark.drawing import Drawing
from festina.benchmark.entries import Calibrate, Entry
from festina.benchmark.figures import Figures
from festina.benchmark.folder import CALIBRATION, Folder
from festina.benchmark.machine import hardware, in_words, libraries
from festina.benchmark.measuring import SHOWN, Judges, cut_apart
from festina.benchmark.results import Benchmark, results
from festina.benchmark.timing import timed_rounds
from festina.benchmark.variants import Alike, Failed, Variant, lineup, of_entry, of_peers, of_plans, untouched
from festina.calibration import Calibration, calibrate
from festina.errors import FestinaError
from festina.metrics.reward import Reward, weights_fingerprint
from festina.metrics.similarity import Similarity, lpips_measure, ssim_measure
from festina.plan import Plan
from festina.report.comparison import Fidelity
from festina.search.engine import Progress, silent
from festina.search.generation import draws_videos, generate_batch, strength_and_call
from festina.search.workload import Workload, pipeline_fingerprint
from festina.sites import find_denoiser

SCHEMA = 1
"""Version of the folder's settings."""

FIRST_SEED = 2_000_000
"""First seed of the noise: none that a search draws from, neither to calibrate nor to score its front."""


@dataclass(frozen=True)
class Job:
    """What a benchmark is asked to do.

    Attributes:
        model: name of the model.
        prompts: what is drawn, one picture each, at least two.
        calibration: other prompts, on which methods that need it are calibrated.
        entries: the methods.
        steps: sampling steps.
        guidance_scale: strength of classifier-free guidance.
        batch: pictures per call of the pipeline.
        call: further arguments of the pipeline call.
        plans: further plans that take part, by name.
        peers: whether other libraries' caches take part.
        rounds: timed rounds, at least 1.
        models: other denoisers of the pipeline's kind, which plans may call by these names.

    Raises:
        FestinaError: on construction, if there are too few prompts or rounds, or a prompt is for calibration too.
    """

    model: str
    prompts: tuple[str, ...]
    calibration: tuple[str, ...]
    entries: tuple[Entry, ...]
    steps: int = 20
    guidance_scale: float = 4.5
    batch: int = 16
    call: Mapping[str, Any] = field(default_factory=dict)
    plans: tuple[tuple[str, Plan], ...] = ()
    peers: bool = True
    rounds: int = 5
    models: Mapping[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.prompts) < 2 or self.rounds < 1 or self.steps < 2:
            raise FestinaError(
                f"{len(self.prompts)} prompts, {self.steps} steps and {self.rounds} timed rounds; wanted at least two "
                f"prompts, two steps and one round."
            )
        if both := set(self.prompts) & set(self.calibration):
            raise FestinaError(
                f"{len(both)} prompts are drawn and for calibration, such as {min(both)!r}; take others."
            )

    def workload(self) -> Workload:
        """The pictures that every run draws."""
        seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(self.prompts)))
        return Workload(self.prompts, seeds, self.steps, self.guidance_scale, self.batch, self.call)


def run_benchmark(
    pipe: Any, job: Job, reward: Reward, out: Path, fidelity: Fidelity | None = None, progress: Progress = silent
) -> Benchmark:
    """Measure every method over its range of knobs on one pipeline.

    Stop it whenever you like and call it again with the same arguments: it goes on where it was. Rounds may be other
    than before. What failed before is tried again.

    Args:
        pipe: a diffusers pipeline that takes prompts, untouched.
        job: what to do.
        reward: judges the pictures.
        out: folder of the benchmark; made if it is missing.
        fidelity: for the Frechet distance; left out if None.
        progress: told after every run and round.

    Raises:
        FestinaError: the folder cannot be written or holds a benchmark of something else, the untouched pipeline cannot
            be run, or a run that could be drawn cannot be timed.
        KeyboardInterrupt: passed on; the folder is intact.
    """
    device = next(find_denoiser(pipe).parameters()).device
    ssim, no_ssim = _if_there(ssim_measure)
    lpips, no_lpips = _if_there(lambda: lpips_measure(device))
    judges = Judges(reward, fidelity, ssim, lpips)
    asked = _asked(pipe, job, judges)
    folder = Folder(out, asked)
    workload = job.workload()
    found = lineup(_all(pipe, job, _calibrating(pipe, job, workload, out / CALIBRATION, progress)))
    total = len(found.variants) + job.rounds
    drawing = Drawing(pipe, workload, folder, judges)
    figures: dict[str, Figures] = {}
    failed = list(found.failed)
    for number, variant in enumerate(found.variants, start=1):
        drawn = drawing.figures(variant)
        if isinstance(drawn, Failed):
            failed.append(drawn)
        else:
            figures[variant.name] = drawn
        progress(number, total, f"pictures: {variant.name:.60}")
    ran = tuple(variant for variant in found.variants if variant.name in figures)
    failed += [_as_failed(each) for each in found.alike if each.same_as not in figures]
    told = lambda rounds: progress(len(found.variants) + rounds, total, "timing")  # noqa: E731
    rounds = timed_rounds(pipe, ran, workload, folder, job.rounds, told)
    count, moving = len(workload.pictures()), draws_videos(pipe)
    return Benchmark(
        model=job.model,
        asked=asked,
        settings=_in_words(pipe, job, reward, len(rounds)),
        hardware=in_words(asked["hardware"], asked["libraries"]),
        rounds=len(rounds),
        results=results(ran, figures, rounds, min(workload.batch, count), workload.images_per_prompt),
        alike=tuple(each for each in found.alike if each.same_as in figures),
        failed=tuple(failed),
        prompts=job.prompts[:SHOWN],
        pictures={each.name: cut_apart(folder.sheet(each).read_bytes(), count, moving) for each in ran},
        notes=_notes(figures.values(), no_ssim, no_lpips, moving),
    )


def _all(pipe: Any, job: Job, calibrate: Calibrate) -> Iterator[Variant | Failed]:
    """All that takes part, the untouched sampler first."""
    yield from untouched(job.steps)
    for entry in job.entries:
        yield from of_entry(pipe, entry, job.steps, calibrate, job.models)
    yield from of_plans(job.plans, job.steps, job.models)
    if job.peers:
        first = job.workload().pictures()[:1]
        yield from of_peers(pipe, job.steps, lambda: generate_batch(pipe, first, job.workload(), job.steps))


def _calibrating(pipe: Any, job: Job, workload: Workload, path: Path, progress: Progress) -> Calibrate:
    """Makes the calibration when it is first asked for; what went wrong then goes wrong for all that ask."""

    @cache
    def calibrated() -> Calibration | FestinaError:
        if not job.calibration:
            return FestinaError("no prompts to calibrate on; give some that are not drawn.")
        strength, call = strength_and_call(pipe, workload, job.calibration)
        seeds = tuple(range(len(job.calibration)))

        def told(done: int, total: int, message: str) -> None:
            progress(0, total, f"calibrating, {done} of {total} pictures")

        try:
            return calibrate(pipe, job.calibration, job.steps, seeds, strength, call, None, path, told)
        except FestinaError as error:
            return error

    def asked_for() -> Calibration:
        found = calibrated()
        if isinstance(found, FestinaError):
            raise FestinaError(f"no calibration: {found}")
        return found

    return asked_for


def _if_there(load: Callable[[], Similarity]) -> tuple[Similarity | None, str]:
    """A measure, or why it is not to be had."""
    try:
        return load(), ""
    except FestinaError as error:
        return None, str(error)


def _asked(pipe: Any, job: Job, judges: Judges) -> dict[str, Any]:
    """All that decides the figures."""
    measures = {"frechet": judges.fidelity, "ssim": judges.ssim, "lpips": judges.lpips}
    return {
        "festina_bench_settings": SCHEMA,
        "model": job.model,
        "pipeline": pipeline_fingerprint(pipe),
        "prompts": list(job.prompts),
        "calibration prompts": list(job.calibration),
        "steps": job.steps,
        "guidance": job.guidance_scale,
        "batch": job.batch,
        "call": dict(job.call),
        "reward": {"name": judges.reward.name, "fingerprint": judges.reward.fingerprint},
        "measures": [name for name, measure in measures.items() if measure is not None],
        "methods": [entry.method for entry in job.entries],
        "plans": {name: plan.key() for name, plan in job.plans},
        "peers": job.peers,
        **({"models": {name: weights_fingerprint(model) for name, model in job.models.items()}} if job.models else {}),
        "hardware": hardware(next(find_denoiser(pipe).parameters()).device),
        "libraries": libraries(),
    }


def _in_words(pipe: Any, job: Job, reward: Reward, rounds: int) -> str:
    return (
        f"{job.steps} steps of {type(pipe.scheduler).__name__}, guidance {job.guidance_scale:g}, {len(job.prompts)} "
        f"pictures of as many prompts, {reward.name} reward, batches of {job.batch}, {rounds} timed "
        f"{'round' if rounds == 1 else 'rounds'}, {len(job.calibration)} other prompts to calibrate on"
    )


def _as_failed(alike: Alike) -> Failed:
    reason = f"it runs as {alike.same_as}, which could not be run"
    return Failed(alike.name, alike.group, alike.settings, reason)


def _notes(figures: Iterable[Figures], no_ssim: str, no_lpips: str, moving: bool) -> tuple[str, ...]:
    """What a reader has to know besides the settings."""
    notes = ["A picture here is a video: its frames stand side by side."] if moving else []
    too_small = "it cannot compare pictures as small as these."
    all_figures = list(figures)
    if all(each.ssim is None for each in all_figures):
        notes.append(f"SSIM was not measured: {no_ssim or too_small}")
    if all(each.lpips is None for each in all_figures):
        notes.append(f"LPIPS was not measured: {no_lpips or too_small}")
    return tuple(notes)
