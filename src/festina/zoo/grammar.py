"""The little language of the `scenes` data set: what a picture may hold and how a caption says it.

A scene is one or two objects, each with a size, a colour and a shape, on a plain background; two objects stand in
a spatial relation. `Scene.caption` writes the caption, `parse_caption` reads it back, so a caption and its
attributes are always the same thing.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from festina.errors import FestinaError

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black", "pink")
RELATIONS = ("left of", "right of", "above", "below")

HELD_OUT = frozenset({("purple", "star"), ("green", "ring"), ("orange", "square"), ("blue", "cross")})
"""(colour, shape) pairs that never occur in training, so that a score on them measures composition."""

_OBJECT = (
    rf"an? (?P<size{{0}}>{'|'.join(SIZES)}) (?P<colour{{0}}>{'|'.join(COLOURS)}) (?P<shape{{0}}>{'|'.join(SHAPES)})"
)
_CAPTION = re.compile(
    _OBJECT.format(1)
    + rf"(?: (?P<relation>{'|'.join(RELATIONS)}) "
    + _OBJECT.format(2)
    + rf")? on a (?P<background>{'|'.join(BACKGROUNDS)}) background"
)


@dataclass(frozen=True)
class Thing:
    """One object of a scene, by name of its size, colour and shape."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"

    @property
    def held_out(self) -> bool:
        return (self.colour, self.shape) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """What a caption says: `first` stands in `relation` to `second`, or alone (then both are None)."""

    first: Thing
    background: str
    relation: str | None = None
    second: Thing | None = None

    def caption(self) -> str:
        """The one caption of this scene."""
        objects = f"{self.first} {self.relation} {self.second}" if self.second else f"{self.first}"
        return f"{objects} on a {self.background} background"

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.first, self.second) if self.second else (self.first,)

    @property
    def held_out(self) -> bool:
        return any(thing.held_out for thing in self.things)

    def in_reading_order(self) -> Scene:
        """The same scene told from its left or upper object; the order in which the judge reads objects."""
        if self.second is None or self.relation in ("left of", "above"):
            return self
        turned = "left of" if self.relation == "right of" else "above"
        return Scene(self.second, self.background, turned, self.first)


def parse_caption(caption: str) -> Scene:
    """The scene a caption describes.

    Raises:
        FestinaError: the caption is not a sentence of the scene grammar.
    """
    match = _CAPTION.fullmatch(caption.strip().lower().rstrip("."))
    if match is None:
        raise FestinaError(
            f"not a caption of the scenes grammar: {caption!r}. Wanted e.g. 'a small red circle left of a large blue "
            f"square on a white background' with sizes {SIZES}, colours {COLOURS}, shapes {SHAPES}, relations "
            f"{RELATIONS}, backgrounds {BACKGROUNDS}."
        )
    words = match.groupdict()
    second = Thing(words["size2"], words["colour2"], words["shape2"]) if words["relation"] else None
    return Scene(
        Thing(words["size1"], words["colour1"], words["shape1"]), words["background"], words["relation"], second
    )


def sample_scene(rng: random.Random, held_out: bool, single: float = 0.25) -> Scene:
    """Draw one scene.

    Args:
        rng: source of randomness.
        held_out: True draws a scene in which at least one object has a held-out (colour, shape) pair; False one
            in which none has.
        single: probability of a scene with one object.
    """
    while True:
        things = [Thing(rng.choice(SIZES), rng.choice(COLOURS), rng.choice(SHAPES)) for _ in range(2)]
        background = rng.choice(BACKGROUNDS)
        if rng.random() < single:
            scene = Scene(things[0], background)
        else:
            scene = Scene(things[0], background, rng.choice(RELATIONS), things[1])
        if scene.held_out == held_out:
            return scene


def sample_scenes(count: int, seed: int, held_out: bool = False) -> list[Scene]:
    """`count` scenes drawn from `seed`; the same arguments give the same scenes on every machine."""
    rng = random.Random(f"festina-scenes-{seed}-{held_out}")
    return [sample_scene(rng, held_out) for _ in range(count)]
