"""The machine and the libraries that decide measured figures, as JSON values."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import festina

LIBRARIES = ("diffusers", "transformers", "numpy")
"""Installed packages whose versions are told besides those of Python, Festina and torch."""


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine: processor, its logical cores, threads of torch, and the accelerator if `device` is one."""
    machine = {"processor": _processor(), "logical_cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return machine | {"accelerator": card.name, "accelerator_bytes": card.total_memory}
    return machine


def libraries() -> dict[str, str]:
    """Versions of Python, Festina and the installed libraries that decide the figures."""
    versions = {"python": platform.python_version(), "festina": festina.__version__, "torch": torch.__version__}
    installed = {package.metadata["Name"].lower(): package.version for package in metadata.distributions()}
    return versions | {name: installed[name] for name in LIBRARIES if name in installed}


def in_words(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Machine and versions in a sentence."""
    where = f"{machine['processor']}, {machine['torch_threads']} threads"
    where += f", {machine['accelerator']}" if "accelerator" in machine else ""
    return f"{where}; {', '.join(f'{name} {version}' for name, version in versions.items())}"


def _processor() -> str:
    """The processor's product name; where the system does not tell it, its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
