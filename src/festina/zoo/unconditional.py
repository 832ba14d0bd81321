"""`scenes-unconditional`: a small U-Net that draws scenes without being told which, and a classifier of noise levels.

A stock `DDIMPipeline`: pixels, v predicted (Salimans and Ho, arXiv 2202.00512, section 4), no captions. It is what
`festina.samplers.denoising_mcmc` needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from festina.errors import FestinaError
from festina.samplers.noise_classifier import NoiseClassifier, load_noise_classifier
from festina.strict import write_whole
from festina.zoo.denoising import autocast, moving_average
from festina.zoo.grammar import Scene, sample_scenes
from festina.zoo.loading import UNCONDITIONAL, WEIGHTS
from festina.zoo.pictures import load_pictures
from festina.zoo.render import render
from festina.zoo.scenes import velocity
from festina.zoo.stages import Schedule, Stage, claim, fit

PICTURE_SIZE = 32
"""Height and width of its pictures in pixels."""


@dataclass(frozen=True)
class UnconditionalSettings:
    """Everything that decides the outcome of a training run; kept beside the weights.

    Attributes:
        scenes: pictures rendered for training.
        denoiser_steps, classifier_steps: optimiser steps of each stage.
        denoiser_batch, classifier_batch: pictures per step.
        learning_rate: peak rate of the denoiser stage (cosine to zero after a warm-up).
        ema_decay: decay of the moving average of the denoiser's weights.
        levels, lowest, highest, classifier_width: the noise classifier's; see `NoiseClassifier`.
        seed: fixes data, initial weights and noise.
        compile: run the denoiser through `torch.compile` (needs a C++ compiler).
    """

    scenes: int = 40_000
    denoiser_steps: int = 14_000
    denoiser_batch: int = 16
    classifier_steps: int = 1_500
    classifier_batch: int = 64
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    levels: int = 100
    lowest: float = 0.01
    highest: float = 50.0
    classifier_width: int = 16
    seed: int = 0
    compile: bool = False


class SmallScenes:
    """The scenes of `scenes`, none held out among them, as pictures of half the size."""

    def sample(self, count: int, seed: int) -> Sequence[Scene]:
        return sample_scenes(count, seed)

    def render(self, scenes: Sequence[Scene], seed: int) -> Tensor:
        """Pictures (count, 3, 32, 32) in [0, 1], each pixel the mean of four."""
        return functional.avg_pool2d(render(scenes, seed), 2)


def build_denoiser() -> nn.Module:
    """Three levels of 32, 16 and 8 pixels, the lowest with attention."""
    unet: nn.Module = UNet2DModel(
        sample_size=PICTURE_SIZE,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=16,
    )
    for module in unet.modules():
        if isinstance(module, Attention):
            # The backward pass of the fused attention is several times slower than plain products on a CPU.
            module.set_processor(AttnProcessor())
    return unet


def build_scheduler() -> DDIMScheduler:
    """DDIM on the linear noise schedule, from its last time on, predicting v: near pure noise, where backgrounds are
    decided, the least error in a predicted noise would be a large one in the picture."""
    return DDIMScheduler(
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def train_unconditional(settings: UnconditionalSettings, work: Path, out: Path, device: torch.device) -> None:
    """Run (or resume) both stages: `denoiser` and `classifier`.

    Args:
        settings: see `UnconditionalSettings`.
        work: folder of checkpoints, logs and rendered data; needed to resume.
        out: folder that receives `pipeline/`, `noise_classifier/`, `settings.json` and the logs.
        device: where to train.

    Raises:
        FestinaError: `work` holds another training, or a folder cannot be written.
    """
    told = claim(work, UNCONDITIONAL, settings)
    _, pictures = load_pictures(SmallScenes(), settings.scenes, settings.seed, work)
    denoiser = _train_denoiser(settings, pictures, work, device)
    pipe = DDIMPipeline(denoiser.cpu().half(), build_scheduler())
    pipe.save_pretrained(out / "pipeline", safe_serialization=True)
    _train_classifier(settings, pictures, work, device).cpu().save(out / "noise_classifier")
    write_whole(out / "settings.json", told)
    for stage in ("denoiser", "classifier"):
        (out / f"{stage}.log.jsonl").write_text((work / f"{stage}.log.jsonl").read_text())


def _train_denoiser(settings: UnconditionalSettings, pictures: Tensor, work: Path, device: torch.device) -> nn.Module:
    """The moving average of a denoiser trained on pictures, uint8 (count, 3, 32, 32)."""
    torch.manual_seed(settings.seed + 2)
    model, average = build_denoiser().to(device), build_denoiser().to(device)
    average.load_state_dict(model.state_dict())
    run = torch.compile(model) if settings.compile else model
    scheduler = build_scheduler()

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        times = torch.randint(len(scheduler.alphas_cumprod), (len(indices),), generator=generator)
        noisy, wanted, _ = velocity(scheduler, _signed(pictures[indices]), times, generator)
        with autocast(device):
            predicted = run(noisy.to(device), times.to(device), return_dict=False)[0]
        return functional.mse_loss(predicted.float(), wanted.to(device)), {}

    schedule = Schedule(settings.denoiser_steps, settings.denoiser_batch, settings.learning_rate, 200, seed=3)
    stage, following = Stage(work, "denoiser"), moving_average(average, model, settings.ema_decay)
    fit(stage, schedule, {"model": model}, len(pictures), loss_of, {"average": average}, following)
    return average.eval()


def _train_classifier(
    settings: UnconditionalSettings, pictures: Tensor, work: Path, device: torch.device
) -> NoiseClassifier:
    """A noise classifier of the pictures, uint8 (count, 3, 32, 32), by cross-entropy over evenly drawn levels."""
    torch.manual_seed(settings.seed + 5)
    model = NoiseClassifier(
        3, PICTURE_SIZE, settings.lowest, settings.highest, settings.levels, settings.classifier_width
    ).to(device)
    sigmas = model.sigmas.float().cpu()

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        clean = _signed(pictures[indices])
        chosen = torch.randint(settings.levels, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        logits = model((clean + sigmas[chosen].view(-1, 1, 1, 1) * noise).to(device))
        misses = (logits.argmax(1).cpu() - chosen).abs().float().mean()
        return functional.cross_entropy(logits, chosen.to(device)), {"levels off": misses.item()}

    schedule = Schedule(settings.classifier_steps, settings.classifier_batch, 1e-3, 100, seed=6, momentum=0.999)
    fit(Stage(work, "classifier"), schedule, {"model": model}, len(pictures), loss_of)
    return model.eval()


def _signed(pictures: Tensor) -> Tensor:
    """Pictures of bytes as floats in [-1, 1]."""
    return pictures.float().div(127.5).sub(1)


def shipped_noise_classifier(device: str | torch.device = "cpu") -> NoiseClassifier:
    """The noise classifier of `scenes-unconditional`.

    Raises:
        FestinaError: it is not in this installation.
    """
    folder = WEIGHTS / UNCONDITIONAL / "noise_classifier"
    if not folder.is_dir():
        raise FestinaError(
            f"the noise classifier of {UNCONDITIONAL} is not in this installation; `festina zoo train {UNCONDITIONAL}`."
        )
    return load_noise_classifier(folder, device)
