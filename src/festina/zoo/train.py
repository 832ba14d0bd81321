"""Trains the pipelines that ship, from nothing but the renderer, each in one resumable command.

Stages, each with its own checkpoint: `vae` (pictures to latents and back), `text` (encoders whose vectors know the
whole scene), `denoiser` (with exponential moving average, on latents of the trained autoencoder), `judge` (reads
pictures or videos). The autoencoder is that of `scenes` for all, its judge that of all pictures. Killing the command
loses at most a minute; running it again goes on where it was. A training that starts from a trained pipeline has the
stage `denoiser` only, and so has that of a small denoiser beside a pipeline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from festina.errors import FestinaError
from festina.metrics.judge import Judge
from festina.metrics.video_judge import VideoJudge
from festina.strict import write_whole
from festina.zoo.denoising import conditions_of, latent_scaling, train_denoiser
from festina.zoo.family import Family
from festina.zoo.family import TrainSettings as TrainSettings
from festina.zoo.loading import CALL_FILE, UNCONDITIONAL, load
from festina.zoo.pictures import encode_latents, load_pictures, train_vae
from festina.zoo.reading import train_judge, train_text_encoders, train_video_judge
from festina.zoo.scenes import Scenes, ScenesSmall
from festina.zoo.scenes_flux import ScenesFlux
from festina.zoo.scenes_unet import ScenesUNet
from festina.zoo.scenes_video import ScenesVideo
from festina.zoo.stages import Schedule, claim

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Scenes, ScenesFlux, ScenesUNet, ScenesVideo)}
"""The pipelines there is a recipe for, by name."""

SIBLINGS: dict[str, type[Family]] = {ScenesSmall.name: ScenesSmall}
"""The small denoisers beside such a pipeline there is a recipe for, by name."""


def train(name: str, settings: TrainSettings, work: Path, out: Path, device: torch.device) -> None:
    """Run (or resume) all stages of a pipeline.

    Args:
        name: which pipeline, a key of `FAMILIES`, or which small denoiser, a key of `SIBLINGS`.
        settings: see `TrainSettings`.
        work: folder of checkpoints, logs and rendered data; needed to resume.
        out: folder that receives `pipeline/`, `settings.json`, the logs, and `judge/` where one is trained; of a small
            denoiser its `config.json` and weights instead of `pipeline/`.
        device: where to train.

    Raises:
        FestinaError: there is no such recipe, `work` holds another training, a folder cannot be written, or
            `settings.start` is of no use to the recipe.
    """
    family_class = recipe(name)
    if family_class.beside and settings.start != TrainSettings.start:
        raise FestinaError(f"cannot start {name} from {settings.start!r}: a small denoiser is trained in one run.")
    told = claim(work, name, settings)
    family = family_class()
    scenes, pictures = load_pictures(family, settings.scenes, settings.seed, work)
    captions = [scene.caption() for scene in scenes]
    torch.manual_seed(settings.seed + 2)
    denoiser = family.denoiser()
    stages = ["denoiser"]
    if family.beside:
        vae, encoders = _parts_of(family.beside, family, device)
    elif settings.start != TrainSettings.start:
        vae, encoders = _parts_of(settings.start, family, device, denoiser)
    else:
        vae, parts = _vae_and_judge(name, settings, pictures, work, out, device)
        torch.manual_seed(settings.seed + 3)
        schedule = Schedule(settings.text_steps, settings.text_batch, 2e-3, 100, seed=4, momentum=0.999)
        encoders = train_text_encoders(family, schedule, captions, family.targets(scenes), work, device)
        stages += ["text", *parts]
    latents = encode_latents(vae, pictures, work, device)
    scaling = vae.config.scaling_factor if family.beside else latent_scaling(latents)
    denoiser = train_denoiser(
        family,
        denoiser,
        Schedule(settings.denoiser_steps, settings.denoiser_batch, settings.learning_rate, 500, seed=3),
        latents * scaling,
        conditions_of(family, encoders, [*captions, ""]),
        work,
        device,
        settings.caption_dropout,
        settings.ema_decay,
        settings.compile,
    )
    if family.beside:
        cast(Any, denoiser.cpu().half()).save_pretrained(out, safe_serialization=True)
    else:
        vae.register_to_config(scaling_factor=scaling)
        save_pipeline(family, encoders.cpu(), vae.cpu(), denoiser.cpu(), out / "pipeline")
    write_whole(out / "settings.json", told)
    for stage in stages:
        (out / f"{stage}.log.jsonl").write_text((work / f"{stage}.log.jsonl").read_text())


def _vae_and_judge(
    name: str, settings: TrainSettings, pictures: Tensor, work: Path, out: Path, device: torch.device
) -> tuple[Any, list[str]]:
    """The autoencoder, trained or that of `scenes`, the judge where a pipeline has its own; and the stages run."""
    stages = []
    if name == "scenes":
        stages += ["vae", "judge"]
        schedule = Schedule(settings.vae_steps, settings.vae_batch, 2e-3, 200, seed=1, weight_decay=1e-4)
        vae = train_vae(schedule, settings.seed, pictures, work, device)
        schedule = Schedule(settings.judge_steps, settings.judge_batch, 2e-3, 200, seed=2, momentum=0.999)
        save_judge(train_judge(schedule, settings.scenes, settings.seed, work, device).cpu(), out / "judge")
    else:
        vae = load("scenes").vae.to(device)
    if name == "scenes-video":
        stages += ["judge"]
        schedule = Schedule(settings.judge_steps, settings.judge_batch, 1e-3, 100, seed=2, momentum=0.999)
        save_judge(train_video_judge(schedule, settings.scenes, settings.seed, work, device).cpu(), out / "judge")
    return vae, stages


def _parts_of(source: str, family: Family, device: torch.device, *more: nn.Module) -> tuple[Any, nn.ModuleDict]:
    """The autoencoder and the text encoders of a trained pipeline; `more` modules get its weights too.

    Raises:
        FestinaError: it is no pipeline of this family.
    """
    pipe = load(source)
    trained = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    encoders = family.text_encoders()
    for wanted in (*more, *encoders.values()):
        same = [part for part in trained if type(part) is type(wanted)]
        try:
            wanted.load_state_dict(same[0].state_dict())
        except (IndexError, RuntimeError):
            raise FestinaError(
                f"cannot start from {source!r}: it has no {type(wanted).__name__} of the sizes that {family.name} "
                f"has. Give a pipeline that `festina zoo train {family.name}` wrote."
            ) from None
    return pipe.vae.to(device), encoders.to(device)


def recipe(name: str) -> type[Family]:
    """The recipe of a pipeline or of a small denoiser.

    Raises:
        FestinaError: there is none of this name.
    """
    known = {**FAMILIES, **SIBLINGS}
    if name not in known:
        raise FestinaError(f"no recipe for {name!r}; there is one for {', '.join((*known, UNCONDITIONAL))}.")
    return known[name]


def save_judge(judge: Judge | VideoJudge, folder: Path) -> None:
    """Write `config.json` and `judge.safetensors` (half precision)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(judge.config, indent=2) + "\n")
    state: dict[str, Tensor] = judge.state_dict()
    rounded = {name: value.half().contiguous() if value.is_floating_point() else value for name, value in state.items()}
    save_file(rounded, folder / "judge.safetensors")


def save_pipeline(family: Family, encoders: nn.ModuleDict, vae: Any, denoiser: nn.Module, folder: Path) -> None:
    """Write the whole pipeline in diffusers' folder format, weights in half precision, with its `call.json`."""
    plain = vae.to(memory_format=torch.contiguous_format).half()
    pipe = family.pipeline(encoders.half(), plain, denoiser.half())
    pipe.save_pretrained(folder, safe_serialization=True)
    if family.call:
        write_whole(folder / CALL_FILE, json.dumps(dict(family.call), indent=2) + "\n")
    # Without this, transformers would load the encoders in half precision and diffusers the rest in single.
    for config in folder.glob("text_encoder*/config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
