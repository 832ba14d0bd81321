"""Teach Festina a denoiser it cannot read: a small model of one's own, with attention by an unusual name.

See docs/adding_a_model.md for what the row says.

Usage: python examples/own_model.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import festina
from festina.cost import Call, mac_table, trace
from festina.methods import fora
from festina.sites import Row, Stack, component_sites, register

FOLDER = Path("runs/examples/own_model")
STEPS, WIDTH, TOKENS = 6, 32, 16


class Mix(nn.Module):
    """Attention, but its layers are called something else."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.tell, self.say = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        asked, told, said = self.ask(tokens), self.tell(tokens), self.say(tokens)
        mixed: Tensor = nn.functional.scaled_dot_product_attention(asked, told, said)
        return mixed


class Layer(nn.Module):
    """Mixes tokens, then feeds them forward."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        tokens = tokens + self.mix(tokens) * time
        fed: Tensor = self.feed(tokens)
        return tokens + fed


class MyDenoiser(nn.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, time)
        return tokens


def main(out: Path = FOLDER) -> None:
    """Register the row, check it, and write `plan.json`, a plan for the model."""
    torch.manual_seed(0)
    denoiser = MyDenoiser().eval()
    try:
        component_sites(denoiser)
    except festina.FestinaError as error:
        print(error)

    register(Row("MyDenoiser", (Stack("layers", components=("mix", "feed")),)))
    prices = mac_table(denoiser, trace(denoiser, Call((torch.zeros(1, TOKENS, WIDTH), torch.ones(1)))))
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


@torch.no_grad()
def sample(denoiser: nn.Module, run: festina.Run | None) -> Tensor:
    """Euler steps along a predicted velocity; without a pipeline the clock of the run is driven by hand."""
    tokens = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    if run is not None:
        run.start(STEPS)
    for step in range(STEPS):
        tokens = tokens - denoiser(tokens, torch.full((1,), 1 - step / STEPS)) / STEPS
        if run is not None:
            run.next_step()
    return tokens


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
