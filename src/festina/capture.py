"""The arguments of a pipeline's first denoiser call, without running the denoiser."""

from __future__ import annotations

import inspect
from typing import Any

from festina.errors import FestinaError
from festina.sites import find_denoiser
from festina.trace import Call


class _Captured(BaseException):
    """Carries the first call out of the pipeline; no handler of a pipeline may swallow it."""

    def __init__(self, call: Call) -> None:
        self.call = call


def first_call(pipe: Any, **arguments: Any) -> Call:
    """Run a pipeline up to its first denoiser call: text encoders and the preparation of latents, no more.

    Args:
        pipe: a diffusers pipeline.
        **arguments: of its call.

    Raises:
        FestinaError: the pipeline refuses the arguments, or never calls its denoiser.
    """
    denoiser = find_denoiser(pipe)

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise _Captured(Call(args, kwargs))

    before = denoiser.__dict__.get("forward")
    denoiser.__dict__["forward"] = forward
    try:
        pipe(**arguments)
    except _Captured as captured:
        return captured.call
    except (TypeError, ValueError, AttributeError) as error:
        raise FestinaError(f"{type(pipe).__name__} cannot be called with {sorted(arguments)}: {error}") from None
    finally:
        del denoiser.__dict__["forward"]
        if before is not None:
            denoiser.__dict__["forward"] = before
    raise FestinaError(f"{type(pipe).__name__} made its picture without calling its {type(denoiser).__name__}.")


def plain_arguments(pipe: Any) -> dict[str, Any]:
    """Arguments of a call that any pipeline of its kind takes: a short prompt, or class 0 where it draws classes."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    plain: dict[str, Any] = {"num_inference_steps": 2}
    if "prompt" in accepted:
        plain["prompt"] = ["a picture"]
    elif "class_labels" in accepted:
        plain["class_labels"] = [0]
    return plain
