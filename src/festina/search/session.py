"""A whole search in one folder: started, stopped, resumed and finished by the same call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from festina.errors import FestinaError
from festina.metrics.reward import Reward
from festina.plan import Plan
from festina.search.archive import Archive
from festina.search.engine import Progress, never, search, silent
from festina.search.evaluator import Evaluator
from festina.search.front import Front
from festina.search.genome import Genome
from festina.search.pricing import pricing
from festina.search.settings import SearchSettings
from festina.search.workload import Workload
from festina.sites import find_denoiser, sampler_of
from festina.strict import read_json, write_whole

ARCHIVE, RECORD, PLANS = "archive.sqlite", "search.json", "plans"
"""Names in the folder of a search: every evaluation made, what was asked, and the plans of the front."""

HELD_OUT_SEED = 1_000_000
"""First seed of the noise of held-out pictures; the search counts its own from 0."""


@dataclass(frozen=True)
class Job:
    """What a search is asked to do.

    Attributes:
        prompts: calibration prompts, on which candidates are measured.
        held_out: other prompts, on which the front is scored again before it is reported.
        steps: sampling steps.
        guidance_scale: strength of classifier-free guidance.
        batch: pictures per call of the pipeline.
        settings: the genetic algorithm's.
        call: further arguments of the pipeline call.

    Raises:
        FestinaError: on construction, if a held-out prompt is a calibration prompt too.
    """

    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    steps: int = 20
    guidance_scale: float = 4.5
    batch: int = 8
    settings: SearchSettings = field(default_factory=SearchSettings)
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := set(self.prompts) & set(self.held_out):
            raise FestinaError(f"{len(both)} prompts are for calibration and held out, such as {min(both)!r}.")

    def workload(self) -> Workload:
        """What candidates are measured on: one picture per prompt."""
        return self._on(self.prompts, 0)

    def held_out_workload(self) -> Workload:
        """What the front is scored on again: one picture per prompt, from noise the search never saw."""
        return self._on(self.held_out, HELD_OUT_SEED)

    def _on(self, prompts: tuple[str, ...], first: int) -> Workload:
        seeds = tuple(range(first, first + len(prompts)))
        return Workload(prompts, seeds, self.steps, self.guidance_scale, self.batch, self.call)


def learn(
    pipe: Any,
    job: Job,
    reward: Reward,
    out: Path,
    minutes: float | None = None,
    progress: Progress = silent,
    start: Sequence[Plan] = (),
) -> Front:
    """Search for plans of a pipeline, and keep everything in a folder.

    Stop it whenever you like and call it again with the same arguments: it goes on where it was.

    Args:
        pipe: a diffusers pipeline that takes prompts.
        job: what to do.
        reward: judges the pictures.
        out: folder of the search; made if it is missing. Receives `archive.sqlite`, `search.json` and `plans/`.
        minutes: stop evaluating after this time and report the front of what there is.
        progress: told after every candidate.
        start: plans to begin with besides the seeds, such as another model's front.

    Raises:
        FestinaError: the folder cannot be written or holds a search for something else, or as `search`.
        KeyboardInterrupt: passed on; the folder is intact.
    """
    genome = Genome.of(find_denoiser(pipe), job.steps)
    begun = [plan.key() for plan in start]
    try:
        (out / PLANS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FestinaError(f"cannot make the folder {out}: {error.strerror}.") from None
    with Archive(out / ARCHIVE) as archive:
        evaluator = Evaluator(pipe, job.workload(), reward, archive, pricing(pipe, job.workload()))
        _record(
            out / RECORD, {"job": asdict(job), "model": evaluator.fingerprint, "reward": reward.name, "start": begun}
        )
        held_out = evaluator.on(job.held_out_workload())
        front = search(evaluator, held_out, genome, job.settings, progress, start, _deadline(minutes))
    sampler = sampler_of(pipe)
    points = tuple(replace(point, plan=replace(point.plan, sampler=sampler)) for point in front.points)
    front = replace(front, points=points)
    _save_plans(front, out / PLANS)
    return front


def _record(path: Path, asked: dict[str, Any]) -> None:
    """Write down what is asked, or make sure that it is what was asked before."""
    text = json.dumps(asked, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if not path.exists():
        write_whole(path, text)
        return
    before = read_json(path.read_text(encoding="utf-8"), f"the record of a search ({path})")
    now = json.loads(text)
    if before != now:
        told = sorted(key for key in now["job"] if before.get("job", {}).get(key) != now["job"][key])
        told += [key for key in ("model", "reward", "start") if before.get(key) != now[key]]
        raise FestinaError(
            f"{path.parent} holds a search with other {', '.join(told) or 'settings'}; give the same ones to go on "
            f"with it, or another folder."
        )


def _save_plans(front: Front, folder: Path) -> None:
    for number, point in enumerate(front.points):
        point.plan.save(folder / f"{number:02d}.json")
    for stale in folder.glob("*.json"):
        if stale.stem.isdigit() and int(stale.stem) >= len(front.points):
            stale.unlink()


def _deadline(minutes: float | None) -> Callable[[], bool]:
    if minutes is None:
        return never
    end = time.monotonic() + 60 * minutes
    return lambda: time.monotonic() > end
