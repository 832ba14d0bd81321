"""How good the shipped `scenes` pipeline and its judge are, uncached.

Prints, as Markdown, the share of attributes that the judge reads as the caption says: on real renders (the judge's own
accuracy), on renders sent through the autoencoder, and on generated pictures, for captions of combinations seen in
training and for captions with combinations held out of it. `--sheet FILE` writes a contact sheet of generated pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import Figures, run_program, tell
from torch import Tensor

from festina.metrics.distances import psnr
from festina.metrics.judge import HEADS, Judge
from festina.report.comparison import png
from festina.report.whole import write_whole_bytes
from festina.search import Workload
from festina.search.generation import generate
from festina.zoo import call_arguments, load, shipped_judge
from festina.zoo.grammar import parse_caption, sample_scenes
from festina.zoo.render import render

FIRST_SEED = 3_000_000
SCENES_SEED = 300
COLUMNS = 8


@dataclass(frozen=True)
class Score:
    """What the judge reads in a set of pictures."""

    name: str
    pictures: int
    attributes: float
    whole: float
    reward: float
    worst: tuple[str, float]


def main(arguments: Sequence[str] | None = None) -> Figures:
    """The program; returns the figures it prints."""
    asked = _parser().parse_args(arguments)
    pipe, judge = load("scenes"), shipped_judge()
    scores = []
    for held_out in (False, True):
        # Each caption once: a workload names every prompt only once.
        captions = tuple(dict.fromkeys(s.caption() for s in sample_scenes(2 * asked.images, SCENES_SEED, held_out)))
        captions = captions[: asked.images]
        kind = "held-out combinations" if held_out else "combinations seen in training"
        pictures = render([parse_caption(caption) for caption in captions], seed=SCENES_SEED)
        decoded = through_autoencoder(pipe, pictures)
        tell(f"{kind}: autoencoder PSNR {psnr(decoded, pictures).mean():.1f} dB")
        seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(captions)))
        work = Workload(captions, seeds, asked.steps, asked.guidance, 16, call_arguments(pipe))
        made = generate(pipe, work.pictures(), work)
        scores += [
            read(judge, f"renders, {kind}", pictures, captions),
            read(judge, f"renders through the autoencoder, {kind}", decoded, captions),
            read(judge, f"generated, {kind}", made, captions),
        ]
        if asked.sheet is not None and not held_out:
            write_whole_bytes(asked.sheet, contact_sheet(made[: 4 * COLUMNS]))
    print("| pictures | count | attributes right | all right | reward | weakest attribute |")
    print("| :-- | --: | --: | --: | --: | :-- |")
    for score in scores:
        weakest = f"{score.worst[0]} {score.worst[1]:.1%}"
        print(
            f"| {score.name} | {score.pictures} | {score.attributes:.1%} | {score.whole:.1%} | {score.reward:.3f} "
            f"| {weakest} |"
        )
    return {score.name: vars(score) for score in scores}


def read(judge: Judge, name: str, pictures: Tensor, captions: Sequence[str]) -> Score:
    """What the judge reads in pictures of these captions."""
    right, applies = judge.correct(pictures, captions)
    shares = (right.sum(0) / applies.sum(0)).tolist()
    worst = min(zip(HEADS, shares, strict=True), key=lambda pair: pair[1])
    whole = (right.sum(1) == applies.sum(1)).float().mean().item()
    reward = judge.reward(pictures, captions).mean().item()
    return Score(name, len(pictures), (right.sum() / applies.sum()).item(), whole, reward, worst)


def through_autoencoder(pipe: Any, pictures: Tensor) -> Tensor:
    """Pictures encoded to latents and decoded again."""
    with torch.no_grad():
        latents = pipe.vae.encode(pictures * 2 - 1).latent_dist.mode()
        decoded: Tensor = pipe.vae.decode(latents).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


def contact_sheet(pictures: Tensor, scale: int = 2) -> bytes:
    """Pictures in rows of `COLUMNS`, enlarged by a whole factor, as a PNG file."""
    rows = [torch.cat(list(pictures[start : start + COLUMNS]), 2) for start in range(0, len(pictures), COLUMNS)]
    return png(torch.cat(rows, 1).repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="captions of each kind")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    return parser


if __name__ == "__main__":
    run_program(main)
