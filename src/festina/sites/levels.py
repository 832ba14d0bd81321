"""The levels of a U-Net, and runs of them as sites; what cuts a U-Net in two names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from festina.errors import FestinaError
from festina.names import FEATURE
from festina.sites.tree import region_sites, site_tree


@dataclass(frozen=True)
class Levels:
    """Paths of a U-Net's regions.

    Attributes:
        down: those on the way down, the shallowest first.
        middle: what lies between; () if there is nothing.
        up: those on the way up, the deepest first; as many as on the way down.
    """

    down: tuple[str, ...]
    middle: tuple[str, ...]
    up: tuple[str, ...]


def levels_of(denoiser: nn.Module) -> Levels:
    """The levels of a U-Net.

    Raises:
        FestinaError: the denoiser is no U-Net with as many levels on the way up as on the way down.
    """
    paths = [site.path for site in region_sites(denoiser)]
    down = tuple(path for path in paths if path.startswith("down_blocks."))
    up = tuple(path for path in paths if path.startswith("up_blocks."))
    if not down or len(down) != len(up):
        raise FestinaError(
            f"{type(denoiser).__name__} has {len(down)} levels on the way down and {len(up)} on the way up; wanted a "
            f"U-Net with as many of both. For a transformer take a method of components or of blocks."
        )
    return Levels(down, tuple(path for path in paths if path not in down + up), up)


def run_of(regions: Sequence[str]) -> str:
    """Name of the site of neighbouring regions, given by their paths in order, at least one."""
    first, last = regions[0], regions[-1]
    return f"{first}:{FEATURE}" if first == last else f"{first}..{last}:{FEATURE}"


def deep_regions(denoiser: nn.Module) -> str:
    """Name of the run of all regions but the first and the last, which DeepCache serves at the shallowest branch (arXiv
    2312.00858).

    Raises:
        FestinaError: it has fewer than three regions.
    """
    regions = site_tree(denoiser).regions
    if len(regions) < 3:
        raise FestinaError(f"{type(denoiser).__name__} has {len(regions)} regions; wanted a U-Net of at least 3.")
    return run_of(regions[1:-1])
