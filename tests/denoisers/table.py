"""The table of all denoiser classes in docs/sites.md, as Markdown.

Usage: python tests/denoisers/table.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from denoisers.all_classes import CLASSES, LEFT_OUT
from festina.sites import Tree, block_sites, site_tree


def table() -> str:
    """One row per class: its lists of blocks with their components, its regions, what a block site keeps."""
    rows = ["| class | lists of blocks: components | regions | streams of a block |", "| :-- | :-- | :-- | :-- |"]
    for name in sorted(CLASSES):
        if "-" in name:
            continue  # the same class at other settings
        torch.manual_seed(0)
        model = CLASSES[name].build()
        tree = site_tree(model)
        streams = {site.streams for site in block_sites(model)}
        rows.append(f"| {name} | {_lists(tree)} | {_regions(tree)} | {_streams(streams)} |")
    return "\n".join(rows) + "\n"


def left_out() -> str:
    """The classes that have no row in the table, with the reason."""
    return "".join(f"- `{name}`: {why}\n" for name, why in sorted(LEFT_OUT.items()))


def _lists(tree: Tree) -> str:
    found: dict[str, dict[str, None]] = {}
    for block in tree.blocks:
        stack = re.sub(r"\.\d+", ".*", block.stack)
        names = [part.name for part in block.parts if part.name]
        found.setdefault(stack, {}).update(dict.fromkeys(names))
    return "<br>".join(f"`{stack}`" + (f": {', '.join(parts)}" if parts else "") for stack, parts in found.items())


def _regions(tree: Tree) -> str:
    return f"{len(tree.regions)}" if tree.regions else ""


def _streams(streams: set[tuple[str, ...]]) -> str:
    told = sorted({", ".join(name or "(as it is)" for name in names) for names in streams if names})
    return "<br>".join(told) if told else ("one" if streams else "")


if __name__ == "__main__":
    print(table())
    print(left_out())
