"""The `festina` command: its sub-commands put together, and every failure said in one line."""

from __future__ import annotations

import errno
import os
import sys
import warnings

import typer

from festina.cli import benching, calibrating, fronts, models, pictures, plans, searching
from festina.errors import FestinaError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_STOPPED = (
    "stopped. A search, a benchmark, a calibration and a training keep what was done: the same command goes on. Others "
    "begin again."
)

app = typer.Typer(
    name="festina",
    help="Makes off-the-shelf diffusion pipelines faster without retraining them.\n\n"
    "MODEL is a local folder in diffusers' format, a Hub id, or one of the small pipelines that ship: scenes, which is "
    "in every installation, scenes-flux, scenes-unet and scenes-video.\n\n"
    "Try: festina search scenes --out runs/first --population 12 --generations 4 --images 16",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("search")(searching.search_command)
app.command("calibrate")(calibrating.calibrate_command)
app.command("bench")(benching.bench_command)
app.command("front")(fronts.front_command)
app.command("generate")(pictures.generate_command)
app.command("sites")(models.sites_command)
app.add_typer(plans.app, name="plan")
app.add_typer(models.zoo_app, name="zoo")


def main() -> None:
    """Entry point. Exit code 0 on success, 1 after a mistake, 2 for wrong usage, 130 after Ctrl-C."""
    _quiet()
    try:
        app()
    except SystemExit as stop:
        # Typer turns Ctrl-C into this code without a word.
        if stop.code == INTERRUPTED:
            _fail(_STOPPED, INTERRUPTED)
        raise
    except FestinaError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR):
            raise
        _fail(f"{error.strerror}: {error.filename or 'output'}")


def _fail(message: str, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _quiet() -> None:
    """Keep the libraries' own progress bars and notices out of the command's output."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
