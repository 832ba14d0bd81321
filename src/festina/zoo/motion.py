"""Moving scenes: a scene whose first object moves, as the caption says, and its frames.

"a small red circle moving up left of a large blue square on a white background": the first object crosses its place in
the scene in the named direction, at an even speed; of two objects it moves across the axis of their relation, so that
the relation holds in every frame.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from festina.errors import FestinaError
from festina.zoo.grammar import Scene, parse_caption, sample_scene
from festina.zoo.render import IMAGE_SIZE, Layout, draw, sample_layout, sample_shades

FRAMES = 8
"""Frames of a video."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Directions of motion, as steps to the right and downwards."""

PATH = 0.36
"""Length of the way of a moving object, in widths of the picture."""

_CAPTION = re.compile(rf"(?P<first>an? \w+ \w+ \w+) moving (?P<direction>{'|'.join(DIRECTIONS)})(?P<rest> .*)")


@dataclass(frozen=True)
class MovingScene:
    """A scene and the direction in which its first object moves."""

    scene: Scene
    direction: str

    def caption(self) -> str:
        """The one caption of this moving scene."""
        first = str(self.scene.first)
        return f"{first} moving {self.direction}{self.scene.caption().removeprefix(first)}"


def parse_moving_caption(caption: str) -> MovingScene:
    """The moving scene that a caption describes.

    Raises:
        FestinaError: the caption is not a sentence of the grammar of moving scenes.
    """
    match = _CAPTION.fullmatch(caption.strip().lower().rstrip("."))
    if match is None:
        raise FestinaError(
            f"not a caption of a moving scene: {caption!r}. Wanted a caption of the scenes grammar with 'moving "
            f"{'|'.join(DIRECTIONS)}' behind the first object, e.g. 'a small red circle moving up left of a large blue "
            f"square on a white background'."
        )
    moving = MovingScene(parse_caption(match["first"] + match["rest"]), match["direction"])
    if moving.direction not in directions_of(moving.scene):
        raise FestinaError(
            f"{caption!r}: an object that stands {moving.scene.relation} another moves "
            f"{' or '.join(directions_of(moving.scene))} here, so that this stays true."
        )
    return moving


def directions_of(scene: Scene) -> tuple[str, ...]:
    """The directions in which a scene's first object may move: across the axis of the relation, if there is one."""
    if scene.relation in ("left of", "right of"):
        return "up", "down"
    if scene.relation in ("above", "below"):
        return "left", "right"
    return tuple(DIRECTIONS)


def sample_moving_scenes(count: int, seed: int, held_out: bool = False, lean: float | None = None) -> list[MovingScene]:
    """Moving scenes; the same arguments give the same ones on every machine.

    Args:
        count: how many.
        seed: which.
        held_out: only scenes with a combination that is held out of training.
        lean: share of those that move to the left or up, in [0, 1]; as many as in other directions if None.
    """
    rng = random.Random(f"festina-moving-scenes-{seed}-{held_out}")
    scenes = [sample_scene(rng, held_out) for _ in range(count)]
    if lean is None:
        return [MovingScene(scene, rng.choice(directions_of(scene))) for scene in scenes]
    return [MovingScene(scene, _leaning(rng, directions_of(scene), lean)) for scene in scenes]


def _leaning(rng: random.Random, directions: Sequence[str], lean: float) -> str:
    back = rng.random() < lean
    return rng.choice([way for way in directions if (way in ("left", "up")) == back])


def render_moving(scenes: Sequence[MovingScene], seed: int) -> Tensor:
    """Draw moving scenes.

    Args:
        scenes: what to draw.
        seed: fixes positions, exact sizes and a slight jitter of the colours; these stay the same within a video.

    Returns:
        float tensor (len(scenes), FRAMES, 3, 64, 64) in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    videos = torch.empty(len(scenes), FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE)
    for index, moving in enumerate(scenes):
        layout = sample_layout(moving.scene, generator)
        shades = sample_shades(generator)
        for frame in range(FRAMES):
            share = frame / (FRAMES - 1) - 0.5
            videos[index, frame] = draw(moving.scene, _moved(layout, moving.direction, share * PATH), shades)
    return videos


def _moved(layout: Layout, direction: str, way: float) -> Layout:
    right, down = DIRECTIONS[direction]
    # Along its way an object starts near the middle, so that it never leaves the picture.
    x, y = ((0.5 + (c - 0.5) / 2) if along else c for c, along in zip(layout.centres[0], (right, down), strict=True))
    return replace(layout, centres=((x + right * way, y + down * way), *layout.centres[1:]))
