"""The judge of videos: reads every frame as the judge of pictures does, and motion from the first and last frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from festina.errors import FestinaError
from festina.metrics.judge import ABSENT, HEADS, Judge, scene_targets
from festina.zoo.motion import DIRECTIONS, MovingScene, parse_moving_caption

MOTION = "motion"
VIDEO_HEADS: dict[str, tuple[str, ...]] = {**HEADS, MOTION: tuple(DIRECTIONS)}
"""What the judge reads in a video: the attributes of the scene, and where its first object moves."""


def moving_targets(scenes: Sequence[MovingScene]) -> dict[str, Tensor]:
    """Class index per head and scene; see `festina.metrics.judge.scene_targets`."""
    directions = VIDEO_HEADS[MOTION]
    motion = torch.tensor([directions.index(moving.direction) for moving in scenes])
    return {**scene_targets([moving.scene for moving in scenes]), MOTION: motion}


class VideoJudge(nn.Module):
    """Reads attributes and motion of videos (batch, frames, 3, 64, 64) in [0, 1].

    Args:
        width, features: see `festina.metrics.judge.Judge`.

    Attributes:
        attributes: what it reads, in the order of `correct`: the words of each attribute.
    """

    attributes = VIDEO_HEADS

    def __init__(self, width: int = 32, features: int = 96) -> None:
        super().__init__()
        self.frames = Judge(width, features)
        self.config = self.frames.config
        self.motion = nn.Sequential(
            nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, len(VIDEO_HEADS[MOTION]))
        )

    def features(self, videos: Tensor) -> Tensor:
        """Feature vectors (batch, 2 features) of videos: those of the first and of the last frame."""
        return torch.cat([self.frames.features(videos[:, 0]), self.frames.features(videos[:, -1])], 1)

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """Logarithms of probabilities (batch, classes) per head: the mean over the frames, and the motion."""
        read = self.frames(videos.flatten(0, 1))
        count = videos.shape[1]
        shares = {head: logits.softmax(1).unflatten(0, (-1, count)).mean(1) for head, logits in read.items()}
        shares[MOTION] = self.motion(self.features(videos)).softmax(1)
        return {head: share.clamp(min=1e-12).log() for head, share in shares.items()}

    @torch.no_grad()
    def reward(self, videos: Tensor, captions: Sequence[str]) -> Tensor:
        """How well each video shows its caption.

        Args:
            videos: (batch, frames, 3, 64, 64) in [0, 1].
            captions: one sentence of the grammar of moving scenes per video.

        Returns:
            (batch,) mean over the caption's attributes, motion included, of the probability the judge gives to what it
            says, in [0, 1].

        Raises:
            FestinaError: no videos, a caption outside the grammar, or not one caption per video.
        """
        targets = _targets(videos, captions)
        read = self(videos)
        applies = torch.stack([targets[head] != ABSENT for head in VIDEO_HEADS], 1)
        columns = [read[head].exp().cpu().gather(1, targets[head].clamp(min=0)[:, None])[:, 0] for head in VIDEO_HEADS]
        return (torch.stack(columns, 1) * applies).sum(1) / applies.sum(1)

    @torch.no_grad()
    def correct(self, videos: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Whether each attribute reads as the caption says: two bool tensors (batch, heads), `right` and `applies`."""
        targets = _targets(videos, captions)
        read = self(videos)
        right = torch.stack([read[head].argmax(1).cpu() == targets[head] for head in VIDEO_HEADS], 1)
        applies = torch.stack([targets[head] != ABSENT for head in VIDEO_HEADS], 1)
        return right & applies, applies


def _targets(videos: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
    if videos.ndim != 5:
        raise FestinaError(
            f"the judge of videos reads (batch, frames, 3, 64, 64); found {tuple(videos.shape)}. Pictures have a judge "
            f"of their own."
        )
    if len(videos) != len(captions):
        raise FestinaError(f"{len(videos)} videos but {len(captions)} captions; give one caption per video.")
    return moving_targets([parse_moving_caption(caption) for caption in captions])


def load_video_judge(folder: Path, device: str | torch.device = "cpu") -> VideoJudge:
    """The trained judge of videos in a folder that holds `config.json` and `judge.safetensors`.

    Raises:
        FestinaError: the folder lacks either file.
    """
    config, weights = folder / "config.json", folder / "judge.safetensors"
    if not config.is_file() or not weights.is_file():
        raise FestinaError(
            f"no judge of videos in {folder}: wanted config.json and judge.safetensors. Run `festina zoo train "
            f"scenes-video`."
        )
    judge = VideoJudge(**json.loads(config.read_text()))
    state = {name: value.float() if value.is_floating_point() else value for name, value in load_file(weights).items()}
    judge.load_state_dict(state)
    return judge.to(device).eval()
