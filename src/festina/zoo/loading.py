"""Loading a pipeline by the name of one that ships, from a local folder, or from the Hub."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from festina.errors import FestinaError
from festina.plan import Plan

if TYPE_CHECKING:
    from festina.metrics.judge import Judge

SHIPPED = ("scenes",)
"""Names of the pipelines that ship."""

_WEIGHTS = Path(__file__).parent / "weights"


def load(model: str | os.PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load a diffusers pipeline.

    Args:
        model: the name of a shipped pipeline, a local folder in diffusers' format, or a Hub id such as
            "PixArt-alpha/PixArt-XL-2-512x512".
        device: where to put it.
        dtype: type of its weights.

    Returns:
        the pipeline, with its progress bar off.

    Raises:
        FestinaError: no such folder or Hub repository, or it holds no diffusers pipeline.
    """
    # diffusers takes seconds to import; `festina plan show` should not wait for it.
    from diffusers import DiffusionPipeline

    source = str(_WEIGHTS / model / "pipeline") if model in SHIPPED else os.fspath(model)
    folder = Path(source)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise FestinaError(f"{source} holds no diffusers pipeline: it has no model_index.json.")
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if not folder.is_dir() and looks_local:
        raise FestinaError(
            f"no such model: {source!r}. Give a local folder in diffusers' format, a Hub id (owner/name), or the name "
            f"of a shipped pipeline ({', '.join(SHIPPED)})."
        )
    try:
        with _no_loading_bars():
            pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise FestinaError(f"cannot load a pipeline from {source!r}: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Without the loading bars of diffusers and transformers; afterwards they are as they were."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    noisy = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in noisy:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in noisy:
            library.enable_progress_bar()


def call_arguments(pipe: Any) -> Mapping[str, Any]:
    """Arguments a pipeline's call needs to run quietly at its own size.

    PixArt pipelines cut captions with packages most people lack and know three latent sizes only; both are switched
    off where they do not apply.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    arguments: dict[str, Any] = {}
    if "clean_caption" in accepted:
        arguments["clean_caption"] = False
    if "use_resolution_binning" in accepted and pipe.transformer.config.sample_size not in (32, 64, 128):
        arguments["use_resolution_binning"] = False
    if "max_sequence_length" in accepted and pipe.tokenizer.model_max_length < accepted["max_sequence_length"].default:
        # Longer captions than the tokenizer gives would be padding.
        arguments["max_sequence_length"] = pipe.tokenizer.model_max_length
    return arguments


def shipped_judge(device: str | torch.device = "cpu") -> Judge:
    """The judge of the `scenes` pictures."""
    # The judge knows the grammar, which lives in this package.
    from festina.metrics.judge import load_judge

    return load_judge(_WEIGHTS / "scenes" / "judge", device)


def shipped_plan(name: str) -> Plan:
    """A plan that ships, as "scenes/fast", "scenes/faster" or "scenes/fastest".

    Raises:
        FestinaError: there is no such plan.
    """
    model, _, plan = name.partition("/")
    path = _WEIGHTS / model / "plans" / f"{plan}.json"
    if model not in SHIPPED or not path.is_file():
        found = [f"{m}/{p.stem}" for m in SHIPPED for p in sorted((_WEIGHTS / m / "plans").glob("*.json"))]
        raise FestinaError(f"no shipped plan {name!r}; there are {', '.join(found) or 'none'}.")
    return Plan.load(path)
