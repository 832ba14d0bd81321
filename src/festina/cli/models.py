"""`festina sites` and `festina zoo train`: what a model is made of, and making the ones that ship."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from festina.cli.tree import tree_lines
from festina.errors import FestinaError

zoo_app = typer.Typer(help="The small pipelines that ship.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Local folder, Hub id, or a pipeline that ships, such as 'scenes'.")]


class Depth(StrEnum):
    """How much of the tree is shown."""

    LISTS = "lists"
    BLOCKS = "blocks"
    COMPONENTS = "components"


def sites_command(
    model: Model,
    height: Annotated[int | None, typer.Option(help="Picture height in pixels; the model's own if not given.")] = None,
    width: Annotated[int | None, typer.Option(help="Picture width in pixels; the model's own if not given.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt as long as yours, for the length of the text.")] = None,
    depth: Annotated[Depth, typer.Option(help="Equal blocks in one line, or every block, or every component.")] = (
        Depth.LISTS
    ),
) -> None:
    """Show a model's site tree: what can be served, with weights, share of the MACs and bytes kept per call."""
    from festina.capture import first_call, plain_arguments
    from festina.sites import find_denoiser
    from festina.trace import trace
    from festina.zoo import call_arguments, load

    pipe = load(model)
    arguments = {**plain_arguments(pipe), **call_arguments(pipe)}
    if prompt is not None:
        arguments["prompt"] = [prompt]
    arguments |= {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    denoiser = find_denoiser(pipe)
    traced = trace(denoiser, first_call(pipe, **arguments))
    lines = tree_lines(denoiser, traced, depth)
    table = Table(title=f"{type(denoiser).__name__}: {traced.macs.total / 1e9:.4f} GMACs per call")
    for heading in ("site", "number", "weights", "GMACs", "share", "MiB kept"):
        table.add_column(heading, justify="left" if heading == "site" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    print("One call of the denoiser; kept in half precision, if every site of the line is reused at once.")
    print(
        "A plan names components by path, blocks as PATH:residual, runs as LIST.I..J:residual, regions as PATH:feature."
    )


@zoo_app.command("train")
def train_command(
    name: Annotated[
        str,
        typer.Argument(
            help="Which pipeline: scenes, scenes-flux, scenes-unet, scenes-video or scenes-unconditional; or the small "
            "denoiser scenes-small."
        ),
    ] = "scenes",
    out: Annotated[
        Path | None, typer.Option(help="Folder that receives the trained pipeline; runs/NAME if not given.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints and rendered data; runs/NAME-work if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compile_denoiser: Annotated[
        bool, typer.Option("--compile", help="Compile the denoiser (needs a C++ compiler; faster on a CPU).")
    ] = False,
    denoiser_steps: Annotated[
        int | None, typer.Option(help="Steps of the longest stage; those of the recipe if not given.", min=1)
    ] = None,
) -> None:
    """Train a shipped pipeline or small denoiser again, from the renderer and, but for scenes itself, parts of scenes.

    Stop it at any time; the same command goes on.
    """
    import dataclasses

    import torch

    from festina.zoo.loading import UNCONDITIONAL
    from festina.zoo.train import recipe, train
    from festina.zoo.unconditional import UnconditionalSettings, train_unconditional

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FestinaError("--device cuda, but torch finds no CUDA device here; use --device cpu.")
    changes: dict[str, Any] = {"compile": compile_denoiser}
    if denoiser_steps is not None:
        changes["denoiser_steps"] = denoiser_steps
    out, work = out or Path("runs") / name, work or Path("runs") / f"{name}-work"
    wrote = out / "pipeline"
    if name == UNCONDITIONAL:
        train_unconditional(dataclasses.replace(UnconditionalSettings(), **changes), work, out, torch.device(device))
    else:
        family = recipe(name)
        train(name, dataclasses.replace(family.settings, **changes), work, out, torch.device(device))
        wrote = out if family.beside else wrote
    print(f"wrote {wrote}" + (f" and {out}/judge" if (out / "judge").is_dir() else ""))
