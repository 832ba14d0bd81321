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
from festina.strict import brief, read_json

if TYPE_CHECKING:
    from festina.metrics.judge import Judge

SHIPPED = ("scenes", "scenes-flux", "scenes-unet", "scenes-video")
"""Names of the pipelines that ship; the weights of `scenes` are in every installation, those of the others not."""

SMALL = {"scenes-small": "scenes"}
"""Names of the small denoisers that ship, in every installation, each with the pipeline that it was made to stand in
for."""

STAND_IN = "small"
"""The name that plans have for a smaller denoiser, unless they are told another one."""


def small_for(model: str) -> dict[str, str]:
    """The small denoiser that ships for a pipeline, under the name that plans have for it; nothing where none does."""
    return next(({STAND_IN: small} for small, pipeline in SMALL.items() if pipeline == model), {})


UNCONDITIONAL = "scenes-unconditional"
"""Name of the pipeline that ships, in every installation, and draws without captions."""

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of what ships: for each pipeline or small denoiser a folder as `festina zoo train` writes it, with plans
beside. In a wheel the larger ones have no `pipeline`."""

CALL_FILE = "call.json"
"""File in a pipeline's folder: arguments that the call of this pipeline wants, as a JSON object."""


def want_model(model: str | os.PathLike[str]) -> None:
    """Raise a `FestinaError` for a text that can be no model: no folder, no Hub id, and nothing that ships."""
    source = os.fspath(model)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if source not in (*SHIPPED, UNCONDITIONAL) and looks_local and not Path(source).is_dir():
        raise FestinaError(
            f"no such model: {source!r}. Give a local folder in diffusers' format, a Hub id (owner/name), or the name "
            f"of a shipped pipeline ({', '.join((*SHIPPED, UNCONDITIONAL))})."
        )


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
        FestinaError: no such folder or Hub repository, it holds no diffusers pipeline, or the weights of a shipped
            pipeline are not in this installation.
    """
    # diffusers takes seconds to import; `festina plan show` should not wait for it.
    from diffusers import DiffusionPipeline

    want_model(model)
    source = str(shipped_folder(str(model)) / "pipeline") if model in (*SHIPPED, UNCONDITIONAL) else os.fspath(model)
    folder = Path(source)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise FestinaError(f"{source} holds no diffusers pipeline: it has no model_index.json.")
    try:
        with no_loading_bars():
            pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise FestinaError(f"cannot load a pipeline from {source!r}: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def shipped_folder(name: str) -> Path:
    """The folder of a shipped pipeline, with `pipeline/` in it.

    Raises:
        FestinaError: its weights are not in this installation.
    """
    folder = WEIGHTS / name
    if not (folder / "pipeline" / "model_index.json").is_file():
        raise FestinaError(
            f"the weights of {name!r} are not in this installation. Train it with `festina zoo train {name} --out "
            f"FOLDER` and give FOLDER/pipeline as the model; a checkout of Festina's sources has the weights too, in "
            f"src/festina/zoo/weights/{name}/pipeline."
        )
    return folder


@contextmanager
def no_loading_bars() -> Iterator[None]:
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
    off where they do not apply. A pipeline that was loaded from a folder can say more in a file `call.json` in it, a
    JSON object of arguments of its call, such as its size where that is not the default of its class.

    Raises:
        FestinaError: `call.json` cannot be read, is no JSON object, or names what the pipeline's call does not take.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    arguments: dict[str, Any] = {}
    if "clean_caption" in accepted:
        arguments["clean_caption"] = False
    if "use_resolution_binning" in accepted and pipe.transformer.config.sample_size not in (32, 64, 128):
        arguments["use_resolution_binning"] = False
    longest, usual = _longest_caption(pipe), getattr(accepted.get("max_sequence_length"), "default", None)
    if isinstance(usual, int) and 0 < longest < usual:
        # Longer captions than the tokenizers give would be padding.
        arguments["max_sequence_length"] = longest
    return arguments | _own_arguments(pipe, accepted)


def _longest_caption(pipe: Any) -> int:
    """Most tokens that any of a pipeline's tokenizers gives; 0 if it has none."""
    # A pipeline with several text encoders cuts each one's text at its own length; the limit is for the longest.
    parts = getattr(pipe, "components", {})
    tokenizers = [part for name, part in parts.items() if name.startswith("tokenizer") and part is not None]
    return max((getattr(tokenizer, "model_max_length", 0) for tokenizer in tokenizers), default=0)


def _own_arguments(pipe: Any, accepted: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder a pipeline was loaded from says in `call.json`; nothing where there is none."""
    source = getattr(pipe, "name_or_path", None)
    if not source or not (path := Path(source) / CALL_FILE).is_file():
        return {}
    try:
        found = read_json(path.read_text(encoding="utf-8"), f"the call arguments {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise FestinaError(f"cannot read {path}: {brief(error)}.") from None
    if not isinstance(found, dict):
        raise FestinaError(f"{path} holds no JSON object; wanted arguments of the pipeline's call by name.")
    if unknown := sorted(set(found) - set(accepted)):
        raise FestinaError(f"{path} names {unknown}, which the call of {type(pipe).__name__} does not take.")
    return found


def shipped_judge(device: str | torch.device = "cpu") -> Judge:
    """The judge of the pictures of `scenes`, `scenes-flux` and `scenes-unet`; see `festina.zoo.shipped` for videos."""
    # The judge knows the grammar, which lives in this package.
    from festina.metrics.judge import load_judge

    return load_judge(WEIGHTS / "scenes" / "judge", device)


def shipped_plans(model: str) -> tuple[str, ...]:
    """Names of the plans that ship for a model, such as "scenes/fast"; () if there are none."""
    return tuple(f"{model}/{path.stem}" for path in sorted((WEIGHTS / model / "plans").glob("*.json")))


def shipped_plan(name: str) -> Plan:
    """A plan that ships, by a name that `shipped_plans` gives, such as "scenes/fast".

    Raises:
        FestinaError: there is no such plan.
    """
    model, _, plan = name.partition("/")
    path = WEIGHTS / model / "plans" / f"{plan}.json"
    if model not in SHIPPED or not path.is_file():
        found = [known for each in SHIPPED for known in shipped_plans(each)]
        raise FestinaError(f"no shipped plan {name!r}; there are {', '.join(found) or 'none'}.")
    return Plan.load(path)
