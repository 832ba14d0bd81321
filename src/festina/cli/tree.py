"""The lines of `festina sites`: the site tree of a denoiser, with figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from festina.sites import Block, Site
    from festina.trace import CallTrace

Line = tuple[str, ...]


def tree_lines(denoiser: nn.Module, traced: CallTrace, depth: str) -> list[Line]:
    """Regions, lists, blocks and components, each with what is above it.

    Args:
        denoiser: a denoiser.
        traced: one call of it.
        depth: "lists" puts equal blocks into one line, "blocks" shows each, "components" theirs too.
    """
    from festina.cost import Macs
    from festina.sites import block_sites, component_sites, region_sites, site_tree

    components = {site.path: site for site in component_sites(denoiser)}
    blocks = {site.path: site for site in block_sites(denoiser)}
    regions = {site.path: site for site in region_sites(denoiser)}
    lines: list[Line] = []
    shown: set[str] = set()
    for group in _groups(site_tree(denoiser).blocks, depth):
        region = next((path for path in regions if group[0].path.startswith(f"{path}.")), "")
        if region and region not in shown:
            shown.add(region)
            lines.append(_line(f"{region}:feature", 0, [regions[region]], denoiser, traced))
        indent = 1 if region else 0
        if group[0].alone:
            lines.append(_line(_title(group), indent, [components[block.path] for block in group], denoiser, traced))
            continue
        lines.append(
            _line(f"{_title(group)}:residual", indent, [blocks[block.path] for block in group], denoiser, traced)
        )
        if depth != "blocks":
            for part in group[0].parts:
                sites = [components[f"{block.path}.{part.name}"] for block in group]
                lines.append(_line(f"{part.name} ({part.role})", indent + 1, sites, denoiser, traced))
    served = sum((traced.within.get(path, Macs(0, 0)) for path in components), Macs(0, 0))
    fixed = (traced.macs - served).total
    lines.append(("not cacheable", "", "", f"{fixed / 1e9:.4f}", f"{fixed / max(1, traced.macs.total):.1%}", ""))
    return lines


def _groups(blocks: Iterable[Block], depth: str) -> list[list[Block]]:
    """Blocks of one list with the same components, together or, at more depth, one by one."""
    groups: dict[tuple[str, ...], list[Block]] = {}
    for block in blocks:
        key = (block.stack, *(part.name for part in block.parts))
        groups.setdefault(key if depth == "lists" else (block.path,), []).append(block)
    return list(groups.values())


def _title(group: Sequence[Block]) -> str:
    if len(group) == 1:
        return group[0].path
    numbers = [int(found.group()) for block in group if (found := re.search(r"\d+$", block.path))]
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{group[0].stack}.{numbers[0]}..{numbers[-1]}"
    return f"{group[0].stack}.{','.join(map(str, numbers))}"


def _line(title: str, indent: int, sites: Sequence[Site], denoiser: nn.Module, traced: CallTrace) -> Line:
    from festina.cost import Macs, stored_numbers

    parameters = sum(weight.numel() for site in sites for weight in denoiser.get_submodule(site.path).parameters())
    macs = sum((traced.within.get(site.path, Macs(0, 0)) for site in sites), Macs(0, 0)).total
    kept = 2 * sum(stored_numbers(site, traced) for site in sites)
    return (
        "  " * indent + title,
        str(len(sites)),
        f"{parameters:,}",
        f"{macs / 1e9:.4f}",
        f"{macs / max(1, traced.macs.total):.1%}",
        f"{kept / 2**20:.3f}",
    )
