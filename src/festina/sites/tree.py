"""The sites of a denoiser, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from festina.errors import FestinaError
from festina.names import FEATURE, OUTPUT, RESIDUAL, SiteName, parse
from festina.sites.discovery import SELF, Block
from festina.sites.rows import blocks_of

BLOCK, REGION = "block", "region"
"""Roles of sites that are no component; those of components are in `festina.sites.discovery`."""


ENTRY = "conv_in"
"""The layer through which the latents come into a U-Net of diffusers. What it returns is the first skip connection too,
so that a U-Net that is served this and all regions on the way down makes nothing of the present latents."""


@dataclass(frozen=True)
class Site:
    """A place whose output can be served.

    Attributes:
        name: unique name, see `festina.names`.
        kind: value kind: "output" (what a component returns, before gate and residual addition, as in ECAD, arXiv
            2506.15682), "residual" (out - in of a block or a run of blocks) or "feature" (what a region returns).
        paths: paths of the modules it spans, in execution order; one for a component.
        stack: path of the list its (first) block stands in.
        block: path of its first block or region.
        part: path of the component within its block, "" for anything else.
        role: what it does: "self-attention", "cross-attention", "feed-forward", "convolution", "block" or "region".
        streams: names of the arguments a block changes, in the order in which it returns them; () if shapes tell.
    """

    name: str
    kind: str
    paths: tuple[str, ...]
    stack: str
    block: str
    part: str
    role: str
    streams: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path of its first module."""
        return self.paths[0]

    @property
    def group(self) -> str:
        """Stack and component: what one would name in one breath."""
        if self.kind == OUTPUT:
            return f"{self.stack}.{self.part}" if self.part else self.stack
        return f"{self.stack or self.path}:{self.kind}"


@dataclass(frozen=True)
class Tree:
    """All there is in a denoiser.

    Attributes:
        blocks: blocks with their components, and components that stand alone, in the order of their definition.
        regions: paths of a U-Net's levels in execution order; () for a transformer.
        entry: path of the layer that takes the latents into a U-Net; "" where there is none.
    """

    blocks: tuple[Block, ...]
    regions: tuple[str, ...]
    entry: str


def site_tree(denoiser: nn.Module) -> Tree:
    """The blocks and regions of a denoiser.

    Raises:
        FestinaError: nothing was found, or a row does not fit.
    """
    regions = tuple(_regions(denoiser))
    has_entry = bool(regions) and isinstance(getattr(denoiser, ENTRY, None), nn.Module)
    return Tree(blocks_of(denoiser), regions, ENTRY if has_entry else "")


def component_sites(denoiser: nn.Module) -> tuple[Site, ...]:
    """The component sites of a denoiser. Raises like `site_tree`."""
    return _components(site_tree(denoiser))


def block_sites(denoiser: nn.Module) -> tuple[Site, ...]:
    """One residual site per block of a denoiser. Raises like `site_tree`."""
    return tuple(_block_site(block) for block in site_tree(denoiser).blocks if not block.alone)


def region_sites(denoiser: nn.Module) -> tuple[Site, ...]:
    """One feature site per region of a U-Net; () for a transformer."""
    return tuple(_run_site(parse(f"{path}:{FEATURE}"), (path,), REGION) for path in _regions(denoiser))


def entry_site(denoiser: nn.Module) -> Site:
    """The feature site of the layer that takes the latents into a U-Net. It is no region, and none of `region_sites`.

    Raises:
        FestinaError: this denoiser is no U-Net with such a layer.
    """
    tree = site_tree(denoiser)
    if not tree.entry:
        raise FestinaError(f"{type(denoiser).__name__} is no U-Net whose latents come in through one layer, {ENTRY!r}.")
    return _run_site(parse(f"{tree.entry}:{FEATURE}"), (tree.entry,), REGION)


def self_attentions(denoiser: nn.Module) -> dict[str, Site]:
    """The first self-attention of each block that has one, by path of the block. Raises like `site_tree`."""
    found: dict[str, Site] = {}
    for site in component_sites(denoiser):
        if site.role == SELF:
            found.setdefault(site.block, site)
    return found


def resolve(denoiser: nn.Module, names: tuple[str, ...]) -> tuple[Site, ...]:
    """The sites of these names.

    Raises:
        FestinaError: a name is not a site of this denoiser, two of them overlap, or it has no sites at all.
    """
    tree = site_tree(denoiser)
    known = {site.name: site for site in _components(tree)}
    blocks = {block.path: block for block in tree.blocks if not block.alone}
    found: list[Site] = []
    missing: list[str] = []
    for name in names:
        site = known.get(name) or _spanning(parse(name), blocks, tree)
        if site is None:
            missing.append(name)
        else:
            found.append(site)
    if missing:
        raise FestinaError(
            f"{len(missing)} of the plan's {len(names)} sites are not in this {type(denoiser).__name__}, the first is "
            f"{missing[0]!r}; it has {_shape(tree)}. Use a plan made for this model."
        )
    _check_overlaps(names)
    return tuple(found)


def site_modules(denoiser: nn.Module, site: Site) -> tuple[nn.Module, ...]:
    """The modules a site spans, in execution order."""
    return tuple(denoiser.get_submodule(path) for path in site.paths)


def find_denoiser(pipe: object) -> nn.Module:
    """The denoiser of a diffusers pipeline, or `pipe` itself if it is one.

    Raises:
        FestinaError: there is none in it under the names that diffusers uses.
    """
    if isinstance(pipe, nn.Module):
        return pipe
    for attribute in ("transformer", "unet", "prior", "decoder"):
        module = getattr(pipe, attribute, None)
        if isinstance(module, nn.Module):
            return module
    raise FestinaError(
        f"{type(pipe).__name__} has no `transformer`, `unet`, `prior` or `decoder`; give a diffusers pipeline or its "
        f"denoiser."
    )


def sampler_of(pipe: object) -> str:
    """Class name of a pipeline's scheduler; "" for a bare denoiser."""
    scheduler = getattr(pipe, "scheduler", None)
    return "" if scheduler is None else type(scheduler).__name__


def _components(tree: Tree) -> tuple[Site, ...]:
    found = []
    for block in tree.blocks:
        for part in block.parts:
            path = f"{block.path}.{part.name}" if part.name else block.path
            found.append(Site(path, OUTPUT, (path,), block.stack, block.path, part.name, part.role))
    return tuple(found)


def _block_site(block: Block) -> Site:
    name = f"{block.path}:{RESIDUAL}"
    return Site(name, RESIDUAL, (block.path,), block.stack, block.path, "", BLOCK, block.streams)


def _run_site(name: SiteName, paths: tuple[str, ...], role: str, streams: tuple[str, ...] = ()) -> Site:
    stack = paths[0].rpartition(".")[0]
    return Site(name.text, name.kind, paths, stack, paths[0], "", role, streams)


def _spanning(name: SiteName, blocks: dict[str, Block], tree: Tree) -> Site | None:
    """The site of a block, a region or a run of either, or of what comes before the regions."""
    if name.kind == OUTPUT:
        return None
    if name.kind == FEATURE:
        if tree.entry and name.first == name.last == tree.entry:
            return _run_site(name, (tree.entry,), REGION)
        if name.first not in tree.regions or name.last not in tree.regions:
            return None
        span = tree.regions[tree.regions.index(name.first) : tree.regions.index(name.last) + 1]
        return _run_site(name, span, REGION) if span else None
    stack, _, first = name.first.rpartition(".")
    last = name.last.rpartition(".")[2]
    span = (name.first,) if first == last else tuple(f"{stack}.{n}" for n in range(int(first), int(last) + 1))
    if any(path not in blocks for path in span):
        return None
    return _run_site(name, span, BLOCK, blocks[name.first].streams)


def _check_overlaps(names: tuple[str, ...]) -> None:
    runs = [(name, parse(name)) for name in names if ".." in name]
    for index, (name, run) in enumerate(runs):
        for other, rival in runs[index + 1 :]:
            if run.overlaps(rival):
                raise FestinaError(f"the sites {name!r} and {other!r} share blocks; one has to hold the other.")


def _regions(denoiser: nn.Module) -> Iterator[str]:
    """Levels of a U-Net that have a forward of their own, in the order in which they run."""
    for lists, alone in (("down_blocks", "down_block"), ("", "mid_block"), ("up_blocks", "up_block")):
        levels = getattr(denoiser, lists, None) if lists else None
        if isinstance(levels, nn.ModuleList):
            yield from (f"{lists}.{n}" for n, level in enumerate(levels) if not isinstance(level, nn.ModuleList))
        elif isinstance(getattr(denoiser, alone, None), nn.Module):
            yield alone


def _shape(tree: Tree) -> str:
    stacks: dict[tuple[str, tuple[str, ...]], int] = {}
    for block in tree.blocks:
        key = block.stack, tuple(part.name for part in block.parts if part.name)
        stacks[key] = stacks.get(key, 0) + 1
    told = [f"{n} {stack}" + (f" of {'/'.join(parts)}" if parts else "") for (stack, parts), n in stacks.items()]
    return ", ".join(told[:6]) + (f" and {len(told) - 6} more lists" if len(told) > 6 else "")
