"""Loading one denoiser without its pipeline: such as a smaller one that takes some steps of another pipeline's."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import torch
from torch import nn

from festina.errors import FestinaError
from festina.zoo.loading import SHIPPED, SMALL, WEIGHTS, no_loading_bars, shipped_folder

COMPONENTS = ("transformer", "unet", "prior", "decoder")
"""What diffusers calls the denoiser of a pipeline."""


def load_denoiser(
    source: str | os.PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Load a denoiser.

    Args:
        source: a small denoiser that ships ("scenes-small"); a local folder or a Hub id of one model in diffusers'
            format, of which `config.json` names the class; or a pipeline, local, of the Hub or one that ships, of which
            the denoiser is taken.
        device: where to put it.
        dtype: type of its weights.

    Returns:
        the denoiser, in evaluation mode.

    Raises:
        FestinaError: there is no such folder or Hub repository, it holds no denoiser of a class of diffusers, or the
            weights of one that ships are not in this installation.
    """
    # diffusers takes seconds to import; `festina plan show` should not wait for it.
    from diffusers import AutoModel

    said = os.fspath(source)
    place = _place_of(said)
    inside = _denoiser_of(said, place)
    try:
        with no_loading_bars():
            model = AutoModel.from_pretrained(place, subfolder=inside, dtype=dtype)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, TypeError, ImportError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0][:300] if lines else type(error).__name__
        raise FestinaError(f"cannot load a denoiser from {said!r}: {reason}") from None
    if not isinstance(model, nn.Module) or not _takes_a_time(model):
        raise FestinaError(
            f"{said!r} holds a {type(model).__name__}, which takes no timestep; wanted a denoiser, such as the folder "
            f"of a pipeline's transformer or unet."
        )
    return model.to(device).eval()


def _takes_a_time(model: nn.Module) -> bool:
    """Whether a model is called for a time, which tells denoisers from the other parts of a pipeline."""
    names = inspect.signature(model.forward).parameters
    return any(name == "t" or name.startswith("timestep") for name in names)


def _place_of(source: str) -> str:
    """The folder or Hub id of a model or a pipeline.

    Raises:
        FestinaError: there is no such folder, or it is of neither.
    """
    if source in SHIPPED:
        return str(shipped_folder(source) / "pipeline")
    if source in SMALL:
        return str(_small_folder(source))
    folder, on_the_hub = Path(source), not source.startswith((".", "/", "~")) and source.count("/") == 1
    if not folder.is_dir() and not on_the_hub:
        raise FestinaError(
            f"no such model: {source!r}. Give a local folder of a model or pipeline in diffusers' format, a Hub id "
            f"(owner/name), or the name of one that ships ({', '.join((*SMALL, *SHIPPED))})."
        )
    if folder.is_dir() and not any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        raise FestinaError(
            f"{source} holds no model in diffusers' format: it has neither config.json nor model_index.json."
        )
    return source


def _denoiser_of(source: str, place: str) -> str | None:
    """Where in its folder or repository a pipeline has its denoiser; None if there is no pipeline.

    Raises:
        FestinaError: the pipeline has none.
    """
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(place)
    except OSError:
        # A model alone, or nothing that can be read: loading it tells which.
        return None
    # What a pipeline can do without is kept as [null, null].
    for name in COMPONENTS:
        if any(index.get(name) or ()):
            return name
    raise FestinaError(f"the pipeline {source!r} has none of {', '.join(COMPONENTS)}; wanted one with a denoiser.")


def _small_folder(name: str) -> Path:
    """The folder of a small denoiser that ships.

    Raises:
        FestinaError: its weights are not in this installation.
    """
    folder = WEIGHTS / name
    if not (folder / "config.json").is_file():
        raise FestinaError(
            f"the weights of {name!r} are not in this installation. Train it with `festina zoo train {name} --out "
            f"FOLDER` and give FOLDER as the model."
        )
    return folder
