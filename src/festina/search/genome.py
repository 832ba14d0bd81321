"""The genome: a plan of computing and reusing as a vector of bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from festina.errors import FestinaError
from festina.formats import want_mask
from festina.plan import COMPUTE, Plan
from festina.sites import Site, component_sites


@dataclass(frozen=True)
class Genome:
    """How plans of one denoiser and one number of steps are written as bits.

    True computes and False reuses. Genes run step by step and, within a step, in the order of the sites (step, then
    block, then component, as in ECAD, arXiv 2506.15682), so that crossover exchanges runs of steps. Step 0 has no genes
    because it always computes, and no site lies within another: two genomes that differ are two plans that differ.

    Attributes:
        denoiser: class name of the denoiser.
        sites: the sites whose actions are searched, in execution order.
        steps: sampling steps, at least 2.

    Raises:
        FestinaError: on construction, if there is no step or site to search or a site lies within another.
    """

    denoiser: str
    sites: tuple[Site, ...]
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 2 or not self.sites:
            raise FestinaError(
                f"{self.steps} steps and {len(self.sites)} sites leave nothing to search, as the first step always "
                f"computes; wanted at least 2 steps and 1 site."
            )
        paths = {site.path for site in self.sites}
        for path in paths:
            parts = path.split(".")
            if outer := paths & {".".join(parts[:length]) for length in range(1, len(parts))}:
                raise FestinaError(
                    f"site {path!r} lies within {min(outer)!r}, which decides for it; search one of the two only."
                )

    @staticmethod
    def of(denoiser: nn.Module, steps: int) -> Genome:
        """The genome of all component sites of a denoiser.

        Raises:
            FestinaError: the denoiser's class has no site row, or there are fewer than 2 steps.
        """
        return Genome(type(denoiser).__name__, component_sites(denoiser), steps)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(site.name for site in self.sites)

    @property
    def length(self) -> int:
        """Number of genes: (steps - 1) x sites."""
        return (self.steps - 1) * len(self.sites)

    def bits(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The genes of a table (steps, sites) of computing, shape (length,); its first step is left out."""
        return mask[1:].reshape(-1)

    def mask(self, bits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The table (steps, sites) of genes of shape (length,)."""
        first = np.ones((1, len(self.sites)), dtype=bool)
        return np.concatenate([first, np.asarray(bits, dtype=bool).reshape(self.steps - 1, len(self.sites))])

    def decode(self, bits: NDArray[np.bool_]) -> Plan:
        """The plan of genes of shape (length,), in canonical form."""
        return Plan.from_mask(self.denoiser, self.names, self.mask(bits), method="search")

    def encode(self, plan: Plan) -> NDArray[np.bool_]:
        """The genes of a plan, shape (length,).

        Raises:
            FestinaError: the plan is for another denoiser, other sites or another number of steps, or does something
                else than compute and reuse.
        """
        if plan.denoiser != self.denoiser or plan.sites != self.names:
            raise FestinaError(
                f"a plan for {len(plan.sites)} sites of {plan.denoiser} does not fit this search, which has "
                f"{len(self.sites)} sites of {self.denoiser}."
            )
        if len(plan.steps) != self.steps:
            raise FestinaError(
                f"a plan of {len(plan.steps)} steps does not fit a search at {self.steps} steps; use "
                f"plan.resample({self.steps})."
            )
        canonical = plan.canonical()
        want_mask(canonical, "a search")
        table = canonical.table()
        return self.bits(table == COMPUTE)

    def difference(self, bits: NDArray[np.bool_]) -> int:
        """In how many bits of its canonical form a candidate differs from computing everything."""
        return int(np.size(bits) - np.count_nonzero(bits))

    def uncached(self) -> Plan:
        """The plan that computes everything."""
        return Plan.computing_all(self.denoiser, self.names, self.steps)
