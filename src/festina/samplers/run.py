"""The arithmetic of one run: stored predictions, and samples made from them with a compiled table's weights."""

from __future__ import annotations

import torch

from festina.errors import FestinaError
from festina.samplers.compiling import CompiledTable, Weights
from festina.samplers.frames import Frame

__all__ = ["SamplerRun"]


class SamplerRun:
    """The steps of a run, one after the other.

    Predictions are kept in float32 (float64 for samples in float64), because differences of coarser ones are noise, and
    only as long as a later slot reads them.

    Args:
        compiled: the table.
        frame: of the model.
    """

    def __init__(self, compiled: CompiledTable, frame: Frame) -> None:
        self.compiled = compiled
        self.frame = frame
        self._made = 0
        self._last_reads = {form: compiled.last_reads(form) for form in ("data", "noise")}
        self._stored: dict[str, dict[int, torch.Tensor]] = {"data": {}, "noise": {}}
        self._previous: torch.Tensor | None = None
        self._anchor: torch.Tensor | None = None

    @property
    def held(self) -> int:
        """Stored predictions."""
        return sum(len(stored) for stored in self._stored.values())

    def step(self, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The next sample, in the sample's dtype.

        Args:
            output: raw output of the network for the sample, of its shape.
            sample: current sample.

        Raises:
            FestinaError: a step after the last one, or an output of another shape.
        """
        slots, place = self.compiled.slots, self._made
        if place >= len(slots):
            raise FestinaError(f"the run's {len(slots)} steps are all made. Call set_timesteps first.")
        if output.shape != sample.shape:
            raise FestinaError(
                f"the output has the shape {tuple(output.shape)}, the sample {tuple(sample.shape)}. Leave a predicted "
                "variance out."
            )
        exact = torch.float64 if sample.dtype == torch.float64 else torch.float32
        current = sample.to(exact)
        if self._anchor is None:
            self._anchor = current
        data, noise = self.frame.predictions(output.to(exact), current, slots[place].level)
        self._stored["data"][place], self._stored["noise"][place] = data, noise
        correction = slots[place].correction
        if correction is not None:
            current = self._combined(correction, current)
        result = self._combined(slots[place].update, current)
        self._previous = current
        self._let_go()
        self._made += 1
        if self._made == len(slots):
            self._previous = self._anchor = None
        return result.to(sample.dtype)

    def _combined(self, weights: Weights, current: torch.Tensor) -> torch.Tensor:
        terms = [(weights.sample, current), (weights.previous, self._previous), (weights.anchor, self._anchor)]
        for form, stored in self._stored.items():
            terms += [(weight, stored.get(self._made - back)) for back, weight in enumerate(getattr(weights, form))]
        total = torch.zeros_like(current)
        for weight, tensor in terms:
            if weight != 0:
                assert tensor is not None
                total = total + weight * tensor
        return total

    def _let_go(self) -> None:
        """Drop the predictions that no later slot reads."""
        for form, stored in self._stored.items():
            for place in [place for place in stored if self._last_reads[form][place] <= self._made]:
                del stored[place]
