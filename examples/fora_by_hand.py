"""Write a published method down as a plan: FORA, which computes everything every few steps (arXiv 2407.01425).

Usage: python examples/fora_by_hand.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
import torch

import festina
from festina import Plan
from festina.methods import fora
from festina.sites import component_sites
from festina.zoo import call_arguments, load

FOLDER = Path("runs/examples/fora_by_hand")
PROMPT = "a large purple ring on a pink background"


def main(out: Path = FOLDER, steps: int = 20, interval: int = 3) -> None:
    """Write `plan.json` and the picture it makes, `by-the-plan.png`."""
    pipe = load("scenes")
    sites = [site.name for site in component_sites(pipe.transformer)]

    # A plan of computing and reusing is a table of steps and sites: True computes, False reuses.
    computes = np.zeros((steps, len(sites)), dtype=bool)
    computes[::interval] = True
    plan = Plan.from_mask("PixArtTransformer2DModel", sites, computes, method="by hand")

    # Two plans that do the same have the same key, whoever made them.
    same = plan.key() == fora(pipe, steps, interval).key()
    print(f"computes in steps {plan.computed_steps()}; the same run as festina.methods.fora: {same}")

    out.mkdir(parents=True, exist_ok=True)
    plan.save(out / "plan.json")
    with festina.accelerate(pipe, out / "plan.json") as run:
        image = pipe(
            PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **call_arguments(pipe)
        ).images[0]
    image.save(out / "by-the-plan.png")
    print(run.summary())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
