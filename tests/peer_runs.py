"""Shared by the tests of peers: one pipeline by a peer and by a plan, and in which denoiser calls modules ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FluxPipeline
from tiny import PROMPT, flux_pipeline, pixart_pipeline
from torch import Tensor

import festina
from festina import Plan, Step
from festina.gates import Gate
from festina.peers import peer_named, running
from festina.sites import find_denoiser, stack_runs

STEPS = 10
BLOCKS = 4

WITHIN = {"rtol": 1e-4, "atol": 1e-5}
"""How near two ways to one result come."""

Ran = dict[str, list[int]]
Render = Callable[[Any], Tensor]


def pixart() -> Any:
    """A PixArt of four blocks, which guides in one call."""
    return pixart_pipeline(BLOCKS)


def flux() -> Any:
    """A FLUX of two double and two single blocks."""
    return flux_pipeline()


LAST = {pixart: f"transformer_blocks.{BLOCKS - 1}.attn1.to_q", flux: "single_transformer_blocks.1.attn.to_q"}
"""A module of the last block, by what builds the pipeline."""


def latents(pipe: Any, **more: Any) -> Tensor:
    """Latents of one picture from fixed noise, in ten steps; nothing is clamped."""
    own = {"max_sequence_length": 20}
    if not isinstance(pipe, FluxPipeline):
        own |= {"use_resolution_binning": False, "clean_caption": False}
    made: Tensor = pipe(
        [PROMPT],
        height=16,
        width=16,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **own,
        **more,
    ).images
    return made.clone()


def guided(pipe: Any) -> Tensor:
    """Latents of FLUX with a call of its own for the negative prompt."""
    return latents(pipe, negative_prompt=["a black background"], true_cfg_scale=3.0)


def plan_of(pipe: Any, actions: Mapping[str, str], gate: Gate | None = None, basis: str = "newton") -> Plan:
    """A plan from a string of actions per site."""
    rows = ["".join(row) for row in zip(*actions.values(), strict=True)]
    steps = tuple(Step(1 - index / len(rows), row) for index, row in enumerate(rows))
    return Plan(type(find_denoiser(pipe)).__name__, tuple(actions), steps, gate=gate, basis=basis)


def stack_plan(pipe: Any, actions: str, first: int = 0, last: int = 0, gate: Gate | None = None) -> Plan:
    """The same actions for the whole stack but its first and last blocks."""
    return plan_of(pipe, dict.fromkeys(stack_runs(find_denoiser(pipe), first, last), actions), gate)


@contextmanager
def watching(pipe: Any, *paths: str) -> Iterator[Ran]:
    """In which calls of the denoiser, counted from 0, these modules ran."""
    denoiser, ran = find_denoiser(pipe), {path: [] for path in paths}
    calls = [0]

    def noting(path: str) -> Callable[..., None]:
        return lambda *_: ran[path].append(calls[0])

    handles = [denoiser.get_submodule(path).register_forward_pre_hook(noting(path)) for path in paths]
    handles.append(denoiser.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def by_peer(pipe: Any, render: Render, name: str, knobs: Mapping[str, Any], *paths: str) -> tuple[Tensor, Ran]:
    """A result by a peer, and in which calls modules ran."""
    with running(pipe, peer_named(name, knobs)), watching(pipe, *paths) as ran:
        return render(pipe), ran


def by_plan(pipe: Any, render: Render, plan: Plan, *paths: str) -> tuple[Tensor, Ran]:
    """A result by a plan, and in which calls modules ran."""
    with festina.accelerate(pipe, plan), watching(pipe, *paths) as ran:
        return render(pipe), ran


def agree(one: Tensor, other: Tensor) -> None:
    """Two ways gave one result."""
    torch.testing.assert_close(one, other, **WITHIN)


def differ(one: Tensor, other: Tensor) -> None:
    """Two ways gave two results."""
    assert not torch.allclose(one, other, **WITHIN)
