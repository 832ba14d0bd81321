"""The training pictures, and the autoencoder that turns them into latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from festina.zoo.components import build_vae
from festina.zoo.denoising import autocast
from festina.zoo.family import Captioned
from festina.zoo.stages import Schedule, Stage, fit, save_atomically


class Drawing(Protocol):
    """What there is to draw for training, and how."""

    def sample(self, count: int, seed: int) -> Sequence[Captioned]: ...

    def render(self, scenes: Sequence[Any], seed: int) -> Tensor: ...


def load_pictures(family: Drawing, count: int, seed: int, folder: Path) -> tuple[Sequence[Captioned], Tensor]:
    """The training scenes of a family and their pictures, uint8 (count, [frames,] 3, height, width); rendered once,
    then read from `folder`."""
    scenes = family.sample(count, seed)
    path = folder / "pictures.pt"
    if path.exists():
        pictures = torch.load(path, weights_only=True)
        if len(pictures) == len(scenes):
            return scenes, pictures
    print(f"   render  {len(scenes)} scenes", flush=True)
    parts = []
    for start in range(0, len(scenes), 1000):
        part = family.render(scenes[start : start + 1000], seed * 1_000_003 + start)
        parts.append(part.mul(255).round().to(torch.uint8))
    pictures = torch.cat(parts)
    save_atomically(pictures, path)
    return scenes, pictures


def train_vae(schedule: Schedule, seed: int, pictures: Tensor, folder: Path, device: torch.device) -> AutoencoderKL:
    """Autoencoder on rendered pictures: squared and absolute error plus a slight pull of latents towards N(0, 1)."""
    torch.manual_seed(seed)
    vae = build_vae().to(device, memory_format=torch.channels_last)

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        images = pictures[indices].to(device).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        error = decoded.float() - images
        squared = error.square().mean()
        loss = error.abs().mean() + 2 * squared + 1e-5 * posterior.kl().float().mean() / 256
        return loss, {"psnr": 10 * math.log10(4 / squared.item())}

    fit(Stage(folder, "vae"), schedule, {"model": vae}, len(pictures), loss_of)
    return vae.eval()


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pictures: Tensor, folder: Path, device: torch.device) -> Tensor:
    """Latents of all training pictures, float16 (count, 4, 16, 16), unscaled; computed once, then read from disk. Of
    videos frame by frame: (count, 4, frames, 16, 16)."""
    path = folder / "latents.pt"
    if path.exists():
        known: Tensor = torch.load(path, weights_only=True)
        if len(known) == len(pictures):
            return known
    frames = pictures.flatten(0, -4)
    parts = []
    for start in range(0, len(frames), 256):
        images = frames[start : start + 256].to(device).float().div(127.5).sub(1)
        with autocast(device):
            parts.append(vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean.half().cpu())
    latents = torch.cat(parts).contiguous()
    if pictures.ndim == 5:
        latents = latents.unflatten(0, pictures.shape[:2]).transpose(1, 2).contiguous()
    save_atomically(latents, path)
    return latents
