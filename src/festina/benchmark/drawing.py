"""Drawing and measuring one variant after the other, beside uncached pictures that are drawn once."""

from __future__ import annotations

from collections.abc import Callable
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
from festina.search.pricing import pricing
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
        self._macs: Callable[[Plan], int] | None = None

    def figures(self, variant: Variant) -> Figures | Failed:
        """The figures of a variant: those that are kept, or else those of pictures drawn now; or why there are none.

        Raises:
            FestinaError: the untouched sampler cannot be drawn, or pictures cannot be judged or kept.
        """
        if (known := self.folder.figures(variant)) is not None:
            return known
        reference = self._uncached()
        drawn = Drawn(reference, None, None) if variant.kind == "uncached" else self._drawn(variant)
        if isinstance(drawn, Failed):
            return drawn
        made = look_at(drawn, variant, self.workload, reference, self.judges, self._untouched_macs)
        self.folder.keep(variant, made, contact_sheet(drawn.pictures))
        return made

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

    def _untouched_macs(self, steps: int) -> int:
        """MACs per picture of the untouched sampler with so many steps."""
        if self._macs is None:
            self._macs = pricing(self.pipe, self.workload)
        denoiser = find_denoiser(self.pipe)
        names = [site.name for site in component_sites(denoiser)]
        return self._macs(Plan.computing_all(type(denoiser).__name__, names, steps))
