"""Drawing and measuring one variant after the other, beside uncached pictures that are drawn once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from festina.benchmark.figures import Figures
from festina.benchmark.folder import Folder
from festina.benchmark.measuring import Drawn, Judges, contact_sheet, draw, look_at
from festina.benchmark.variants import Failed, Variant
from festina.errors import FestinaError
from festina.plan import Plan
from festina.search.generation import generate
from festina.search.workload import Workload
from festina.sites import component_sites, find_denoiser
from festina.strict import brief


class Drawing:
    """Draws the pictures of variants and keeps their figures in a folder.

    Args:
        pipe: the pipeline, untouched.
        workload: what is drawn; its `steps` is replaced by each variant's.
        folder: receives figures, contact sheets and the uncached pictures.
        judges: what looks at the pictures.
    """

    def __init__(self, pipe: Any, workload: Workload, folder: Folder, judges: Judges) -> None:
        self.pipe, self.workload, self.folder, self.judges = pipe, workload, folder, judges
        self._reference: Tensor | None = None

    def figures(self, variant: Variant) -> Figures | Failed:
        """The figures of a variant: those that are kept, or else those of pictures drawn now; or why there are none.

        Raises:
            FestinaError: the untouched sampler cannot be drawn, or pictures cannot be judged or kept.
        """
        if (known := self.folder.figures(variant)) is not None:
            return known
        reference = self._uncached()
        drawn = self._counted(variant, reference) if variant.untouched else self._drawn(variant)
        if isinstance(drawn, Failed):
            return drawn
        made = look_at(drawn, variant, self.workload, reference, self.judges)
        self.folder.keep(variant, made, contact_sheet(drawn.pictures))
        return made

    def _counted(self, variant: Variant, reference: Tensor) -> Drawn:
        """The pictures of the untouched sampler, drawn by a plan that computes everything: it counts MACs and changes
        no bit. Where no plan can be put on the pipeline, nothing is counted."""
        denoiser = find_denoiser(self.pipe)
        names = [site.name for site in component_sites(denoiser)]
        plan = Plan.computing_all(type(denoiser).__name__, names, variant.steps)
        try:
            drawn = draw(self.pipe, replace(variant, plan=plan), self.workload)
        except FestinaError:
            return draw(self.pipe, variant, self.workload)
        if variant.kind == "uncached":
            same = torch.equal(drawn.pictures, reference)
            notes = () if same else ("a plan that computes everything gives other pictures here",)
            return replace(drawn, pictures=reference, notes=notes)
        return drawn

    def _drawn(self, variant: Variant) -> Drawn | Failed:
        try:
            return draw(self.pipe, variant, self.workload)
        except FestinaError as error:
            reason = str(error)
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = f"out of memory: {brief(error)}"
        return Failed(variant.name, variant.group, variant.settings, reason)

    def _uncached(self) -> Tensor:
        if self._reference is None:
            self._reference = self.folder.uncached()
        if self._reference is None:
            self._reference = generate(self.pipe, self.workload.pictures(), self.workload)
            self.folder.keep_uncached(self._reference)
        return self._reference
