"""The workload: the prompts, noise and call settings that every candidate is measured on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from festina.errors import FestinaError
from festina.metrics.reward import Reward, weights_fingerprint
from festina.search.archive import WorkloadKey
from festina.sites import find_denoiser

RESERVED = ("prompt", "generator", "num_inference_steps", "guidance_scale", "output_type", "return_dict")
"""Arguments of the pipeline call that the workload's own fields decide."""


@dataclass(frozen=True)
class Workload:
    """Prompts, noise and call settings.

    Attributes:
        prompts: one or more prompts, each once.
        seeds: seed of the noise of every picture, the pictures of one prompt side by side: as many as prompts, or a
            multiple (the first prompt's pictures, then the second's, ...).
        steps: sampling steps.
        guidance_scale: strength of classifier-free guidance.
        batch: pictures per call of the pipeline.
        call: further arguments of the pipeline call: JSON values by name.

    Raises:
        FestinaError: on construction, if the counts do not fit or an argument cannot be used.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    batch: int = 8
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts or len(set(self.prompts)) != len(self.prompts):
            raise FestinaError("a workload wants one prompt or more, each only once; use more seeds for more pictures.")
        if not self.seeds or len(self.seeds) % len(self.prompts):
            raise FestinaError(
                f"{len(self.seeds)} seeds for {len(self.prompts)} prompts; wanted one per picture: as many as prompts, "
                f"or a multiple."
            )
        if self.steps < 1 or self.batch < 1 or not math.isfinite(self.guidance_scale):
            raise FestinaError(
                f"{self.steps} steps in batches of {self.batch} at guidance {self.guidance_scale}; wanted at least 1 "
                f"of each and a finite guidance."
            )
        if taken := set(self.call) & set(RESERVED):
            raise FestinaError(f"the workload itself decides {sorted(taken)}; leave it out of the call arguments.")
        try:
            json.dumps(dict(self.call), allow_nan=False)
        except (TypeError, ValueError):
            raise FestinaError("the further call arguments of a workload are plain JSON values.") from None

    @property
    def images_per_prompt(self) -> int:
        """Pictures per prompt."""
        return len(self.seeds) // len(self.prompts)

    def pictures(self) -> list[tuple[str, int]]:
        """Prompt and seed of every picture."""
        return [(self.prompts[index // self.images_per_prompt], seed) for index, seed in enumerate(self.seeds)]

    def key(self, pipeline: str, reward: Reward) -> WorkloadKey:
        """The hash and description of this workload on a pipeline, judged by a reward.

        Args:
            pipeline: the pipeline's fingerprint, see `pipeline_fingerprint`.
            reward: what judges the pictures; its name and fingerprint enter.
        """
        what = asdict(self) | {"pipeline": pipeline, "reward": [reward.name, reward.fingerprint]}
        description = json.dumps(what, sort_keys=True, ensure_ascii=False)
        return WorkloadKey(hashlib.sha256(description.encode()).hexdigest(), description)


def pipeline_fingerprint(pipe: Any) -> str:
    """SHA-256 (hex) over all that decides a pipeline's pictures besides its call.

    The class of the pipeline, and of each component its class, its configuration (the scheduler's too), the bytes of
    its weights and, of a tokenizer, its vocabulary; also the kind of device, as seconds and last digits depend on it.
    It reads all weights once: about a second per gigabyte.

    Raises:
        FestinaError: weights are not in memory.
    """
    digest = hashlib.sha256(f"{type(pipe).__name__} on {device_kind(pipe)}\n".encode())
    for name, component in sorted(pipe.components.items()):
        digest.update(f"{name}: {type(component).__name__} {_configuration(component)}\n".encode())
        if isinstance(component, nn.Module):
            digest.update(weights_fingerprint(component).encode())
        elif hasattr(component, "get_vocab"):
            digest.update(json.dumps(component.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()


def device_kind(pipe: Any) -> str:
    """Where the denoiser runs: the accelerator's product name, or "cpu"."""
    device = next(find_denoiser(pipe).parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _configuration(component: Any) -> str:
    """A component's configuration as text, without paths and library versions, which decide no picture."""
    config = getattr(component, "config", None)
    if config is None:
        return ""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    told = {name: value for name, value in values.items() if not name.startswith("_") and "version" not in name}
    return json.dumps(told, sort_keys=True, default=str)
