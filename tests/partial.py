"""Plans that compute some tokens, and runs of a bare PixArt by them."""

import torch

import festina
from festina import Plan, Step
from festina.plan import ALL
from festina.sites import component_sites, find_denoiser
from festina.token_cost import BY_TOKEN
from festina.tokens import Tokens

RANDOM, IMPORTANCE = Tokens("random"), Tokens("importance")
AGEING = Tokens("importance", age=0.2)
TWO_CALLS = {"negative_prompt": ["a black background"], "true_cfg_scale": 3.0}
SIZE = {"resolution": None, "aspect_ratio": None}
FF, CROSS = "transformer_blocks.1.ff", "transformer_blocks.1.attn2"


def partial_plan(pipe, letters, tokens, share=0.5, others="R", branches=None):
    """A plan of all components; in a step `T` those that can compute for a share of tokens, and the others do
    `others`."""
    denoiser = find_denoiser(pipe)
    sites, steps = component_sites(denoiser), []
    for index, letter in enumerate(letters):
        row = "".join((letter if site.role in BY_TOKEN else others) if letter == "T" else letter for site in sites)
        shares = tuple(share if action == "T" else 0.0 for action in row) if "T" in row else ()
        word = branches[index] if branches else ALL
        steps.append(Step(1 - index / len(letters), row, branches=word, shares=shares))
    return Plan(type(denoiser).__name__, tuple(site.name for site in sites), tuple(steps), tokens=tokens)


def drifting(steps, rows=2):
    generator = torch.Generator().manual_seed(0)
    start, drift = (torch.randn(rows, 4, 8, 8, generator=generator) for _ in range(2))
    return [start + 0.2 * step * drift for step in range(steps)], torch.randn(rows, 5, 16, generator=generator)


def by_hand(denoiser, plan, inputs, text, begin=0, handles=()):
    """Run a bare PixArt by a plan; returns the report, for which a call is traced once the handles are removed."""
    with torch.no_grad(), festina.accelerate(denoiser, plan) as run:
        run.start(len(plan.steps))
        run.begin_at(begin)
        for step, sample in enumerate(inputs):
            time = torch.full((len(sample),), 900 - 60 * step)
            denoiser(sample, text, timestep=time, added_cond_kwargs=SIZE)
            run.next_step()
        assert not len(run.store)
        for handle in handles:
            handle.remove()
        return run.report()
