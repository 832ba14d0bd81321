"""`festina generate`: pictures or videos from prompts, by a plan or without one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from festina.cli.stand_ins import StandIns, StatisticsFile, load_stand_ins, stand_ins
from festina.errors import FestinaError
from festina.plan import Plan
from festina.strict import write_whole


def generate_command(
    model: Annotated[str, typer.Argument(help="Local folder, Hub id, or a pipeline that ships, such as 'scenes'.")],
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    plan: Annotated[
        str | None, typer.Option(help="A plan file, or a plan that ships, such as scenes/fast. None: uncached.")
    ] = None,
    models: StandIns = None,
    statistics: StatisticsFile = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("pictures"),
    compare: Annotated[bool, typer.Option("--compare", help="Also generate without the plan, side by side.")] = False,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the plan's, or 20.", min=1)] = None,
    guidance: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 4.5,
    seed: Annotated[int, typer.Option(help="Seed of the first one; the next ones count up.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Generate pictures or videos, by a plan or without; --compare does both and says what the plan bought."""
    from festina.executor import accelerate
    from festina.report.comparison import animation, png
    from festina.report.whole import write_whole_bytes
    from festina.search.generation import generate
    from festina.search.workload import Workload
    from festina.zoo import call_arguments, load

    if statistics is not None and plan is None:
        raise FestinaError("--statistics needs a --plan that carries the first noise.")
    if compare and plan is None:
        raise FestinaError("--compare needs a --plan to compare with.")
    chosen = None if plan is None else load_plan(plan)
    if chosen is not None and steps is not None and steps != len(chosen.steps):
        raise FestinaError(
            f"the plan has {len(chosen.steps)} steps, --steps says {steps}; leave --steps out, or resample the plan "
            f"with `festina plan convert {plan} --steps {steps} --out NEW`."
        )
    if chosen is not None and chosen.solver is not None and chosen.solver.start == "given":
        raise FestinaError(
            "the plan's sampler begins with latents that are given, which this command has no option for; run it in "
            "Python (see festina.samplers.warm_start)."
        )
    sources = stand_ins(models, chosen)
    count = len(chosen.steps) if chosen else steps or 20
    pipe, others = load(model, device), load_stand_ins(sources, device)
    if chosen is not None:
        with accelerate(pipe, chosen, others, statistics):
            pass  # what does not fit is refused before anything is drawn
    unique = tuple(dict.fromkeys(prompts))
    work = Workload(unique, tuple(range(seed, seed + len(unique))), count, guidance, 8, call_arguments(pipe))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FestinaError(f"cannot make the folder {out}: {error.strerror}.") from None
    console = Console()
    made: dict[str, Any] = {}
    if chosen is None or compare:
        made["uncached"] = _timed(console, "uncached", lambda: generate(pipe, work.pictures(), work))
    if chosen is not None:
        with accelerate(pipe, chosen, others, statistics) as run:
            made["plan"] = _timed(console, "by the plan", lambda: generate(pipe, work.pictures(), work))
            print(run.summary())
    for kind, images in made.items():
        for number, image in enumerate(images):
            write_whole_bytes(out / f"{number:02d}-{kind}.png", png(image))
            if image.ndim == 4:
                write_whole_bytes(out / f"{number:02d}-{kind}-moving.png", animation(image))
    captions = "".join(f"{number:02d}\t{prompt}\n" for number, prompt in enumerate(unique))
    write_whole(out / "prompts.txt", captions)
    if compare:
        write_whole_bytes(out / "side-by-side.png", png(_side_by_side(made["uncached"], made["plan"])))
        print(f"{out / 'side-by-side.png'}: uncached above, by the plan below")
    images = next(iter(made.values()))
    print(f"wrote {len(made) * len(images)} {_kind(images)} to {out}")


def load_plan(name: str) -> Plan:
    """A plan file, or a plan that ships.

    Raises:
        FestinaError: there is neither.
    """
    from festina.zoo import SHIPPED, shipped_plan

    if name.partition("/")[0] in SHIPPED and not Path(name).exists():
        return shipped_plan(name)
    return Plan.load(name)


def _side_by_side(uncached: Any, planned: Any) -> Any:
    """One picture: a row of uncached pictures over a row by the plan; of videos, a row of frames each in turn."""
    import torch

    from festina.report.comparison import strip

    if uncached.ndim == 4:
        return torch.cat([torch.cat(list(images), dim=2) for images in (uncached, planned)], dim=1)
    return torch.cat([strip(video) for pair in zip(uncached, planned, strict=True) for video in pair], dim=1)


def _kind(images: Any) -> str:
    return "videos" if images.ndim == 5 else "pictures"


def _timed(console: Console, name: str, make: Any) -> Any:
    with console.status(f"generating, {name}"):
        began = time.perf_counter()
        images = make()
        seconds = time.perf_counter() - began
    console.print(f"{name}: {len(images)} {_kind(images)} in {seconds:.2f} s", highlight=False)
    return images
