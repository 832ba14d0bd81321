"""Training the two kinds of network that read: text encoders, which read captions, and the judge, which reads pictures.

Both learn the same classification heads (`festina.metrics.judge.HEADS`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from festina.metrics.judge import ABSENT, Judge, scene_targets
from festina.metrics.video_judge import MOTION, VideoJudge, moving_targets
from festina.zoo.components import TEXT_WIDTH
from festina.zoo.denoising import autocast
from festina.zoo.family import Family
from festina.zoo.grammar import Scene, sample_scenes
from festina.zoo.loading import shipped_judge
from festina.zoo.motion import render_moving, sample_moving_scenes
from festina.zoo.render import render
from festina.zoo.stages import Schedule, Stage, fit


def reading_loss(read: Mapping[str, Tensor], targets: Mapping[str, Tensor], damage: Tensor) -> Tensor:
    """Cross-entropy per head; the target of a damaged picture is mixed with the uniform distribution by its damage,
    so that the judge's confidence, and with it the reward, falls with the picture's quality."""
    total = torch.zeros((), device=damage.device)
    for head, logits in read.items():
        applies = targets[head] != ABSENT
        logs = logits.float().log_softmax(1)
        hit = -logs.gather(1, targets[head].clamp(min=0)[:, None])[:, 0]
        loss = (1 - damage) * hit + damage * -logs.mean(1)
        total = total + (loss * applies).sum() / applies.sum().clamp(min=1)
    return total


def train_text_encoders(
    family: Family,
    schedule: Schedule,
    captions: Sequence[str],
    targets: Mapping[str, Tensor],
    folder: Path,
    device: torch.device,
) -> nn.ModuleDict:
    """A family's text encoders, taught to write the whole scene, in the judge's terms, into their vectors.

    A denoiser then finds what it needs at any token, so that the little training there is goes into drawing.

    Args:
        family: whose encoders.
        schedule: how they are optimised.
        captions: what they read.
        targets: class index per head and caption, `ABSENT` where a head does not apply.
        folder: where checkpoint and log live.
        device: where to train.
    """
    encoders = family.text_encoders().to(device)
    classes = {head: len(words) for head, words in family.heads.items()}
    readers = nn.ModuleDict({head: nn.Linear(TEXT_WIDTH, count) for head, count in classes.items()}).to(device)

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        vectors, owner = family.read(encoders, [captions[index] for index in indices.tolist()])
        wanted = {head: target[indices].to(device)[owner] for head, target in targets.items()}
        read = {head: reader(vectors) for head, reader in readers.items()}
        return reading_loss(read, wanted, torch.zeros(len(vectors), device=device)), {}

    fit(Stage(folder, "text"), schedule, {"model": encoders, "readers": readers}, len(captions), loss_of)
    return encoders.eval().requires_grad_(False)


def damaged(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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


def judge_data(count: int, seed: int) -> tuple[list[Scene], Tensor]:
    """Fresh scenes of all combinations, held-out ones included (the judge is the measure, not the measured), and their
    pictures, uint8."""
    half = count // 4
    scenes = sample_scenes(half, seed + 11) + sample_scenes(half, seed + 12, held_out=True)
    pictures = [render(scenes[i : i + 1000], i + 5).mul(255).byte() for i in range(0, len(scenes), 1000)]
    return scenes, torch.cat(pictures)


def train_judge(schedule: Schedule, count: int, seed: int, folder: Path, device: torch.device) -> Judge:
    """The judge, on renders of `count` // 2 scenes."""
    torch.manual_seed(seed + 1)
    judge = Judge().to(device)
    scenes, pictures = judge_data(count, seed)
    targets = scene_targets(scenes)

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        images, damage = damaged(pictures[indices].float().div(255), torch.Generator().manual_seed(step))
        with autocast(device):
            read = judge(images.to(device))
        wanted = {head: target[indices].to(device) for head, target in targets.items()}
        return reading_loss(read, wanted, damage.to(device)), {}

    fit(Stage(folder, "judge"), schedule, {"model": judge}, len(scenes), loss_of)
    judge.eval()
    return judge


def train_video_judge(schedule: Schedule, count: int, seed: int, folder: Path, device: torch.device) -> VideoJudge:
    """The judge of videos, on renders of `count` moving scenes, half of them with held-out combinations.

    It starts from the judge of pictures; the first and the last frame of a video tell all there is to read.
    """
    torch.manual_seed(seed + 1)
    judge = VideoJudge().to(device)
    judge.frames.load_state_dict(shipped_judge().state_dict())
    scenes = sample_moving_scenes(count // 2, seed + 11) + sample_moving_scenes(count // 2, seed + 12, held_out=True)
    parts = [render_moving(scenes[i : i + 500], i + 5)[:, [0, -1]] for i in range(0, len(scenes), 500)]
    videos = torch.cat([part.mul(255).byte() for part in parts])
    targets = moving_targets(scenes)

    def loss_of(step: int, indices: Tensor) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        images, damage = damaged(videos[indices].flatten(0, 1).float().div(255), generator)
        with autocast(device):
            seen = judge.frames.features(images.to(device))
            read = {head: layer(seen) for head, layer in judge.frames.heads.items()}
            motion = judge.motion(seen.unflatten(0, (-1, 2)).flatten(1))
        wanted = {head: target[indices].to(device) for head, target in targets.items()}
        both = damage.view(-1, 2).amax(1).to(device)
        twice = {head: target.repeat_interleave(2) for head, target in wanted.items()}
        return reading_loss(read, twice, damage.to(device)) + reading_loss({MOTION: motion}, wanted, both), {}

    fit(Stage(folder, "judge"), schedule, {"model": judge}, len(scenes), loss_of)
    judge.eval()
    return judge
