"""How good a shipped pipeline and its judge are, uncached; of a small denoiser that ships, its pipeline with that one.

Prints, as Markdown, the share of attributes that the judge reads as the caption says: on real renders (the judge's own
accuracy), on renders sent through the autoencoder (of videos frame by frame), and on generated pictures or videos, for
captions of combinations seen in training and for captions with combinations held out of it; and of generated ones the
share of each attribute. `--sheet FILE` writes a
contact sheet of generated pictures, of videos one row of frames each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import Figures, at_least, run_program, tell
from torch import Tensor

from festina.errors import FestinaError
from festina.metrics.distances import psnr
from festina.metrics.judge import Judge
from festina.metrics.video_judge import VideoJudge
from festina.report.comparison import png, strip
from festina.report.whole import write_whole_bytes
from festina.search import Workload
from festina.search.generation import generate
from festina.zoo import SHIPPED, SMALL, call_arguments, load, load_denoiser
from festina.zoo.shipped import shipped

FIRST_SEED = 3_000_000
SCENES_SEED = 300
COLUMNS = 8
AT_ONCE = 256
"""Most pictures that go through the autoencoder at once."""


@dataclass(frozen=True)
class Score:
    """What the judge reads in a set of pictures."""

    name: str
    pictures: int
    attributes: float
    whole: float
    reward: float
    shares: dict[str, float]

    @property
    def weakest(self) -> str:
        """The attribute that is right least often, with its share."""
        name = min(self.shares, key=self.shares.__getitem__)
        return f"{name} {self.shares[name]:.1%}"


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    asked = _parser().parse_args(arguments)
    ours = shipped(SMALL.get(asked.name, asked.name))
    if ours is None:
        raise FestinaError(f"{asked.name!r} does not ship; there are {', '.join((*SHIPPED, *SMALL))}.")
    pipe, judge = load(ours.name), ours.judge()
    if asked.name in SMALL:
        pipe.transformer = load_denoiser(asked.name)
    scores = []
    for held_out in (False, True):
        captions = ours.captions_of_kind(asked.images, SCENES_SEED, held_out)
        kind = "held-out combinations" if held_out else "combinations seen in training"
        pictures = ours.renders(captions, seed=SCENES_SEED)
        decoded = through_autoencoder(pipe, pictures)
        tell(f"{kind}: autoencoder PSNR {psnr(decoded, pictures).mean():.1f} dB")
        seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(captions)))
        work = Workload(captions, seeds, asked.steps, asked.guidance, asked.batch, call_arguments(pipe))
        made = generate(pipe, work.pictures(), work)
        scores += [
            read(judge, f"renders, {kind}", pictures, captions),
            read(judge, f"renders through the autoencoder, {kind}", decoded, captions),
            read(judge, f"generated, {kind}", made, captions),
        ]
        if asked.sheet is not None and not held_out:
            write_whole_bytes(asked.sheet, contact_sheet(made[: COLUMNS if ours.moving else 4 * COLUMNS]))
    what = "videos" if ours.moving else "pictures"
    print(f"| {what} | count | attributes right | all right | reward | weakest attribute |")
    print("| :-- | --: | --: | --: | --: | :-- |")
    for score in scores:
        print(
            f"| {score.name} | {score.pictures} | {score.attributes:.1%} | {score.whole:.1%} | {score.reward:.3f} "
            f"| {score.weakest} |"
        )
    print(f"\n| {what} | {' | '.join(judge.attributes)} |")
    print("| :-- |" + " --: |" * len(judge.attributes))
    for score in scores:
        if score.name.startswith("generated"):
            print(f"| {score.name} | {' | '.join(f'{share:.1%}' for share in score.shares.values())} |")
    return {score.name: vars(score) for score in scores}


def read(judge: Judge | VideoJudge, name: str, pictures: Tensor, captions: Sequence[str]) -> Score:
    """What the judge reads in pictures or videos of these captions."""
    right, applies = judge.correct(pictures, captions)
    shares = dict(zip(judge.attributes, (right.sum(0) / applies.sum(0)).tolist(), strict=True))
    whole = (right.sum(1) == applies.sum(1)).float().mean().item()
    reward = judge.reward(pictures, captions).mean().item()
    return Score(name, len(pictures), (right.sum() / applies.sum()).item(), whole, reward, shares)


def through_autoencoder(pipe: Any, pictures: Tensor) -> Tensor:
    """Pictures, or the frames of videos, encoded to latents and decoded again."""
    with torch.no_grad():
        singles = pictures.flatten(0, -4)
        parts = [singles[start : start + AT_ONCE] for start in range(0, len(singles), AT_ONCE)]
        decoded = [pipe.vae.decode(pipe.vae.encode(part * 2 - 1).latent_dist.mode()).sample for part in parts]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1).view(pictures.shape)


def contact_sheet(pictures: Tensor, scale: int = 2) -> bytes:
    """Pictures in rows of `COLUMNS`, videos in a row of frames each, enlarged by a whole factor, as a PNG file."""
    if pictures.ndim == 5:
        rows = [strip(video) for video in pictures]
    else:
        rows = [torch.cat(list(pictures[start : start + COLUMNS]), 2) for start in range(0, len(pictures), COLUMNS)]
    return png(torch.cat(rows, 1).repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="scenes", help=f"one of {', '.join((*SHIPPED, *SMALL))}")
    parser.add_argument("--images", type=at_least(1), default=200, help="captions of each kind (200)")
    parser.add_argument("--steps", type=at_least(1), default=20, help="sampling steps (20)")
    parser.add_argument("--guidance", type=float, default=4.5, help="strength of classifier-free guidance (4.5)")
    parser.add_argument("--batch", type=at_least(1), default=16, help="pictures per call (16)")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    return parser


if __name__ == "__main__":
    run_program(main)
