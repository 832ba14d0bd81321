"""The judge: a small network that reads a `scenes` picture and says how well it shows its caption.

It plays the part that ImageReward plays in ECAD (arXiv 2506.15682): the *reward* a search maximises. A convolutional
trunk reads up to two objects in reading order (left before right, upper before lower); the reward of a picture is the
mean probability that its heads give to what the caption says. The trunk's features feed a Frechet distance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from festina.errors import FestinaError
from festina.zoo.grammar import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, parse_caption

HEADS: dict[str, tuple[str, ...]] = {
    "count": ("1", "2"),
    "background": BACKGROUNDS,
    "relation": ("left of", "above"),
    "size1": SIZES,
    "colour1": COLOURS,
    "shape1": SHAPES,
    "size2": SIZES,
    "colour2": COLOURS,
    "shape2": SHAPES,
}
"""What the judge reads: one classification head per attribute, objects 1 and 2 in reading order."""

ABSENT = -1
"""Target of a head that does not apply (the second object of a scene that has one)."""


def scene_targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Class index per head and scene, `ABSENT` where a head does not apply. Each tensor has shape (len(scenes),)."""
    rows: dict[str, list[int]] = {head: [] for head in HEADS}
    for scene in scenes:
        ordered = scene.in_reading_order()
        words: dict[str, str | None] = {
            "count": str(len(ordered.things)),
            "background": ordered.background,
            "relation": ordered.relation,
        }
        for place in (1, 2):
            thing = ordered.things[place - 1] if place <= len(ordered.things) else None
            words[f"size{place}"] = thing.size if thing else None
            words[f"colour{place}"] = thing.colour if thing else None
            words[f"shape{place}"] = thing.shape if thing else None
        for head, word in words.items():
            rows[head].append(ABSENT if word is None else HEADS[head].index(word))
    return {head: torch.tensor(values) for head, values in rows.items()}


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.SiLU(),
    )


class Judge(nn.Module):
    """Reads attributes of 64 x 64 RGB pictures in [0, 1].

    Args:
        width: channels of the first stage; the trunk ends at 4 x `width`.
        features: length of the feature vector used for the Frechet distance.

    Attributes:
        attributes: what it reads, in the order of `correct`: the words of each attribute.
    """

    attributes = HEADS

    def __init__(self, width: int = 32, features: int = 96) -> None:
        super().__init__()
        self.config = {"width": width, "features": features}
        self.trunk = nn.Sequential(
            _stage(3, width, 1),
            _stage(width, 2 * width, 2),
            _stage(2 * width, 2 * width, 1),
            _stage(2 * width, 4 * width, 2),
            _stage(4 * width, 4 * width, 1),
            _stage(4 * width, 4 * width, 2),
            nn.Conv2d(4 * width, 16, 1),
        )
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(16 * 64, features), nn.SiLU())
        self.heads = nn.ModuleDict({head: nn.Linear(features, len(words)) for head, words in HEADS.items()})

    def features(self, images: Tensor) -> Tensor:
        """Feature vectors (batch, features) of pictures (batch, 3, 64, 64) in [0, 1]."""
        features: Tensor = self.embed(self.trunk(images * 2 - 1))
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (batch, classes) per head."""
        features = self.features(images)
        return {head: layer(features) for head, layer in self.heads.items()}

    @torch.no_grad()
    def reward(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """How well each picture shows its caption.

        Args:
            images: (batch, 3, 64, 64) in [0, 1].
            captions: one sentence of the scenes grammar per picture.

        Returns:
            (batch,) mean over the caption's attributes of the probability the judge gives to what it says, in [0, 1].

        Raises:
            FestinaError: no pictures, a caption outside the grammar, or not one caption per picture.
        """
        probabilities, applies = self._caption_probabilities(images, captions)
        return (probabilities * applies).sum(1) / applies.sum(1)

    @torch.no_grad()
    def correct(self, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Whether each attribute reads as the caption says: two bool tensors (batch, heads), `right` and `applies`."""
        targets = scene_targets(_parse(images, captions))
        read = self(images)
        right = torch.stack([read[head].argmax(1).cpu() == targets[head] for head in HEADS], 1)
        applies = torch.stack([targets[head] != ABSENT for head in HEADS], 1)
        return right & applies, applies

    def _caption_probabilities(self, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        targets = scene_targets(_parse(images, captions))
        read = self(images)
        applies = torch.stack([targets[head] != ABSENT for head in HEADS], 1)
        probability = [
            read[head].float().softmax(1).cpu().gather(1, targets[head].clamp(min=0)[:, None])[:, 0] for head in HEADS
        ]
        return torch.stack(probability, 1), applies


def _parse(images: Tensor, captions: Sequence[str]) -> list[Scene]:
    if images.ndim != 4:
        raise FestinaError(
            f"the judge of pictures reads (batch, 3, 64, 64); found {tuple(images.shape)}. Videos have a judge of "
            f"their own."
        )
    if len(images) != len(captions):
        raise FestinaError(f"{len(images)} pictures but {len(captions)} captions; give one caption per picture.")
    return [parse_caption(caption) for caption in captions]


def load_judge(folder: Path, device: str | torch.device = "cpu") -> Judge:
    """The trained judge in a folder that holds `config.json` and `judge.safetensors`.

    Raises:
        FestinaError: the folder lacks either file.
    """
    config, weights = folder / "config.json", folder / "judge.safetensors"
    if not config.is_file() or not weights.is_file():
        raise FestinaError(f"no judge in {folder}: wanted config.json and judge.safetensors. Run `festina zoo train`.")
    judge = Judge(**json.loads(config.read_text()))
    state = {name: value.float() if value.is_floating_point() else value for name, value in load_file(weights).items()}
    judge.load_state_dict(state)
    return judge.to(device).eval()
