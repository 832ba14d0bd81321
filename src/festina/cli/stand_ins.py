"""What a plan wants besides a pipeline: `--with NAME=SOURCE`, the denoisers that it calls in the place of the
pipeline's own, and `--statistics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from festina.errors import FestinaError
from festina.plan import Plan

if TYPE_CHECKING:
    from torch import nn

StandIns = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="NAME=SOURCE",
        help="A denoiser that the plan calls by this name: a folder, a Hub id, or one that ships, as in "
        "small=scenes-small. Once for each.",
    ),
]


StatisticsFile = Annotated[
    Path | None,
    typer.Option("--statistics", help="Gaussian statistics, a file, for a plan that carries the first noise by them."),
]


def stand_ins(words: Sequence[str] | None, plan: Plan | None) -> dict[str, str]:
    """From what was given as `--with` to the source of each model by its name.

    Raises:
        FestinaError: a word is not NAME=SOURCE, a name comes twice, or these are not the models that the plan calls.
    """
    sources = sources_of(words)
    if plan is None:
        if sources:
            raise FestinaError("--with needs a --plan that calls the model.")
        return sources
    called = plan.canonical().models
    if missing := sorted(called - set(sources)):
        raise FestinaError(
            f"the plan calls {', '.join(map(repr, missing))} in the place of the denoiser, and no source of it was "
            f"given; say it as --with {missing[0]}=SOURCE, a folder, a Hub id or one that ships (scenes-small)."
        )
    if unknown := sorted(set(sources) - called):
        known = f"it calls {', '.join(map(repr, sorted(called)))}" if called else "it calls none"
        raise FestinaError(f"the plan calls no model {unknown[0]!r}: {known}. Leave --with {unknown[0]}=... out.")
    return sources


def sources_of(words: Sequence[str] | None) -> dict[str, str]:
    """The source of each model by its name, whatever plan calls them.

    Raises:
        FestinaError: a word is not NAME=SOURCE, or a name comes twice.
    """
    sources: dict[str, str] = {}
    for word in words or ():
        name, _, source = word.partition("=")
        if not name or not source:
            raise FestinaError(f"--with {word!r} is not NAME=SOURCE; wanted such as --with small=scenes-small.")
        if name in sources:
            raise FestinaError(f"--with names {name!r} twice; wanted one source for each model of the plan.")
        sources[name] = source
    return sources


def load_stand_ins(sources: Mapping[str, str], device: str = "cpu") -> dict[str, nn.Module]:
    """The denoisers themselves, by their names.

    Raises:
        FestinaError: a source does not exist or is no denoiser.
    """
    from festina.zoo import load_denoiser

    return {name: load_denoiser(source, device) for name, source in sources.items()}
