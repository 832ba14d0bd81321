"""What a plan costs, before any run: multiply-accumulates in closed form, and the bytes its store holds.

The counts follow from the shapes of the weights and from the streams of tokens that `festina.sites` declares for each
class, so that they work on models without data (`torch.device("meta")`). Without the attention products they are the
counts of ECAD (arXiv 2506.15682, released schedules); the products QK^T and AV are counted apart, as ECAD leaves them
out. Biases, norms, activations, softmax and table look-ups count nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from festina.errors import FestinaError
from festina.layers import Shape as Shape
from festina.layers import attention_products, attention_stream, stored_numbers, weights_per_token
from festina.plan import COMPUTE, FORECASTS, SKIP, Plan, enclosing_sites
from festina.sites import Row, Site, block_sites, component_sites, find_denoiser, resolve, row_of, site_module


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates: `linear` by weights, `attention` in the products QK^T and AV."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> Macs:
        return Macs(self.linear * times, self.attention * times)


@dataclass(frozen=True)
class MacTable:
    """Price of one denoiser call.

    Attributes:
        fixed: all modules that are no component, outside the blocks and within them.
        sites: what serving a site saves, by name: a component's own MACs; for a block's residual its components and
            the fixed modules within the block.
        full: a call in which everything computes.
    """

    fixed: Macs
    sites: Mapping[str, Macs]
    full: Macs


def mac_table(denoiser: nn.Module, shape: Shape) -> MacTable:
    """Price a denoiser call in closed form.

    Args:
        denoiser: a denoiser with a site row; its weights may be on the meta device.
        shape: size of the call.

    Raises:
        FestinaError: the class has no row, or its row leaves a module with weights uncovered, covers one twice, or
            has no closed form for one.
    """
    row, components = row_of(denoiser), component_sites(denoiser)
    by_path = {site.path: site for site in components}
    prices = {site.name: Macs(0, attention_products(site, denoiser, shape)) for site in components}
    residuals = {site.path: Macs(0, 0) for site in block_sites(denoiser)}
    fixed = Macs(0, 0)
    for path, module in denoiser.named_modules(remove_duplicate=False):
        weights = weights_per_token(path, module)
        if not weights:
            continue
        site, stream = _rule(path, by_path, row, denoiser)
        price = Macs(weights * shape.batch * shape.tokens(stream), 0) if stream else Macs(0, 0)
        if site is not None:
            prices[site.name] += price
        else:
            fixed += price
            for block in residuals:
                if path.startswith(f"{block}."):
                    residuals[block] += price
        fixed += Macs(weights * shape.batch * sum(shape.tokens(name) for name in _streams(row.again, path)), 0)
    for site in components:
        residuals[f"{site.stack}.{site.block}"] += prices[site.name]
    full = sum(prices.values(), fixed)
    prices |= {site.name: residuals[site.path] for site in block_sites(denoiser)}
    return MacTable(fixed, prices, full)


def plan_macs(plan: Plan, table: MacTable) -> Macs:
    """MACs of a run by the plan, at one denoiser call per step; several calls of a step cost the same each.

    Sites the plan does not name compute in every step. Serving a value costs nothing.

    Raises:
        FestinaError: the plan names a site that is not in the table.
    """
    if missing := [name for name in plan.sites if name not in table.sites]:
        raise FestinaError(f"{len(missing)} sites without a price, as {missing[0]!r}; wanted a plan for this model.")
    plan = plan.canonical()
    served = (_visited(plan) & ~plan.mask()).sum(axis=0)
    linear, attention = len(plan.steps) * table.full.linear, len(plan.steps) * table.full.attention
    for name, times in zip(plan.sites, served.tolist(), strict=True):
        linear -= times * table.sites[name].linear
        attention -= times * table.sites[name].attention
    return Macs(linear, attention)


def values_held(plan: Plan) -> NDArray[np.int_]:
    """How many computed values each site holds after each step, int (steps, sites).

    A value is held from the step that computes it to the last step that reads it. Reuse reads the last computed
    value, a forecast of order k the last k + 1, a skip none; a site within a served block is not visited and reads
    none. A plan of computing and reusing holds at most one value per site.
    """
    plan = plan.canonical()
    table, visited = plan.table(), _visited(plan)
    held = np.zeros(table.shape, dtype=np.int_)
    for site in range(len(plan.sites)):
        computed: list[int] = []
        last_read: dict[int, int] = {}
        for step, action in enumerate(table[:, site]):
            if action == COMPUTE:
                computed.append(step)
            elif visited[step, site] and action != SKIP:
                order = int(action) if action in FORECASTS else 0
                last_read |= dict.fromkeys(computed[-order - 1 :], step)
        for step, read in last_read.items():
            held[step:read, site] += 1
    return held


def held_bytes(plan: Plan, denoiser: nn.Module, shape: Shape, itemsize: int, branches: int = 1) -> int:
    """Most bytes the store holds at once in a run by the plan.

    Sites are visited in execution order, in one call per branch and step. A value is stored where it is computed and
    freed right after its last read (`values_held`).

    Args:
        plan: the plan.
        denoiser: the denoiser it runs on; may be on the meta device.
        shape: size of one call.
        itemsize: bytes per number of the activations, e.g. 2 for bfloat16.
        branches: separate denoiser calls per step, each with a store of its own.

    Raises:
        FestinaError: the plan is for another denoiser.
    """
    sites = resolve(denoiser, plan.sites)
    execution = {site.name: place for place, site in enumerate(component_sites(denoiser))}
    ends = {f"{site.stack}.{site.block}": place for place, site in enumerate(component_sites(denoiser))}
    # A residual is stored at the end of its block; where it is served nothing else of the block is visited.
    places = [execution.get(site.name, ends.get(site.path, 0) + 0.5) for site in sites]
    sizes = np.array([stored_numbers(site, denoiser, shape) * itemsize for site in sites])
    change = np.diff(values_held(plan) * sizes, axis=0, prepend=0)[:, np.argsort(places)]
    return int(np.repeat(change[:, None], branches, axis=1).reshape(-1).cumsum().max())


def shape_of(pipe: object, height: int, width: int, batch: int, text_tokens: int) -> Shape:
    """Size of a denoiser call of a latent diffusion pipeline.

    Args:
        pipe: a pipeline with a `vae`, whose denoiser cuts the latent into patches; or whose pipeline packs patches
            into channels before (FLUX: 2 x 2).
        height, width: size of the picture in pixels.
        batch: rows of the call, see `Shape`.
        text_tokens: tokens of a caption.

    Raises:
        FestinaError: the pipeline lacks a vae, or its pictures are no whole number of patches.
    """
    config: Any = find_denoiser(pipe).config
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise FestinaError(f"{type(pipe).__name__} has no `vae`, which says how many pixels a token stands for.")
    packed = round((config.in_channels / vae.config.latent_channels) ** 0.5)
    side = 2 ** (len(vae.config.block_out_channels) - 1) * config.patch_size * packed
    if height % side or width % side:
        raise FestinaError(f"a picture of {height} x {width} pixels; wanted multiples of {side}, the side of a token.")
    return Shape(batch, (height // side) * (width // side), text_tokens)


def _visited(plan: Plan) -> NDArray[np.bool_]:
    """Which sites a canonical plan comes to in each step: all but those within a served one; bool (steps, sites)."""
    mask = plan.mask()
    visited = [mask[:, parents].all(axis=1) for parents in enclosing_sites(plan.sites)]
    return np.stack(visited, axis=1)


def _rule(path: str, components: Mapping[str, Site], row: Row, denoiser: nn.Module) -> tuple[Site | None, str]:
    """The component a module belongs to, or None for a fixed one, and the stream it sees ("" if it does not run)."""
    sites = [components[prefix] for prefix in _prefixes(path) if prefix in components]
    streams = _streams(row.fixed, path)
    if len(sites) + len(streams) != 1:
        found = "no rule" if not sites and not streams else "more than one rule"
        raise FestinaError(
            f"{found} of the site row of {row.denoiser} covers {path!r}, so it cannot be priced; wanted exactly one: "
            f"a component of a stack or a prefix in `fixed` (festina.sites)."
        )
    if streams:
        return None, streams[0]
    site = sites[0]
    component = site.component
    assert component is not None
    if not component.attends:
        return site, component.tokens
    return site, attention_stream(path, component, site_module(denoiser, site), path[len(site.path) + 1 :])


def _streams(rules: Sequence[tuple[str, str]], path: str) -> list[str]:
    """Streams of the rules whose prefix covers a path; `*` stands for a number."""
    parts = path.split(".")
    return [stream for prefix, stream in rules if _covers(prefix.split("."), parts)]


def _covers(prefix: Sequence[str], parts: Sequence[str]) -> bool:
    return len(prefix) <= len(parts) and all(
        wanted == part or (wanted == "*" and part.isdigit()) for wanted, part in zip(prefix, parts, strict=False)
    )


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))
