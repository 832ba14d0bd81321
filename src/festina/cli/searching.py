"""`festina search`: learn plans for a model, measure them, write the front page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from festina.errors import FestinaError

if TYPE_CHECKING:
    from festina.metrics.reward import Reward
    from festina.search.engine import Progress as Told

FEWER_STEPS = (4, 6, 8, 10, 14)
FORA_INTERVALS = (2, 3, 4, 5)
MOST_SHOWN, MOST_SEEDS = 16, 12
"""Most plans of the front and most seeds that are measured for the front page; all plans are in the folder."""


class MutationName(StrEnum):
    """Which mutation the search uses."""

    WORKING = "working"
    ECAD = "ecad"


def search_command(
    model: Annotated[str, typer.Argument(help="Local folder, Hub id, or a pipeline that ships, such as 'scenes'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of this search; the same folder goes on with it.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one calibration prompt per line (about 100). Not needed for what ships."),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Text file of other prompts to score the front on. Not needed for what ships.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Use only so many calibration prompts.", min=2)] = None,
    held_out_images: Annotated[int | None, typer.Option(help="Use only so many held-out prompts.", min=2)] = None,
    population: Annotated[int, typer.Option(help="Candidates per generation.", min=2)] = 72,
    generations: Annotated[int, typer.Option(help="Generations.", min=1)] = 550,
    minutes: Annotated[float | None, typer.Option(help="Stop evaluating after this time.", min=0)] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=2)] = 20,
    guidance: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 4.5,
    batch: Annotated[int, typer.Option(help="Pictures per call.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the search.", min=0)] = 0,
    mutation: Annotated[
        MutationName, typer.Option(help="working: a few flips a child; ecad: the literal values of ECAD's code.")
    ] = MutationName.WORKING,
    reward: Annotated[
        str | None,
        typer.Option(
            help="judge (of the pipelines that ship), video-judge (for moving scenes drawn by a MODEL you trained), or "
            "clip:MODEL with a folder or Hub id of a CLIP model."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Learn which parts of a model can be reused in which step: a front of plans from best quality to fastest.

    Every measurement is kept. Ctrl-C at any time; the same command goes on where it was.
    """
    from festina.cli.judging import load_reward
    from festina.cli.progress import showing_progress
    from festina.cli.prompts import prompts_of_search
    from festina.search.session import Job, learn
    from festina.search.settings import ECAD_MUTATION, WORKING_MUTATION, SearchSettings
    from festina.zoo import call_arguments, load
    from festina.zoo.loading import want_model
    from festina.zoo.shipped import shipped

    want_model(model)
    ours = shipped(model)
    calibration, other = prompts_of_search(ours, prompts, held_out, images, held_out_images)
    judged_by = load_reward(reward or ("judge" if ours else None), device, model)
    pipe = load(model, device)
    settings = SearchSettings(
        population=population,
        generations=generations,
        seed=seed,
        mutation=ECAD_MUTATION if mutation is MutationName.ECAD else WORKING_MUTATION,
    )
    job = Job(calibration, other, steps, guidance, batch, settings, call_arguments(pipe))
    with showing_progress() as told:
        front = learn(pipe, job, judged_by, out, minutes, told)
    with showing_progress() as told:
        report(pipe, model, job, judged_by, front, out, told)


def report(pipe: Any, model: str, job: Any, reward: Reward, front: Any, out: Path, told: Told) -> None:
    """Measure the front beside what a user could do instead, and write `page.json`, `index.html` and the table."""
    from festina.cli.judging import fidelity_of
    from festina.methods import fora
    from festina.report import FrontPage, rich_table, write_page, write_plot
    from festina.report.comparison import Variant, compare
    from festina.search.evaluator import hardware
    from festina.search.pricing import holding, pricing
    from festina.sites import find_denoiser

    workload = job.held_out_workload()
    uncached = front.uncached.plan
    variants = [Variant("uncached", "uncached", None, job.steps)]
    variants += [Variant(f"{count} steps", "fewer-steps", None, count) for count in FEWER_STEPS if count < job.steps]
    variants += [
        Variant(f"FORA {n}", "fora", fora(pipe, job.steps, n), job.steps) for n in FORA_INTERVALS if n < job.steps
    ]
    numbered = list(enumerate(front.points))
    variants += [Variant(f"found {n:02d}", "front", point.plan, job.steps) for n, point in _some(numbered, MOST_SHOWN)]
    price = pricing(pipe, workload)
    variants += _seeds(pipe, job, price, {variant.plan.key() for variant in variants if variant.plan})
    points = compare(
        pipe,
        variants,
        workload,
        reward,
        price,
        holding(pipe, workload),
        uncached,
        fidelity_of(model, workload.prompts, next(find_denoiser(pipe).parameters()).device),
        rounds=3,
        progress=told,
    )
    page = FrontPage(
        title=f"Festina: the front of {model}",
        model=model,
        prompts=workload.prompts[:8],
        points=points,
        hardware=hardware(pipe),
        settings=f"{job.steps} steps of {type(pipe.scheduler).__name__}, guidance {job.guidance_scale:g}, "
        f"{len(job.prompts)} calibration and {len(job.held_out)} held-out prompts, {reward.name} reward, population "
        f"{job.settings.population}, up to {job.settings.generations} generations",
        notes=notes_on(pipe),
    )
    page.save(out / "page.json")
    write_page(page, out / "index.html")
    console = Console()
    console.print(rich_table(points, title=page.title))
    console.print(f"Front page: {out / 'index.html'}   plans: {out / 'plans'}", soft_wrap=True)
    try:
        write_plot(page, out / "front.png")
    except FestinaError as error:
        console.print(f"[dim]no front.png: {error}[/]")


def _seeds(pipe: Any, job: Any, price: Any, known: set[str]) -> list[Any]:
    """The plans the search began with, as variants, without those that are shown anyway."""
    from festina.report.comparison import Variant
    from festina.search.genome import Genome
    from festina.search.seeds import first_population
    from festina.sites import find_denoiser

    genome = Genome.of(find_denoiser(pipe), job.steps)
    plans = [genome.decode(bits) for bits in first_population(genome, job.settings, price)]
    new = sorted((plan for plan in plans if plan.key() not in known), key=lambda plan: (price(plan), plan.key()))
    some = _some(new, MOST_SEEDS)
    return [Variant(f"seed {number:02d}", "seed", plan, job.steps) for number, plan in enumerate(some)]


def _some(items: list[Any], most: int) -> list[Any]:
    """At most so many of a list, evenly spread, both ends among them."""
    if len(items) <= most:
        return items
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def notes_on(pipe: Any) -> tuple[str, ...]:
    """What the reader of a page has to know about a pipeline's pictures."""
    from festina.search.generation import draws_videos

    return ("A picture here is a video: its frames stand side by side.",) if draws_videos(pipe) else ()
