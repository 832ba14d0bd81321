"""`festina search`: learn plans for a model, measure them, write the front page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from festina.errors import FestinaError

if TYPE_CHECKING:
    from festina.metrics.reward import Reward
    from festina.metrics.video_judge import VideoJudge
    from festina.search.engine import Progress as Told
    from festina.zoo.shipped import Shipped

FEWER_STEPS = (4, 6, 8, 10, 14)
FORA_INTERVALS = (2, 3, 4, 5)
MOST_SHOWN, MOST_SEEDS = 16, 12
"""Most plans of the front and most seeds that are measured for the front page; all plans are in the folder."""

SCENES_SEED, HELD_OUT_SCENES_SEED = 100, 200


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
    from festina.search.session import Job, learn
    from festina.search.settings import ECAD_MUTATION, WORKING_MUTATION, SearchSettings
    from festina.zoo import call_arguments, load
    from festina.zoo.shipped import shipped

    ours = shipped(model)
    calibration, other = _prompts(ours, prompts, held_out, images, held_out_images)
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


def fidelity_of(model: str, prompts: tuple[str, ...], device: Any) -> Any:
    """The judge's features and those of real renders of the same captions, for a pipeline that ships; None for any
    other model, and for prompts that no renderer could draw."""
    from festina.report.comparison import Fidelity
    from festina.zoo.shipped import shipped

    ours = shipped(model)
    if ours is None:
        return None
    try:
        renders = ours.renders(prompts * max(1, 512 // len(prompts)), seed=7)
    except FestinaError:
        return None
    judge = ours.judge(device)

    def features(images: Any) -> Any:
        import torch

        with torch.no_grad():
            return judge.features(images.to(device)).cpu()

    return Fidelity(features, features(renders))


def load_reward(name: str | None, device: str, model: str = "scenes") -> Reward:
    """The reward of this name.

    Args:
        name: "judge": the judge that ships for the model, of pictures for what does not ship; "video-judge": the judge
            beside a model one trained oneself, or the one that ships; "clip:MODEL".
        device: where it runs.
        model: the model whose pictures it is for.

    Raises:
        FestinaError: none is named, or it is unknown or cannot be loaded.
    """
    from festina.metrics.reward import ClipReward, JudgeReward
    from festina.zoo import shipped_judge
    from festina.zoo.shipped import shipped

    if name == "judge":
        ours = shipped(model)
        return JudgeReward(ours.judge(device) if ours else shipped_judge(device))
    if name == "video-judge":
        return JudgeReward(_video_judge(model, device))
    if name is not None and name.startswith("clip:") and len(name) > 5:
        return ClipReward(name[5:], device)
    found = "no --reward" if name is None else f"--reward {name!r}"
    raise FestinaError(
        f"{found}; wanted 'judge' (of the pipelines that ship), 'video-judge' (of moving scenes) or 'clip:MODEL' with "
        f"a folder or Hub id, e.g. clip:openai/clip-vit-base-patch32."
    )


def _video_judge(model: str, device: str) -> VideoJudge:
    """The judge of videos in the folder beside a pipeline, as `festina zoo train` writes it, or the one that ships."""
    from festina.metrics.video_judge import load_video_judge
    from festina.zoo.loading import WEIGHTS
    from festina.zoo.shipped import shipped

    beside = Path(model).resolve().parent / "judge"
    trained = shipped(model) is None and beside.is_dir()
    return load_video_judge(beside if trained else WEIGHTS / "scenes-video" / "judge", device)


def _prompts(
    ours: Shipped | None, prompts: Path | None, held_out: Path | None, images: int | None, held_out_images: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if held_out is not None and prompts is None:
        raise FestinaError("--held-out without --prompts; give both or, for a pipeline that ships, neither.")
    if prompts is None:
        if ours is None:
            raise FestinaError("no prompts; give --prompts FILE with one per line (about 100 that are like your own).")
        calibration = ours.captions(images or 64, SCENES_SEED)
        # The grammar has few captions, so two draws may share some.
        return calibration, ours.captions(held_out_images or 128, HELD_OUT_SCENES_SEED, calibration)
    lines = read_prompts(prompts)
    if held_out is not None:
        return lines[:images], read_prompts(held_out)[:held_out_images]
    # Without a second file the last quarter is held out.
    cut = max(2, len(lines) // 4)
    if len(lines) < 4:
        raise FestinaError(f"{prompts} has {len(lines)} prompts; give at least 4, or a second file by --held-out.")
    return lines[:-cut][:images], lines[-cut:][:held_out_images]


def scene_captions(count: int, seed: int) -> tuple[str, ...]:
    """`count` different captions of the scenes grammar, a quarter of them with combinations held out of training."""
    from festina.zoo.shipped import Shipped

    return Shipped("scenes").captions(count, seed)


def read_prompts(path: Path) -> tuple[str, ...]:
    """The different non-empty lines of a text file.

    Raises:
        FestinaError: the file cannot be read or has no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FestinaError(f"cannot read the prompts {path}: {error}.") from None
    lines = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise FestinaError(f"{path} has no prompts; wanted one per line.")
    return lines


@contextmanager
def showing_progress() -> Iterator[Told]:
    """A progress bar with the time left; where the output is no terminal, a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _telling(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def told(done: int, total: int, message: str) -> None:
            bar.update(task, completed=done, total=total, description=message)

        yield told


def _telling(console: Console) -> Told:
    import time

    began = last = time.monotonic()

    def told(done: int, total: int, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 10 and done < total:
            return
        last = now
        left = (now - began) / max(done, 1) * (total - done)
        console.print(f"{done}/{total}  {message}  {now - began:.0f} s, about {left:.0f} s left", highlight=False)

    return told
