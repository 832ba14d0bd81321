"""`festina sites` and `festina zoo train`: what a model is made of, and making the ones that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from festina.errors import FestinaError

zoo_app = typer.Typer(help="The small pipelines that ship.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Local folder, Hub id, or 'scenes'.")]


def sites_command(
    model: Model,
    height: Annotated[int | None, typer.Option(help="Picture height in pixels; the model's own if not given.")] = None,
    width: Annotated[int | None, typer.Option(help="Picture width in pixels; the model's own if not given.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Length of the text in tokens.", min=0)] = 120,
) -> None:
    """List a model's sites: parameters, share of the MACs and bytes kept per picture, by group of equal sites."""
    from festina.cost import mac_table, shape_of
    from festina.layers import stored_numbers
    from festina.sites import component_sites, find_denoiser, site_module
    from festina.zoo import load

    pipe = load(model)
    denoiser = find_denoiser(pipe)
    sites = component_sites(denoiser)
    default = _default_size(pipe)
    shape = shape_of(pipe, height or default, width or default, 1, text_tokens)
    prices = mac_table(denoiser, shape)
    total = sum(prices.sites[site.name].total for site in sites) + prices.fixed.total
    groups: dict[str, list[int]] = {}
    for site in sites:
        parameters = sum(p.numel() for p in site_module(denoiser, site).parameters())
        figures = (1, parameters, prices.sites[site.name].total, 2 * stored_numbers(site, denoiser, shape))
        groups[site.group] = [old + new for old, new in zip(groups.get(site.group, [0] * 4), figures, strict=True)]
    table = Table(title=f"{type(denoiser).__name__}: {len(sites)} sites, {shape.image_tokens} image tokens")
    for heading in ("group", "sites", "weights", "GMACs", "share", "MiB kept"):
        table.add_column(heading, justify="left" if heading == "group" else "right", no_wrap=True)
    for group, (count, parameters, macs, held) in groups.items():
        table.add_row(
            group, str(count), f"{parameters:,}", f"{macs / 1e9:.4f}", f"{macs / total:.1%}", f"{held / 2**20:.3f}"
        )
    table.add_row("not cacheable", "", "", f"{prices.fixed.total / 1e9:.4f}", f"{prices.fixed.total / total:.1%}", "")
    Console().print(table)
    print("Per call with one picture; kept in half precision, if every site of the group is reused at once.")
    print("Name a site in a plan by group with the block's number, e.g. " + sites[0].name)


@zoo_app.command("train")
def train(
    name: Annotated[str, typer.Argument(help="Which pipeline; 'scenes'.")] = "scenes",
    out: Annotated[Path, typer.Option(help="Folder that receives the trained pipeline and judge.")] = Path(
        "runs/scenes"
    ),
    work: Annotated[Path, typer.Option(help="Folder of checkpoints and rendered data.")] = Path("runs/scenes-work"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compile_denoiser: Annotated[
        bool, typer.Option("--compile", help="Compile the denoiser (needs a C++ compiler; faster on a CPU).")
    ] = False,
    denoiser_steps: Annotated[int | None, typer.Option(help="Steps of the longest stage.", min=1)] = None,
) -> None:
    """Train a shipped pipeline again, from the renderer alone. Stop it at any time; the same command goes on."""
    import dataclasses

    import torch

    from festina.zoo.train import TrainSettings, train_scenes

    if name != "scenes":
        raise FestinaError(f"no recipe for {name!r}; there is one for 'scenes'.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FestinaError("--device cuda, but torch finds no CUDA device here; use --device cpu.")
    settings = TrainSettings(compile=compile_denoiser)
    if denoiser_steps is not None:
        settings = dataclasses.replace(settings, denoiser_steps=denoiser_steps)
    train_scenes(settings, work, out, torch.device(device))
    print(f"wrote {out}/pipeline and {out}/judge")


def _default_size(pipe: object) -> int:
    from festina.sites import find_denoiser

    config: Any = find_denoiser(pipe).config
    size: Any = getattr(config, "sample_size", None) or getattr(pipe, "default_sample_size", 128)
    return int(size) * int(getattr(pipe, "vae_scale_factor", 8))
