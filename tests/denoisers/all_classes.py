"""Every fixture there is, and what has none and why."""

from __future__ import annotations

from denoisers import (
    transformers_a,
    transformers_a2,
    transformers_a3,
    transformers_a4,
    transformers_b,
    transformers_b2,
    transformers_b3,
    transformers_b4,
    transformers_c,
    unets,
)
from denoisers.tiny_class import TinyClass

_FILES = (
    transformers_a,
    transformers_a2,
    transformers_a3,
    transformers_a4,
    transformers_b,
    transformers_b2,
    transformers_b3,
    transformers_b4,
    transformers_c,
    unets,
)

CLASSES: dict[str, TinyClass] = {name: tiny for file in _FILES for name, tiny in file.CLASSES.items()}
"""Fixtures by class name, with what is special about it behind a hyphen where a class has several."""

LEFT_OUT: dict[str, str] = {name: why for file in _FILES for name, why in getattr(file, "LEFT_OUT", {}).items()}
"""Classes of diffusers without a fixture, with the reason."""
