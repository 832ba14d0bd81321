"""What belongs to each pipeline that ships besides its weights: its captions, real pictures of them, and its judge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from festina.zoo import loading
from festina.zoo.grammar import parse_caption, sample_scenes
from festina.zoo.motion import parse_moving_caption, render_moving, sample_moving_scenes
from festina.zoo.render import render

if TYPE_CHECKING:
    from festina.metrics.judge import Judge
    from festina.metrics.video_judge import VideoJudge


@dataclass(frozen=True)
class Shipped:
    """A pipeline that ships.

    Attributes:
        name: its name, such as "scenes-flux".
        moving: whether it draws videos of moving scenes instead of pictures of scenes.
    """

    name: str
    moving: bool = False

    def captions(self, count: int, seed: int, without: Collection[str] = ()) -> tuple[str, ...]:
        """`count` different captions of its grammar, a quarter of them with combinations held out of training.

        Args:
            count: how many; a grammar has some ten thousand.
            seed: decides which.
            without: captions that are not wanted.
        """
        quarter = count // 4
        seen = self.captions_of_kind(count - quarter, seed, False, without)
        return seen + self.captions_of_kind(quarter, seed, True, without)

    def captions_of_kind(self, count: int, seed: int, held_out: bool, without: Collection[str] = ()) -> tuple[str, ...]:
        """`count` different captions, all with combinations held out of training or all without; see `captions`."""
        sample: Callable[[int, int, bool], Sequence[Any]] = sample_moving_scenes if self.moving else sample_scenes
        some, captions = count + len(without), dict[str, None]()
        while len(captions) < count:
            # The first scenes of a seed are the same however many are drawn.
            some *= 2
            drawn = (scene.caption() for scene in sample(some, seed, held_out))
            captions = dict.fromkeys(caption for caption in drawn if caption not in without)
        return tuple(captions)[:count]

    def renders(self, captions: Sequence[str], seed: int) -> Tensor:
        """What the captions say, drawn by the renderer that the pipeline learned from.

        Returns:
            (captions, 3, 64, 64) in [0, 1]; of videos (captions, frames, 3, 64, 64).

        Raises:
            FestinaError: a caption outside the grammar.
        """
        if self.moving:
            return render_moving([parse_moving_caption(caption) for caption in captions], seed)
        return render([parse_caption(caption) for caption in captions], seed)

    def judge(self, device: str | torch.device = "cpu") -> Judge | VideoJudge:
        """What reads its pictures or videos.

        Raises:
            FestinaError: it is not in this installation.
        """
        if not self.moving:
            return loading.shipped_judge(device)
        # The judge knows the grammar, which lives in this package.
        from festina.metrics.video_judge import load_video_judge

        return load_video_judge(loading.WEIGHTS / self.name / "judge", device)


_ALL = {name: Shipped(name, moving=name == "scenes-video") for name in loading.SHIPPED}


def shipped(model: object) -> Shipped | None:
    """What belongs to a shipped pipeline; None for any other model."""
    return _ALL.get(model) if isinstance(model, str) else None
