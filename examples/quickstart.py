"""Run a pipeline by a plan that ships, and put its pictures below those of the untouched pipeline.

Usage: python examples/quickstart.py [FOLDER]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import festina
from festina.zoo import call_arguments, load, shipped_plan

FOLDER = Path("runs/examples/quickstart")
PROMPTS = (
    "a large red circle left of a small blue square on a white background",
    "a small yellow star above a large green triangle on a black background",
    "a small orange cross right of a large yellow circle on a grey background",
)


def main(out: Path = FOLDER) -> None:
    """Write `side-by-side.png`: the untouched pipeline above, the plan below."""
    pipe, plan = load("scenes"), shipped_plan("scenes/fast")
    untouched = draw(pipe, steps=len(plan.steps))
    with festina.accelerate(pipe, plan) as run:
        planned = draw(pipe, steps=len(plan.steps))
    print(run.summary())
    out.mkdir(parents=True, exist_ok=True)
    side_by_side(untouched, planned).save(out / "side-by-side.png")
    print(f"wrote {out / 'side-by-side.png'}")


def draw(pipe: Any, steps: int) -> list[Image.Image]:
    """One picture per prompt; the same noise in every call."""
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    images: list[Image.Image] = pipe(
        list(PROMPTS), num_inference_steps=steps, generator=noise, **call_arguments(pipe)
    ).images
    return images


def side_by_side(above: list[Image.Image], below: list[Image.Image]) -> Image.Image:
    """Two rows of pictures of one size as one picture."""
    width, height = above[0].size
    sheet = Image.new("RGB", (len(above) * width, 2 * height))
    for row, images in enumerate((above, below)):
        for column, image in enumerate(images):
            sheet.paste(image, (column * width, row * height))
    return sheet


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
