"""`festina bench`: every method over its range of knobs on one model, beside the untouched sampler with fewer steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from festina.cli.stand_ins import StandIns, load_stand_ins, sources_of
from festina.errors import FestinaError
from festina.plan import Plan
from festina.strict import write_whole

if TYPE_CHECKING:
    from festina.benchmark.results import Benchmark

CALIBRATION_IMAGES = 8
"""Prompts that methods are calibrated on if nothing is said."""


def bench_command(
    model: Annotated[str, typer.Argument(help="Local folder, Hub id, or a pipeline that ships, such as 'scenes'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the benchmark; the same folder goes on with it.")],
    methods: Annotated[str, typer.Option(help="all, or names of methods with commas between them.")] = "all",
    plans: Annotated[
        list[str] | None,
        typer.Option(help="A plan file, or a folder of them, that takes part too; can be given several times."),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Whether the caches of other installed libraries take part.")] = True,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line. Not needed for what ships.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text file of other prompts, for methods that calibrate. Not needed for what ships."),
    ] = None,
    images: Annotated[int | None, typer.Option(help="Draw only so many prompts, one picture each.", min=2)] = None,
    calibration_images: Annotated[int, typer.Option(help="Calibrate on at most so many prompts.", min=1)] = (
        CALIBRATION_IMAGES
    ),
    rounds: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=2)] = 20,
    guidance: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 4.5,
    batch: Annotated[int, typer.Option(help="Pictures per call.", min=1)] = 16,
    reward: Annotated[
        str | None,
        typer.Option(help="judge, video-judge or clip:MODEL, as for a search; what ships has its judge."),
    ] = None,
    models: StandIns = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure published methods over their knobs, plans and other libraries on one model, in one run.

    Beside each stands the untouched sampler with fewer steps at the same seconds. Ctrl-C at any time; the same command
    goes on where it was.
    """
    from festina.benchmark.catalogue import entries_named
    from festina.benchmark.session import Job, run_benchmark
    from festina.cli.judging import fidelity_of, load_reward
    from festina.cli.progress import showing_progress
    from festina.cli.prompts import prompts_of_bench
    from festina.zoo import call_arguments, load
    from festina.zoo.loading import small_for, want_model
    from festina.zoo.shipped import shipped

    want_model(model)
    ours = shipped(model)
    entries = entries_named(methods)
    drawn, other = prompts_of_bench(ours, prompts, calibration, images, calibration_images)
    named = _plans(model if ours else None, plans or [])
    judged_by = load_reward(reward or ("judge" if ours else None), device, model)
    stitched = any(entry.method == "t_stitch" for entry in entries)
    others = load_stand_ins(sources_of(models) or (small_for(model) if stitched else {}), device)
    pipe = load(model, device)
    call = call_arguments(pipe)
    job = Job(model, drawn, other, entries, steps, guidance, batch, call, named, peers, rounds, others)
    with showing_progress() as told:
        found = run_benchmark(pipe, job, judged_by, out, fidelity_of(model, drawn, device), told)
    write_all(found, out)


def write_all(found: Benchmark, out: Path) -> None:
    """Write `bench.json`, `bench.md`, `bench.html` and `bench.png`, and print the table and the front."""
    from festina.benchmark.page import write_page
    from festina.benchmark.plot import write_plot
    from festina.benchmark.record import front_lines, terminal_table, to_json, to_markdown

    write_whole(out / "bench.json", to_json(found))
    write_whole(out / "bench.md", to_markdown(found))
    write_page(found, out / "bench.html")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(terminal_table(found))
    for each in found.failed:
        console.print(f"not run: {each.name}: {each.reason}", style="dim", markup=False, highlight=False)
    console.print("On the front of seconds and reward:")
    for line in front_lines(found):
        console.print(f"  {line}", markup=False, highlight=False)
    for note in found.notes:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"Page: {out / 'bench.html'}   figures: {out / 'bench.json'}, {out / 'bench.md'}", soft_wrap=True)
    try:
        write_plot(found, out / "bench.png")
    except FestinaError as error:
        console.print(f"[dim]no bench.png: {error}[/]")


def _plans(ours: str | None, given: list[str]) -> tuple[tuple[str, Plan], ...]:
    """Plans by a short name: those that ship for the model, and those that are given."""
    from festina.cli.pictures import load_plan
    from festina.zoo.loading import shipped_plans

    names = () if ours is None else shipped_plans(ours)
    found = [(name, load_plan(name)) for name in names]
    for text in given:
        folder = Path(text)
        if folder.is_dir():
            files = sorted(folder.glob("*.json"))
            if not files:
                raise FestinaError(f"{folder} holds no plan files (*.json).")
            found += [(f"{folder.name}/{file.stem}", Plan.load(file)) for file in files]
        elif text not in names:
            found.append((folder.stem if folder.exists() else text, load_plan(text)))
    return tuple(found)
