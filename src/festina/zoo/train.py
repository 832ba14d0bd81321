"""Trains the `scenes` pipeline and its judge, from nothing but the renderer, in one resumable command.

Stages, each with its own checkpoint: `vae` (pictures to latents and back), `text` (an encoder whose every token knows
the whole scene), `denoiser` (the transformer, v-prediction with exponential moving average, on latents of the trained
VAE), `judge` (reads pictures). Killing the command loses at most a minute; running it again goes on where it was.
"""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchEncoding, T5EncoderModel, T5Tokenizer

from festina.errors import FestinaError
from festina.metrics.judge import ABSENT, HEADS, Judge, scene_targets
from festina.strict import write_whole
from festina.zoo.components import (
    CAPTION_TOKENS,
    TEXT_WIDTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
)
from festina.zoo.grammar import Scene, sample_scenes
from festina.zoo.render import render
from festina.zoo.stages import Schedule, Stage, fit, save_atomically


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


def _autocast(device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype=torch.bfloat16)


def load_pictures(settings: TrainSettings, folder: Path) -> tuple[list[Scene], Tensor]:
    """The training scenes and their pictures, uint8 (scenes, 3, 64, 64); rendered once, then read from `folder`."""
    scenes = sample_scenes(settings.scenes, settings.seed)
    path = folder / "pictures.pt"
    if path.exists():
        pictures = torch.load(path, weights_only=True)
        if len(pictures) == len(scenes):
            return scenes, pictures
    print(f"   render  {len(scenes)} pictures", flush=True)
    parts = []
    for start in range(0, len(scenes), 1000):
        part = render(scenes[start : start + 1000], seed=settings.seed * 1_000_003 + start)
        parts.append(part.mul(255).round().to(torch.uint8))
    pictures = torch.cat(parts)
    save_atomically(pictures, path)
    return scenes, pictures


def train_vae(settings: TrainSettings, pictures: Tensor, folder: Path, device: torch.device) -> AutoencoderKL:
    """Autoencoder on rendered pictures: squared and absolute error plus a slight pull of latents towards N(0, 1)."""
    torch.manual_seed(settings.seed)
    vae = build_vae().to(device, memory_format=torch.channels_last)

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        images = pictures[indices].to(device).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        with _autocast(device):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        error = decoded.float() - images
        squared = error.square().mean()
        loss = error.abs().mean() + 2 * squared + 1e-5 * posterior.kl().float().mean() / 256
        return loss, {"psnr": 10 * math.log10(4 / squared.item())}

    schedule = Schedule(settings.vae_steps, settings.vae_batch, 2e-3, 200, seed=1, weight_decay=1e-4)
    fit(Stage(folder, "vae"), schedule, {"model": vae}, len(pictures), loss_of)
    return vae.eval()


def _corrupt(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Damage a third of a batch: noise, blur, ghosting of another picture. Returns pictures and damage in [0, 1]."""
    batch = len(images)
    damage = torch.rand(batch, generator=generator) * (torch.rand(batch, generator=generator) < 0.33)
    kind = torch.randint(3, (batch,), generator=generator)
    strength = damage.view(-1, 1, 1, 1)
    noisy = images + 0.5 * strength * torch.randn(images.shape, generator=generator)
    blurred = images
    for _ in range(3):
        blurred = functional.avg_pool2d(functional.pad(blurred, (3, 3, 3, 3), mode="reflect"), 7, stride=1)
    blurred = images + (blurred - images) * strength.sqrt()
    ghosted = images + (images.roll(1, 0) - images) * 0.5 * strength
    chosen = torch.stack([noisy, blurred, ghosted])[kind, torch.arange(batch)]
    # Every picture gets a touch of noise, so that the slight grain of a decoder does not read as damage.
    grain = 0.02 * torch.rand(batch, 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return (chosen + grain).clamp(0, 1), damage


def judge_loss(read: dict[str, Tensor], targets: dict[str, Tensor], damage: Tensor) -> Tensor:
    """Cross-entropy per head; the target of a damaged picture is mixed with the uniform distribution by its damage,
    so that the judge's confidence, and with it the reward, falls with the picture's quality."""
    total = torch.zeros((), device=damage.device)
    for head in HEADS:
        applies = targets[head] != ABSENT
        logs = read[head].float().log_softmax(1)
        hit = -logs.gather(1, targets[head].clamp(min=0)[:, None])[:, 0]
        loss = (1 - damage) * hit + damage * -logs.mean(1)
        total = total + (loss * applies).sum() / applies.sum().clamp(min=1)
    return total


def train_judge(settings: TrainSettings, folder: Path, device: torch.device) -> Judge:
    """The judge on fresh renders of all combinations, held-out ones included (it is the measure, not the measured)."""
    torch.manual_seed(settings.seed + 1)
    judge = Judge().to(device)
    half = settings.scenes // 4
    scenes = sample_scenes(half, settings.seed + 11) + sample_scenes(half, settings.seed + 12, held_out=True)
    pictures = torch.cat([render(scenes[i : i + 1000], i + 5).mul(255).byte() for i in range(0, len(scenes), 1000)])
    targets = scene_targets(scenes)

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        images, damage = _corrupt(pictures[indices].float().div(255), torch.Generator().manual_seed(step))
        with _autocast(device):
            read = judge(images.to(device))
        wanted = {head: target[indices].to(device) for head, target in targets.items()}
        return judge_loss(read, wanted, damage.to(device)), {}

    schedule = Schedule(settings.judge_steps, settings.judge_batch, 2e-3, 200, seed=2, momentum=0.999)
    fit(Stage(folder, "judge"), schedule, {"model": judge}, len(scenes), loss_of)
    judge.eval()
    return judge


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pictures: Tensor, folder: Path, device: torch.device) -> Tensor:
    """Latents of all training pictures, float16 (scenes, 4, 16, 16), unscaled; computed once, then read from disk."""
    path = folder / "latents.pt"
    if path.exists():
        known: Tensor = torch.load(path, weights_only=True)
        if len(known) == len(pictures):
            return known
    parts = []
    for start in range(0, len(pictures), 256):
        images = pictures[start : start + 256].to(device).float().div(127.5).sub(1)
        with _autocast(device):
            parts.append(vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean.half().cpu())
    latents = torch.cat(parts).contiguous()
    save_atomically(latents, path)
    return latents


def train_text_encoder(
    settings: TrainSettings, scenes: list[Scene], folder: Path, device: torch.device
) -> T5EncoderModel:
    """The text encoder, taught to write the whole scene, in the judge's terms, into every token of its caption.

    A denoiser then finds what it needs at any token, so that the little training there is goes into drawing.
    """
    torch.manual_seed(settings.seed + 3)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer)).to(device)
    readers = nn.ModuleDict({head: nn.Linear(TEXT_WIDTH, len(words)) for head, words in HEADS.items()}).to(device)
    text = tokenize(tokenizer, [scene.caption() for scene in scenes])
    targets = scene_targets(scenes)

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        mask = text.attention_mask[indices].to(device)
        tokens = encoder(text.input_ids[indices].to(device), attention_mask=mask)[0][mask.bool()]
        owner = mask.nonzero()[:, 0]
        wanted = {head: target[indices].to(device)[owner] for head, target in targets.items()}
        read = {head: reader(tokens) for head, reader in readers.items()}
        return judge_loss(read, wanted, torch.zeros(len(tokens), device=device)), {}

    schedule = Schedule(settings.text_steps, settings.text_batch, 2e-3, 100, seed=4, momentum=0.999)
    fit(Stage(folder, "text"), schedule, {"model": encoder, "readers": readers}, len(scenes), loss_of)
    return encoder.eval().requires_grad_(False)


def tokenize(tokenizer: T5Tokenizer, captions: list[str]) -> BatchEncoding:
    """Captions as `input_ids` and `attention_mask`, each (len(captions), CAPTION_TOKENS)."""
    return tokenizer(captions, padding="max_length", max_length=CAPTION_TOKENS, return_tensors="pt")


def train_denoiser(
    settings: TrainSettings,
    scenes: list[Scene],
    latents: Tensor,
    encoder: T5EncoderModel,
    folder: Path,
    device: torch.device,
) -> PixArtTransformer2DModel:
    """The transformer on noisy latents, predicting v (Salimans and Ho, arXiv 2202.00512, section 4)."""
    torch.manual_seed(settings.seed + 2)
    model, average = build_transformer(), build_transformer()
    # The backward pass of the fused attention is several times slower than plain products on a CPU.
    model.set_attn_processor(AttnProcessor())
    model, average = model.to(device), average.to(device)
    average.load_state_dict(model.state_dict())
    run = torch.compile(model) if settings.compile else model
    text = tokenize(build_tokenizer(), [scene.caption() for scene in scenes] + [""])
    scheduler, scaling = build_scheduler(), latent_scaling(latents)
    signal, noise_level = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        clean = latents[indices].float() * scaling
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, (len(indices),), generator=generator)
        dropped = torch.rand(len(indices), generator=generator) < settings.caption_dropout
        rows = torch.where(dropped, len(scenes), indices)
        a, s = signal[timesteps].view(-1, 1, 1, 1), noise_level[timesteps].view(-1, 1, 1, 1)
        tokens, mask = text.input_ids[rows].to(device), text.attention_mask[rows].to(device)
        with _autocast(device):
            words = encoder(tokens, attention_mask=mask)[0]
            noisy = (a * clean + s * noise).to(device)
            predicted = run(noisy, words, timesteps.to(device), encoder_attention_mask=mask, return_dict=False)[0]
        return functional.mse_loss(predicted.float(), (a * noise - s * clean).to(device)), {}

    def move_average(done: int) -> None:
        decay = min(settings.ema_decay, done / (done + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)

    schedule = Schedule(settings.denoiser_steps, settings.denoiser_batch, settings.learning_rate, 500, seed=3)
    stage = Stage(folder, "denoiser")
    fit(stage, schedule, {"model": model}, len(scenes), loss_of, {"average": average}, move_average)
    return average.eval()


def latent_scaling(latents: Tensor) -> float:
    """The factor that gives latents unit variance, as the autoencoder's `scaling_factor`."""
    return 1 / latents[:4096].float().std().item()


def _rounded(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {name: value.half().contiguous() if value.is_floating_point() else value for name, value in state.items()}


def save_judge(judge: Judge, folder: Path) -> None:
    """Write `config.json` and `judge.safetensors` (half precision)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(judge.config, indent=2) + "\n")
    save_file(_rounded(judge), folder / "judge.safetensors")


def save_pipeline(
    vae: AutoencoderKL, encoder: T5EncoderModel, transformer: PixArtTransformer2DModel, scaling: float, folder: Path
) -> None:
    """Write the whole pipeline in diffusers' folder format, weights in half precision."""
    vae.register_to_config(scaling_factor=scaling)
    pipe = PixArtAlphaPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=encoder.half(),
        vae=vae.to(memory_format=torch.contiguous_format).half(),
        transformer=transformer.half(),
        scheduler=build_scheduler(),
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    # Without this, transformers would load the encoder in half precision and diffusers the rest in single.
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")


def train_scenes(settings: TrainSettings, work: Path, out: Path, device: torch.device) -> None:
    """Run (or resume) all stages.

    Args:
        settings: see `TrainSettings`.
        work: folder of checkpoints, logs and rendered data; needed to resume.
        out: folder that receives `pipeline/`, `judge/`, `settings.json` and the logs.
        device: where to train.

    Raises:
        FestinaError: `work` holds a training with other settings, or a folder cannot be written.
    """
    work.mkdir(parents=True, exist_ok=True)
    told = json.dumps(asdict(settings), indent=2) + "\n"
    record = work / "settings.json"
    if record.exists() and record.read_text() != told:
        raise FestinaError(
            f"{work} holds a training with other settings; give the same ones to go on, or another folder."
        )
    write_whole(record, told)
    scenes, pictures = load_pictures(settings, work)
    vae = train_vae(settings, pictures, work, device)
    encoder = train_text_encoder(settings, scenes, work, device)
    save_judge(train_judge(settings, work, device).cpu(), out / "judge")
    latents = encode_latents(vae, pictures, work, device)
    del pictures
    transformer = train_denoiser(settings, scenes, latents, encoder, work, device)
    save_pipeline(vae.cpu(), encoder.cpu(), transformer.cpu(), latent_scaling(latents), out / "pipeline")
    write_whole(out / "settings.json", told)
    for stage in ("vae", "text", "denoiser", "judge"):
        (out / f"{stage}.log.jsonl").write_text((work / f"{stage}.log.jsonl").read_text())
