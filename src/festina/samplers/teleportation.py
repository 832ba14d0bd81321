"""Gaussian teleportation: the first, noisiest part of a run in closed form, without a call of the network.

At large noise a network says nearly what it would say if its pictures were Gaussian, with the mean and covariance they
have. For Gaussian pictures the probability flow has a closed form, which carries the first noise to any later level at
once (Wang and Vastola, 2311.10892 and 2412.09726).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from festina.errors import FestinaError
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.table import level_within
from festina.strict import brief, read_json

__all__ = ["GaussianStatistics", "carried", "statistics_of", "teleported"]

_RECORD, _VERSION = "festina_gaussian_statistics", 1
_TENSORS = ("mean", "directions", "variances")
_FIELDS = ("version", "shape", "count", "measured_on")

_EXACT = (torch.float32, torch.float64)

_SKEW = 1e-3
"""Most that products of directions may differ from those of orthogonal unit vectors."""


@dataclass(frozen=True, eq=False)
class GaussianStatistics:
    """Mean and covariance of clean latents, the covariance by its largest directions. In all others there is none.

    Attributes:
        mean: (dimensions,), of one sample's numbers in a row; float32 or float64, as the other tensors.
        directions: (rank, dimensions), orthogonal unit vectors.
        variances: (rank,), along the directions.
        shape: of one sample, without the batch; its product is the dimensions.
        count: samples they were measured on.
        measured_on: what was measured, in words.

    Raises:
        FestinaError: tensors that do not fit each other or the shape, are not finite, or are no such directions.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    shape: tuple[int, ...]
    count: int
    measured_on: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        rank, dimensions = len(self.variances), torch.Size(self.shape).numel()
        tensors = {name: getattr(self, name) for name in _TENSORS}
        wanted = {"mean": (dimensions,), "directions": (rank, dimensions), "variances": (rank,)}
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != wanted[name] or tensor.dtype not in _EXACT or not tensor.isfinite().all():
                raise FestinaError(
                    f"the {name} of statistics of samples of shape {self.shape} is a tensor of shape "
                    f"{tuple(tensor.shape)} in {tensor.dtype}; wanted {wanted[name]}, finite, in float32 or float64."
                )
        if bool((self.variances < 0).any()):
            raise FestinaError("a variance of the statistics is negative. Use statistics_of.")
        products = self.directions @ self.directions.T
        if rank and float((products - torch.eye(rank).to(products)).abs().max()) > _SKEW:
            raise FestinaError("the directions of the statistics are no orthogonal unit vectors. Use statistics_of.")

    @property
    def rank(self) -> int:
        """Directions of the covariance that are kept."""
        return len(self.variances)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over shape, type and bytes of all numbers: of what decides where a sample is carried."""
        digest = hashlib.sha256()
        for name in _TENSORS:
            tensor = getattr(self, name).detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            FestinaError: it cannot be written.
        """
        where = Path(path)
        record = {
            "version": _VERSION,
            "shape": list(self.shape),
            "count": self.count,
            "measured_on": self.measured_on,
        }
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        scratch = where.with_name(f".{where.name}.part")
        try:
            save_file(tensors, scratch, {_RECORD: json.dumps(record, allow_nan=False)})
            scratch.replace(where)
        except (OSError, SafetensorError) as error:
            scratch.unlink(missing_ok=True)
            raise FestinaError(f"cannot write the statistics {where}: {brief(error)}.") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GaussianStatistics:
        """The statistics written by `save`.

        Raises:
            FestinaError: the file cannot be read or holds no such statistics.
        """
        if Path(path).is_dir():
            raise FestinaError(f"{path} is a folder; wanted a file that GaussianStatistics.save wrote.")
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                told = (file.metadata() or {}).get(_RECORD)
                names = set(file.keys())
                tensors = {name: file.get_tensor(name) for name in _TENSORS if name in names}
        except (OSError, SafetensorError) as error:
            raise FestinaError(f"cannot read the statistics {path}: {brief(error)}.") from None
        if told is None or names != set(_TENSORS):
            raise FestinaError(f"{path} holds no Gaussian statistics. Use a file that GaussianStatistics.save wrote.")
        try:
            return cls(**tensors, **_checked(read_json(told, "a record of Gaussian statistics")))
        except FestinaError as error:
            raise FestinaError(f"{path}: {error}") from None


def statistics_of(latents: Tensor, rank: int, measured_on: str = "") -> GaussianStatistics:
    """Mean and covariance of clean latents: the principal directions with the largest variances.

    Args:
        latents: (count, ...), as the scheduler ends with them (`output_type="latent"`); any floating dtype. They are
            measured in float64, and the statistics are kept in float32, of latents in float64 in float64.
        rank: directions to keep, from 1 to the smaller of count - 1 and the numbers of a sample.
        measured_on: what the latents are, in words.

    Raises:
        FestinaError: latents that are not finite or that no covariance follows from, or a rank out of range.
    """
    if latents.ndim < 2 or len(latents) < 2 or not latents.isfinite().all():
        raise FestinaError(
            f"latents of shape {tuple(latents.shape)} have no covariance to measure. Give two samples or more, batch "
            "first, all of them finite."
        )
    flat = latents.detach().to("cpu", torch.float64).flatten(1)
    count = len(flat)
    highest = min(count - 1, flat.shape[1])
    if not 1 <= rank <= highest:
        raise FestinaError(
            f"{count} samples of {flat.shape[1]} numbers give no covariance of rank {rank}. Use a rank from 1 to "
            f"{highest}."
        )
    mean = flat.mean(0)
    _, spread, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    variances = spread.square() / (count - 1)
    kept = latents.dtype if latents.dtype == torch.float64 else torch.float32
    return GaussianStatistics(
        mean.to(kept),
        directions[:rank].to(kept).clone(memory_format=torch.contiguous_format),
        variances[:rank].to(kept).clone(),
        tuple(latents.shape[1:]),
        count,
        measured_on,
    )


def teleported(sample: Tensor, frame: Frame, statistics: GaussianStatistics, level: float) -> Tensor:
    """The sample at a later level of the run that begins with this noise.

    Args:
        sample: (batch, ...), pure noise at the model's largest level as the pipeline makes it: of unit variance, EDM's
            multiplied by the scheduler's `init_noise_sigma`.
        frame: of the model.
        statistics: of its clean latents.
        level: to carry it to, as the scheduler counts it: sigma / alpha, flow models' sigma after any shift.

    Returns:
        the sample there, of the same shape and dtype.

    Raises:
        FestinaError: samples of another shape than the statistics', or a level that the model does not have.
    """
    target = level_within(frame, level, "the sample is to be carried to")
    return carried(sample, statistics, frame.level(frame.largest_noise), target)


def carried(sample: Tensor, statistics: GaussianStatistics, source: NoiseLevel, target: NoiseLevel) -> Tensor:
    """A sample at another level of its path, for Gaussian pictures.

    The distance from the mean grows along each direction as the deviation of noisy samples does: by
    sqrt((sigma'^2 + alpha'^2 variance) / (sigma^2 + alpha^2 variance)) (the solution of the probability flow in
    2412.09726, there in the units of EDM). It is finite for a flow's pure noise, where alpha is 0.

    Args:
        sample: (batch, ...), any floating dtype; computed in float32, in float64 for samples in float64.
        statistics: of the clean latents.
        source: level of the sample, above clean.
        target: level to carry it to.

    Raises:
        FestinaError: samples of another shape than the statistics', or a clean source.
    """
    if tuple(sample.shape[1:]) != statistics.shape:
        raise FestinaError(
            f"the statistics are of samples of shape {statistics.shape}, and these have {tuple(sample.shape[1:])}. "
            "Measure statistics at this size."
        )
    if source.sigma == 0:
        raise FestinaError("a clean sample lies on no one path. Begin at a level above 0.")
    exact = torch.float64 if sample.dtype == torch.float64 else torch.float32

    mean, directions = (tensor.to(sample.device, exact) for tensor in (statistics.mean, statistics.directions))
    variances = statistics.variances.double()
    here, there = (level.sigma**2 + level.alpha**2 * variances for level in (source, target))
    outside = target.sigma / source.sigma
    inside = ((there / here).sqrt() - outside).to(sample.device, exact)
    away = sample.to(exact).flatten(1) - source.alpha * mean
    result = target.alpha * mean + outside * away + (away @ directions.T * inside) @ directions
    return result.reshape(sample.shape).to(sample.dtype)


def _checked(record: Any) -> dict[str, Any]:
    """The values of a record beside the tensors."""
    if not isinstance(record, dict) or set(record) != set(_FIELDS):
        raise FestinaError(f"a record of Gaussian statistics has the keys {', '.join(_FIELDS)}.")
    if record["version"] != _VERSION:
        raise FestinaError(
            f"written in version {record['version']!r:.20} of the format; this Festina reads {_VERSION}."
        )
    shape, count = record["shape"], record["count"]
    whole = isinstance(shape, list) and all(type(size) is int and size >= 1 for size in shape)
    if not (whole and type(count) is int and isinstance(record["measured_on"], str)):
        raise FestinaError("a record of Gaussian statistics has a list of sizes, a count, and a text.")
    return {"shape": tuple(shape), "count": count, "measured_on": record["measured_on"]}
