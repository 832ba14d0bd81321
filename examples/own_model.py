"""Teach Festina a denoiser class it does not know: the transformer of Stable Diffusion 3.

See docs/adding_a_model.md for what the row says.

Usage: python examples/own_model.py [FOLDER]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

import festina
from festina.cost import Shape, mac_table
from festina.methods import fora
from festina.sites import Component, Row, Stack, component_sites, register

BLOCK = (Component("attn", tokens="joint", attends="joint"), Component("ff", tokens="image"))
BLOCKS = Stack("transformer_blocks", BLOCK, streams=("encoder_hidden_states", "hidden_states"))
VECTORS = ("time_text_embed", "transformer_blocks.*.norm1", "transformer_blocks.*.norm1_context", "norm_out")
TOKENS = {"pos_embed": "image", "context_embedder": "text", "transformer_blocks.*.ff_context": "text"}
FIXED = (*TOKENS.items(), *((name, "vector") for name in VECTORS), ("proj_out", "image"))
SD3 = Row("SD3Transformer2DModel", (BLOCKS,), FIXED)

FOLDER = Path("runs/examples/own_model")
STEPS, CALL = 6, Shape(batch=2, image_tokens=64, text_tokens=10)


def main(out: Path = FOLDER) -> None:
    """Register the row, check it, and write `plan.json`, a plan for the class."""
    register(SD3)
    denoiser = small_denoiser()

    # Priced in closed form: an error if the row leaves a module with weights out, or covers one twice.
    prices = mac_table(denoiser, CALL)
    print(f"{len(component_sites(denoiser))} sites; {prices.fixed.total / prices.full.total:.0%} of the MACs are fixed")

    untouched = sample(denoiser, None)
    with festina.accelerate(denoiser, fora(denoiser, STEPS, 1)) as run:
        print(f"computing everything gives the same bits: {torch.equal(sample(denoiser, run), untouched)}")

    plan = fora(denoiser, STEPS, 2)
    with festina.accelerate(denoiser, plan) as run:
        sample(denoiser, run)
    print(run.summary())
    out.mkdir(parents=True, exist_ok=True)
    plan.save(out / "plan.json")


def small_denoiser() -> Any:
    """The class at a small size, with random weights."""
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=12,
        pos_embed_max_size=16,
    ).eval()


@torch.no_grad()
def sample(denoiser: Any, run: festina.Run | None) -> Tensor:
    """Euler steps along a predicted velocity."""
    generator = torch.Generator().manual_seed(1)
    latents, text, pooled = (
        torch.randn(CALL.batch, *size, generator=generator) for size in ((4, 16, 16), (CALL.text_tokens, 24), (12,))
    )
    if run is not None:
        run.start(STEPS)
    for step in range(STEPS):
        timestep = torch.full((CALL.batch,), 1000 * (STEPS - step) // STEPS)
        velocity = denoiser(latents, text, pooled, timestep, return_dict=False)[0]
        latents = latents - velocity / STEPS
        if run is not None:
            run.next_step()
    return latents


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
