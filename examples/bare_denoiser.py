"""Run a plan on a denoiser without a pipeline: the sampling loop is your own, and so is the step clock.

Usage: python examples/bare_denoiser.py [FOLDER]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

import festina
from festina.methods import fora

FOLDER = Path("runs/examples/bare_denoiser")
STEPS, GUIDANCE = 8, 3.0


def main(out: Path = FOLDER) -> None:
    """Write `latents.safetensors`: what the loop makes without a plan, computing everything, and reusing."""
    denoiser = small_denoiser()
    made = {"untouched": sample(denoiser, None)}
    for name, interval in (("all computed", 1), ("every second step", 2)):
        with festina.accelerate(denoiser, fora(denoiser, STEPS, interval)) as run:
            made[name] = sample(denoiser, run)
        print(f"{name}: the same bits as untouched: {torch.equal(made[name], made['untouched'])}")
        print(run.summary())
    out.mkdir(parents=True, exist_ok=True)
    save_file(made, out / "latents.safetensors")


def small_denoiser() -> Any:
    """A PixArt transformer with random weights."""
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=16,
        patch_size=2,
        use_additional_conditions=False,
    ).eval()


@torch.no_grad()
def sample(denoiser: Any, run: festina.Run | None) -> Tensor:
    """Euler steps along a predicted velocity, with two denoiser calls a step.

    The calls of a step are told apart by their place in it, so both halves of the guidance keep values of their own.
    """
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    caption, empty = torch.randn(2, 1, 8, 32, generator=generator)
    if run is not None:
        run.start(STEPS)
    for step in range(STEPS):
        timestep = torch.tensor([1000 * (STEPS - step) // STEPS - 1])
        with_caption, without = (
            denoiser(latents, encoder_hidden_states=text, timestep=timestep, return_dict=False)[0]
            for text in (caption, empty)
        )
        latents = latents - (without + GUIDANCE * (with_caption - without)) / STEPS
        if run is not None:
            run.next_step()
    return latents


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
