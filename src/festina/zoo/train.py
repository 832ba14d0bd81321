"""Trains the pipelines that ship, from nothing but the renderer, each in one resumable command.

Stages, each with its own checkpoint: `vae` (pictures to latents and back), `text` (encoders whose vectors know the
whole scene), `denoiser` (with exponential moving average, on latents of the trained autoencoder), `judge` (reads
pictures). Only `scenes` trains an autoencoder and a judge; the others use its. Killing the command loses at most a
minute; running it again goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from festina.errors import FestinaError
from festina.metrics.judge import Judge, scene_targets
from festina.strict import write_whole
from festina.zoo.denoising import conditions_of, latent_scaling, train_denoiser
from festina.zoo.family import Family
from festina.zoo.loading import load
from festina.zoo.pictures import encode_latents, load_pictures, train_vae
from festina.zoo.reading import head_classes, train_judge, train_text_encoders
from festina.zoo.scenes import Scenes
from festina.zoo.scenes_flux import ScenesFlux
from festina.zoo.scenes_unet import ScenesUNet
from festina.zoo.stages import Schedule

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Scenes, ScenesFlux, ScenesUNet)}
"""The pipelines there is a recipe for, by name."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the outcome of a training run; kept beside the weights.

    Attributes:
        scenes: pictures rendered for training.
        vae_steps, text_steps, denoiser_steps, judge_steps: optimiser steps of each stage.
        vae_batch, text_batch, denoiser_batch, judge_batch: pictures or captions per step.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        learning_rate: peak rate of the denoiser stage (cosine to zero after a warm-up).
        ema_decay: decay of the moving average of the denoiser's weights.
        seed: fixes data, initial weights and noise.
        compile: run the denoiser through `torch.compile` (needs a C++ compiler; about 1.5 times as fast on a CPU).
    """

    scenes: int = 40_000
    vae_steps: int = 2_000
    vae_batch: int = 32
    text_steps: int = 1_200
    text_batch: int = 128
    denoiser_steps: int = 8_000
    denoiser_batch: int = 64
    judge_steps: int = 2_500
    judge_batch: int = 64
    caption_dropout: float = 0.1
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    seed: int = 0
    compile: bool = False


def train(name: str, settings: TrainSettings, work: Path, out: Path, device: torch.device) -> None:
    """Run (or resume) all stages of a pipeline.

    Args:
        name: which pipeline, a key of `FAMILIES`.
        settings: see `TrainSettings`.
        work: folder of checkpoints, logs and rendered data; needed to resume.
        out: folder that receives `pipeline/`, `settings.json`, the logs, and for "scenes" `judge/`.
        device: where to train.

    Raises:
        FestinaError: there is no such recipe, `work` holds another training, or a folder cannot be written.
    """
    if name not in FAMILIES:
        raise FestinaError(f"no recipe for {name!r}; there is one for {', '.join(FAMILIES)}.")
    work.mkdir(parents=True, exist_ok=True)
    told = json.dumps(asdict(settings), indent=2) + "\n"
    for path, content in ((work / "settings.json", told), (work / "name", name)):
        if path.exists() and path.read_text() != content:
            raise FestinaError(
                f"{work} holds a training with other settings; give the same ones to go on, or another folder."
            )
        write_whole(path, content)
    family = FAMILIES[name]()
    scenes, pictures = load_pictures(settings.scenes, settings.seed, work)
    captions = [scene.caption() for scene in scenes]
    stages = ["text", "denoiser"]
    if name == "scenes":
        stages += ["vae", "judge"]
        vae_schedule = Schedule(settings.vae_steps, settings.vae_batch, 2e-3, 200, seed=1, weight_decay=1e-4)
        vae = train_vae(vae_schedule, settings.seed, pictures, work, device)
        schedule = Schedule(settings.judge_steps, settings.judge_batch, 2e-3, 200, seed=2, momentum=0.999)
        save_judge(train_judge(schedule, settings.scenes, settings.seed, work, device).cpu(), out / "judge")
    else:
        vae = load("scenes").vae.to(device)
    torch.manual_seed(settings.seed + 3)
    schedule = Schedule(settings.text_steps, settings.text_batch, 2e-3, 100, seed=4, momentum=0.999)
    targets = scene_targets(scenes)
    encoders = train_text_encoders(family, schedule, captions, targets, head_classes(), work, device)
    latents = encode_latents(vae, pictures, work, device)
    scaling = latent_scaling(latents)
    torch.manual_seed(settings.seed + 2)
    denoiser = train_denoiser(
        family,
        Schedule(settings.denoiser_steps, settings.denoiser_batch, settings.learning_rate, 500, seed=3),
        latents * scaling,
        conditions_of(family, encoders, [*captions, ""]),
        work,
        device,
        settings.caption_dropout,
        settings.ema_decay,
        settings.compile,
    )
    vae.register_to_config(scaling_factor=scaling)
    save_pipeline(family, encoders.cpu(), vae.cpu(), denoiser.cpu(), out / "pipeline")
    write_whole(out / "settings.json", told)
    for stage in stages:
        (out / f"{stage}.log.jsonl").write_text((work / f"{stage}.log.jsonl").read_text())


def save_judge(judge: Judge, folder: Path) -> None:
    """Write `config.json` and `judge.safetensors` (half precision)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(judge.config, indent=2) + "\n")
    state: dict[str, Tensor] = judge.state_dict()
    rounded = {name: value.half().contiguous() if value.is_floating_point() else value for name, value in state.items()}
    save_file(rounded, folder / "judge.safetensors")


def save_pipeline(family: Family, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module, folder: Path) -> None:
    """Write the whole pipeline in diffusers' folder format, weights in half precision."""
    plain = vae.to(memory_format=torch.contiguous_format).half()
    pipe = family.pipeline(encoders.half(), plain, denoiser.half())
    pipe.save_pretrained(folder, safe_serialization=True)
    # Without this, transformers would load the encoders in half precision and diffusers the rest in single.
    for config in folder.glob("text_encoder*/config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
