"""`festina calibrate`: measure what calibrated methods need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from festina.errors import FestinaError

SHIPPED_PROMPTS = 8
"""How many captions a pipeline that ships is calibrated on if nothing is said."""


def calibrate_command(
    model: Annotated[str, typer.Argument(help="Local folder, Hub id, or a pipeline that ships, such as 'scenes'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; it goes on with one it has begun.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line. Not needed for what ships.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Use only so many prompts, one picture each.", min=1)] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps; those of the plans to be made.", min=2)] = 20,
    guidance: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 4.5,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.", min=0)] = 0,
    measures: Annotated[
        str | None,
        typer.Option(help="Of lags,magnitudes,changes,distances, with commas; all the model has if not given."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure in a few untouched runs what SmoothCache, MagCache, TeaCache and CacheQuant need.

    The file is written after each picture. Ctrl-C at any time; the same command goes on.
    """
    from festina.calibration import calibrate
    from festina.cli.progress import showing_progress
    from festina.cli.prompts import CALIBRATION_SEED, read_prompts
    from festina.search.generation import call_of
    from festina.search.workload import Workload
    from festina.zoo import call_arguments, load
    from festina.zoo.loading import want_model
    from festina.zoo.shipped import shipped

    want_model(model)
    ours = shipped(model)
    if prompts is not None:
        chosen = read_prompts(prompts)[:images]
    elif ours is not None:
        chosen = ours.captions(images or SHIPPED_PROMPTS, CALIBRATION_SEED)
    else:
        raise FestinaError("no prompts; give --prompts FILE with one per line (a few that are like your own).")
    pipe = load(model, device)
    seeds = tuple(range(seed, seed + len(chosen)))
    workload = Workload(chosen, seeds, steps, guidance, call=call_arguments(pipe))
    # The strength of guidance under the name that this pipeline has for it; the rest as it was said.
    call = {**call_of(pipe, workload, chosen[:1]), **workload.call}
    names = None if measures is None else [name.strip() for name in measures.split(",")]
    strength = call.pop("guidance_scale", None)
    call = {name: value for name, value in call.items() if name != "prompt"}
    with showing_progress() as told:
        calibration = calibrate(pipe, chosen, steps, seeds, strength, call, names, out, told)
    count = len(calibration.pictures)
    print(f"{out}: {', '.join(calibration.measures)} of {count} pictures in {steps} steps of {calibration.sampler}")
