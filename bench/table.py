"""The table of the README: what plans buy on a model, beside what else a user could do.

Measures the untouched pipeline, the untouched sampler with fewer steps, FORA at several intervals and the given plans
on prompts that are held out, with the same noise for all and interleaved timing. Prints the table in Markdown, and for
each plan what the untouched sampler with fewer steps reaches in the same seconds. `--out` receives the page of these
points, with pictures, machine and versions (festina.report.FrontPage), `--png` its plot.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import Figures, at_least, command, describe, device_named, run_program, tell

from festina.cli.judging import fidelity_of, load_reward
from festina.cli.pictures import load_plan
from festina.cli.prompts import read_prompts
from festina.cli.searching import FEWER_STEPS, FORA_INTERVALS, notes_on
from festina.errors import FestinaError
from festina.methods import fora
from festina.plan import Plan
from festina.report import FrontPage, Point, figures, markdown_table, write_plot
from festina.report.comparison import Variant, compare
from festina.report.headline import untouched_at
from festina.search import Workload
from festina.search.pricing import holding, pricing
from festina.sites import component_sites, find_denoiser
from festina.zoo import call_arguments, load
from festina.zoo.loading import shipped_plans
from festina.zoo.shipped import shipped

SCENES_SEED = 400
"""Seed of the captions: none that a search draws from, neither to calibrate nor to score its front."""

FIRST_SEED = 2_000_000
"""First seed of the noise: none that a search draws from, neither to calibrate nor to score its front."""


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    asked = _parser().parse_args(arguments)
    page = measure(asked)
    told = [same_seconds(page, point) for point in page.points if point.kind == "front"]
    print(markdown_table(page.points))
    print("".join(f"- {sentence}\n" for sentence in told))
    print(f"{page.settings}; {page.hardware}")
    if asked.out is not None:
        page.save(asked.out)
        tell(f"wrote {asked.out}")
    if asked.png is not None:
        write_plot(page, asked.png)
        tell(f"wrote {asked.png}")
    return {"page": page, "same_seconds": told}


def measure(asked: argparse.Namespace) -> FrontPage:
    """Run everything that is compared and put it on a page.

    Raises:
        FestinaError: the plans have different numbers of steps, or model, plans, prompts or reward cannot be had.
    """
    ours = shipped(asked.model)
    if asked.plans is None and not shipped_plans(asked.model):
        raise FestinaError("no plans; give --plans with one or more plan files.")
    plans = named_plans(asked.plans or shipped_plans(asked.model))
    device = device_named(asked.device)
    steps = len(next(iter(plans.values())).steps)
    reward = load_reward(asked.reward or ("judge" if ours else None), asked.device, asked.model)
    pipe = load(asked.model, device)
    prompts = _prompts(asked)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(prompts)))
    workload = Workload(prompts, seeds, steps, asked.guidance, asked.batch, call_arguments(pipe))
    denoiser = find_denoiser(pipe)
    points = compare(
        pipe,
        variants(pipe, plans, steps),
        workload,
        reward,
        pricing(pipe, workload),
        holding(pipe, workload),
        Plan.computing_all(type(denoiser).__name__, [site.name for site in component_sites(denoiser)], steps),
        fidelity_of(asked.model, prompts, device),
        rounds=asked.rounds,
        progress=lambda done, total, message: tell(f"{done} of {total}: {message}"),
    )
    return FrontPage(
        title=f"Festina: plans for {asked.model}",
        model=asked.model,
        prompts=prompts[:8],
        points=points,
        hardware=describe(device),
        settings=f"{steps} steps of {type(pipe.scheduler).__name__}, guidance {asked.guidance:g}, {len(prompts)} "
        f"held-out prompts, {reward.name} reward, batches of {asked.batch}, {asked.rounds} timed rounds",
        notes=notes_on(pipe),
    )


def named_plans(files: Sequence[str]) -> dict[str, Plan]:
    """Plans by a short name.

    Raises:
        FestinaError: one cannot be read, two have the same name, or they have different numbers of steps.
    """
    plans = {Path(file).stem: load_plan(file) for file in files}
    if len(plans) != len(files):
        raise FestinaError("two of the plans have the same file name, which is what the table calls them; rename one.")
    counts = sorted({len(plan.steps) for plan in plans.values()})
    if len(counts) != 1:
        raise FestinaError(
            f"the plans have {' and '.join(map(str, counts))} steps; wanted one number, that of the uncached run "
            f"(`festina plan convert PLAN --steps {counts[-1]} --out NEW`)."
        )
    return plans


def variants(pipe: Any, plans: dict[str, Plan], steps: int) -> list[Variant]:
    """What is compared: the untouched sampler, with fewer steps too, FORA, and the plans."""
    compared = [Variant("uncached", "uncached", None, steps)]
    compared += [Variant(f"{fewer} steps", "fewer-steps", None, fewer) for fewer in FEWER_STEPS if fewer < steps]
    compared += [Variant(f"FORA {n}", "fora", fora(pipe, steps, n), steps) for n in FORA_INTERVALS if n < steps]
    return compared + [Variant(name, "front", plan, steps) for name, plan in plans.items()]


def same_seconds(page: FrontPage, point: Point) -> str:
    """A sentence: what the untouched sampler reaches in the seconds of a plan, by linear interpolation."""
    assert point.seconds is not None
    spent = figures.seconds_text(point.seconds)
    rival = untouched_at(page, lambda other: other.seconds, point.seconds)
    if rival is None:
        return f"{point.name}, {spent}: no measured run of the untouched sampler needs so few seconds."
    around = " to ".join(str(count) for count in rival.steps)
    return (
        f"{point.name}, {spent}: reward {figures.reward_text(point.reward)} ({figures.interval_text(point)}); the "
        f"untouched sampler with {around} steps reaches {figures.reward_text(rival.reward)} in the same seconds."
    )


def _prompts(asked: argparse.Namespace) -> tuple[str, ...]:
    if asked.prompts is not None:
        return read_prompts(asked.prompts)[: asked.held_out_images]
    ours = shipped(asked.model)
    if ours is None:
        raise FestinaError("no prompts; give --prompts FILE with one per line, none of which the plans were made on.")
    return ours.captions(asked.held_out_images, SCENES_SEED)


def _parser() -> argparse.ArgumentParser:
    parser = command(__doc__, rounds=5)
    parser.add_argument("model", help="local folder, Hub id, or a pipeline that ships, such as 'scenes'")
    parser.add_argument("--plans", nargs="+", help="plan files, or plans that ship (those of the model)")
    parser.add_argument("--prompts", type=Path, help="text file of held-out prompts, one per line; not for what ships")
    parser.add_argument("--held-out-images", type=at_least(2), default=128, help="pictures of each run (128)")
    parser.add_argument("--reward", help="judge (what ships), video-judge or clip:MODEL")
    parser.add_argument("--guidance", type=float, default=4.5, help="strength of classifier-free guidance (4.5)")
    parser.add_argument("--batch", type=at_least(1), default=16, help="pictures per call (16)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--png", type=Path, help="picture file that receives the plot")
    return parser


if __name__ == "__main__":
    run_program(main)
