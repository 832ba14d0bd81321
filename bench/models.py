"""Denoisers the benchmarks drive without a pipeline, the inputs of one call, and plans for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel
from timing import nothing
from torch import Tensor, nn

from festina.cost import Call, CallTrace, trace
from festina.executor import Run
from festina.plan import Plan
from festina.sites import Site, component_sites


@dataclass(frozen=True)
class Model:
    """A denoiser and what it is called with.

    Attributes:
        name: shown in tables.
        denoiser: a PixArt or FLUX transformer.
        latents: pure noise, (rows, channels, height, width) or (rows, tokens, channels).
        inputs: the further arguments of a call, the same in every step.
        noisiest: the time step of pure noise.
    """

    name: str
    denoiser: nn.Module
    latents: Tensor
    inputs: Mapping[str, Tensor]
    noisiest: float

    @property
    def traced(self) -> CallTrace:
        """A trace of the first call."""
        return trace(self.denoiser, Call((), self.arguments(self.latents, 1.0)))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The component sites of the denoiser."""
        return component_sites(self.denoiser)

    def call(self, latents: Tensor, noise: float) -> Tensor:
        """The denoiser's output for latents at a noise level in [0, 1]."""
        output: Tensor = self.denoiser(**self.arguments(latents, noise))[0]
        return output

    def arguments(self, latents: Tensor, noise: float) -> dict[str, Any]:
        """The arguments of a call."""
        times = torch.full((len(latents),), noise * self.noisiest, device=latents.device)
        return {"hidden_states": latents, "timestep": times, "return_dict": False, **self.inputs}


@torch.no_grad()
def sample(model: Model, steps: int, step_ended: Callable[[], object] = nothing) -> list[Tensor]:
    """A run of plain Euler steps; the outputs of its calls.

    Args:
        model: what is sampled.
        steps: calls of the denoiser.
        step_ended: called after each, e.g. `Run.next_step`.
    """
    latents, outputs = model.latents, []
    for step in range(steps):
        output = model.call(latents, 1 - step / steps)
        # PixArt predicts variances behind the noise; they move nothing.
        latents = latents - output[:, : latents.shape[1]] / steps
        outputs.append(output)
        step_ended()
    return outputs


def sample_by(model: Model, run: Run, steps: int) -> list[Tensor]:
    """The first `steps` steps of a run by the plan that is applied to the model; the outputs of its calls."""
    run.start(len(run.plan.steps))
    return sample(model, steps, run.next_step)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two runs gave the same bits."""
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def computing_all(denoiser: nn.Module, steps: int) -> Plan:
    """The plan that changes nothing."""
    return Plan.computing_all(type(denoiser).__name__, [site.name for site in component_sites(denoiser)], steps)


def random_plan(denoiser: nn.Module, steps: int, density: float, seed: int) -> Plan:
    """A plan in which each site computes in each step after the first with probability `density`."""
    names = [site.name for site in component_sites(denoiser)]
    mask = np.random.default_rng(seed).random((steps, len(names))) < density
    return Plan.from_mask(type(denoiser).__name__, names, mask, method="random").canonical()


def pixart(
    name: str,
    blocks: int,
    heads: int,
    head_width: int,
    side: int,
    text_width: int,
    text_tokens: int,
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A PixArt transformer of random weights, built where it runs.

    Args:
        name: shown in tables.
        blocks, heads, head_width: its size; blocks are `heads` x `head_width` wide.
        side: height and width of the latent, which is cut into 2 x 2 patches.
        text_width, text_tokens: size of a caption's embedding.
        rows: rows of a call, two per picture under classifier-free guidance.
        device, dtype: where it runs and in what type.
    """
    with _building(device, dtype):
        denoiser = PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head_width,
            in_channels=4,
            out_channels=8,
            num_layers=blocks,
            cross_attention_dim=heads * head_width,
            caption_channels=text_width,
            sample_size=side,
            patch_size=2,
            use_additional_conditions=False,
        )
    return around_pixart(name, denoiser.eval(), text_tokens, rows)


def around_pixart(name: str, denoiser: Any, text_tokens: int, rows: int) -> Model:
    """A PixArt transformer with random inputs of its own size."""
    config, weight = denoiser.config, next(denoiser.parameters())
    draw = _drawing(weight.device, weight.dtype)
    inputs = {
        "encoder_hidden_states": draw(rows, text_tokens, config.caption_channels),
        # The pipelines always give a mask, and with one attention takes another path.
        "encoder_attention_mask": torch.ones(rows, text_tokens, device=weight.device, dtype=weight.dtype),
    }
    latents = draw(rows, config.in_channels, config.sample_size, config.sample_size)
    return Model(name, denoiser, latents, inputs, 1000.0)


def flux(
    name: str,
    doubles: int,
    singles: int,
    heads: int,
    axes: tuple[int, int, int],
    side: int,
    text_width: int,
    text_tokens: int,
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A FLUX transformer with embedded guidance, of random weights, built where it runs.

    Args:
        name: shown in tables.
        doubles, singles, heads: its size; blocks are `heads` x sum(`axes`) wide.
        axes: widths of the parts of a head that rotate by index, row and column.
        side: height and width of the picture in tokens.
        text_width, text_tokens: size of a caption's embedding.
        rows: rows of a call, one per picture.
        device, dtype: where it runs and in what type.
    """
    pooled = 768
    with _building(device, dtype):
        denoiser = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=doubles,
            num_single_layers=singles,
            attention_head_dim=sum(axes),
            num_attention_heads=heads,
            joint_attention_dim=text_width,
            pooled_projection_dim=pooled,
            guidance_embeds=True,
            axes_dims_rope=axes,
        )
    draw = _drawing(device, dtype)
    rows_and_columns = torch.arange(side, dtype=torch.float32)
    places = torch.cartesian_prod(torch.zeros(1), rows_and_columns, rows_and_columns)
    inputs = {
        "encoder_hidden_states": draw(rows, text_tokens, text_width),
        "pooled_projections": draw(rows, pooled),
        "img_ids": places.to(device, dtype),
        "txt_ids": torch.zeros(text_tokens, 3, device=device, dtype=dtype),
        "guidance": torch.full((rows,), 3.5, device=device),
    }
    return Model(name, denoiser.eval(), draw(rows, side * side, 64), inputs, 1.0)


@contextmanager
def _building(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make new weights at once on the device and in their type, from a fixed seed: twelve thousand million of them
    would take long to move and to convert."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _drawing(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A function from a size to normal noise, the same on every device."""
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    return draw
