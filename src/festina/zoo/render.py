"""Draws scenes: anti-aliased signed-distance shapes, as batches of 64 x 64 RGB pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from festina.zoo.grammar import Scene

IMAGE_SIZE = 64
"""Height and width of a picture in pixels."""

RADIUS = {"small": 0.11, "large": 0.19}
"""Radius of an object's bounding circle as a share of the picture's width."""

COLOUR_RGB = {
    "red": (216, 38, 44),
    "green": (38, 160, 62),
    "blue": (46, 84, 220),
    "yellow": (242, 212, 42),
    "purple": (146, 56, 190),
    "orange": (244, 138, 28),
}
BACKGROUND_RGB = {"white": (246, 246, 246), "grey": (128, 128, 128), "black": (14, 14, 14), "pink": (246, 190, 206)}


@dataclass(frozen=True)
class Layout:
    """Where the objects of one scene stand: centre and radius of each, in shares of the picture, and its colours."""

    centres: tuple[tuple[float, float], ...]
    radii: tuple[float, ...]


def _signed_distance(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Distance to the outline, negative inside; y points up. Formulas: elementary plane geometry."""
    length = torch.sqrt(x * x + y * y)
    if shape == "circle":
        return length - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.84 * radius
    if shape == "ring":
        return (length - 0.74 * radius).abs() - 0.26 * radius
    if shape == "cross":
        wide, narrow = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
        return torch.maximum(wide - radius, narrow - 0.3 * radius)
    if shape == "triangle":
        half_planes = [math.sin(a) * y + math.cos(a) * x for a in (-math.pi / 2, math.pi / 6, 5 * math.pi / 6)]
        return torch.stack(half_planes).amax(0) - 0.58 * radius
    # Star: fold the plane into one of ten wedges, then take the distance to the single edge left in it.
    wedge = math.pi / 5
    angle = torch.remainder(torch.atan2(x, y), 2 * wedge)
    angle = torch.minimum(angle, 2 * wedge - angle)
    tip = (0.0, radius * 1.08)
    dent = (0.45 * radius * math.sin(wedge), 0.45 * radius * math.cos(wedge))
    across, along = length * torch.sin(angle), length * torch.cos(angle)
    edge = (dent[0] - tip[0], dent[1] - tip[1])
    norm = math.hypot(*edge)
    return ((along - tip[1]) * -edge[0] + (across - tip[0]) * edge[1]) / -norm


def sample_layout(scene: Scene, generator: torch.Generator) -> Layout:
    """Centres and radii for a scene: objects apart along the axis of their relation, jittered along the other."""

    def jitter(width: float) -> float:
        return float(torch.rand((), generator=generator) * 2 - 1) * width

    radii = tuple(RADIUS[thing.size] * (1 + jitter(0.06)) for thing in scene.things)
    if scene.second is None:
        return Layout(((0.5 + jitter(0.2), 0.5 + jitter(0.2)),), radii)
    near, far = 0.27, 0.73
    start, end = (near, far) if scene.relation in ("left of", "above") else (far, near)
    first, second = start + jitter(0.03), end + jitter(0.03)
    across = (0.5 + jitter(0.12), 0.5 + jitter(0.12))
    if scene.relation in ("left of", "right of"):
        return Layout(((first, across[0]), (second, across[1])), radii)
    return Layout(((across[0], first), (across[1], second)), radii)


def render(scenes: Sequence[Scene], seed: int) -> Tensor:
    """Draw scenes.

    Args:
        scenes: what to draw.
        seed: fixes positions, exact sizes and a slight jitter of the colours.

    Returns:
        float tensor (len(scenes), 3, 64, 64) in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.empty(len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE)
    for index, scene in enumerate(scenes):
        layout = sample_layout(scene, generator)
        pictures[index] = draw(scene, layout, sample_shades(generator))
    return pictures


def sample_shades(generator: torch.Generator) -> Tensor:
    """A slight shift (3, 3) of the colours of first object, second object and background."""
    return (torch.rand(3, 3, generator=generator) * 2 - 1) * 0.02


def draw(scene: Scene, layout: Layout, shades: Tensor) -> Tensor:
    """One picture (3, 64, 64) in [0, 1] of a scene laid out, with its colours shifted by `shades`."""
    axis = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    picture = torch.tensor(BACKGROUND_RGB[scene.background]).div(255).add(shades[2]).view(3, 1, 1)
    for thing, centre, radius, shade in zip(scene.things, layout.centres, layout.radii, shades, strict=False):
        distance = _signed_distance(thing.shape, column - centre[0], centre[1] - row, radius)
        cover = (0.5 - distance * IMAGE_SIZE).clamp(0, 1)
        colour = torch.tensor(COLOUR_RGB[thing.colour]).div(255).add(shade).view(3, 1, 1)
        picture = picture * (1 - cover) + colour * cover
    return picture.clamp(0, 1)
