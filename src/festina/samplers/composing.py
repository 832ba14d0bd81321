"""What the steps of a plan mean for its solver: which outputs of before a step may still be combined with its own.

A solver of a higher order takes differences of outputs for derivatives in time. That is wrong where outputs differ for
another reason: another model gave them, one is guided and the other is not, the strength of guidance swings, or one is
an older output again. The rules are cautious: where two models hardly differ, or guidance ends but once, nothing would
be lost by keeping what was there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from festina.errors import FestinaError
from festina.records import ALL, COMPUTE, DIFFERENCE, GATED, JOINT, PARTIAL, Step
from festina.samplers.table import SolverStep, SolverTable

__all__ = ["composed", "resampled"]

_SOON = 3
"""Calls between two changes of guidance below which outputs before the second are not combined with its own."""

_SWING = 0.3
"""How far factors on guidance go up and down by turns where they lower the order.

On mixtures of Gaussians (20 calls, `tests/test_composing.py`) the third order draws worse than the second from swings
of about 0.35 on where the pipeline's strength is 7.5, and of about 0.5 where it is 3. Factors that rise or fall
smoothly want the third order, however far they go. So do single jumps and few swings: over the steps that use it, an
output weighs as much as one step as long as the order stays the same. To lower the order there alone breaks that, and
draws worse, up to five times, than to keep it. So it is lowered in a whole run, or not at all.
"""


@dataclass(frozen=True)
class _Output:
    """What a network call gave: by which model, for which branches of guidance ("" for one answer), with which factor
    on their difference, whether it or nearly all of it is an older one."""

    model: str
    guided: str
    factor: float
    replayed: bool
    served: bool

    def continues(self, other: _Output) -> bool:
        """Whether both are of one function, so that their difference is one in time."""
        return (self.model, self.guided) == (other.model, other.guided)


def composed(table: SolverTable, steps: Sequence[Step]) -> SolverTable:
    """A table as it runs with the steps of a plan, in its normal form.

    Steps given by their weights stay as they are: they are fitted to a run. For the others:

    - no order is higher than the outputs allow that the same model gave in a row;
    - where guidance begins or ends the order is at most 2, and 1 if it did so less than three calls before;
    - where factors on guidance go up and down by turns, by more than 0.3 each, in more than half of all steps, the
      order of all is at most 2, and no sample is corrected that was made by the order 2;
    - where two of the last three outputs were served whole, as far as the plan names sites, the order is at most 2;
    - an output that is replayed, or of another model or guided otherwise than the one before, corrects no sample;
    - a contrast (DualFast) wants a reference by the same model, guided alike;
    - deleted steps are left out, and what a step does not look at is as usual.

    Args:
        table: of as many network calls as there are steps.
        steps: of a plan, in canonical form.
    """
    outputs = _outputs(steps)
    swings = 2 * len(_swinging(outputs)) > len(outputs)
    made: list[SolverStep] = []
    call, before = -1, 0
    for step in table.steps:
        if step.call == "network":
            call += 1
            fitted = _fitted(step, outputs[: call + 1])
            made.append(_steadied(fitted, before) if swings else fitted)
            before = made[-1].order
        elif step.call == "extrapolate":
            made.append(SolverStep(step.noise, call=step.call, momentum=step.momentum, ratio=step.ratio))
    return replace(table, steps=tuple(made))


def _outputs(steps: Sequence[Step]) -> list[_Output]:
    outputs: list[_Output] = []
    for step in steps:
        model = outputs[-1].model if step.replays else step.model
        kind = {ALL: ALL, DIFFERENCE: ALL, JOINT: JOINT}.get(step.branches, "")
        guided = kind if step.guidance != 0 else ""
        served = not step.model and not set(step.actions) & {COMPUTE, GATED, PARTIAL}
        outputs.append(_Output(model, guided, float(step.guidance), step.replays, served or step.replays))
    return outputs


def _fitted(step: SolverStep, outputs: Sequence[_Output]) -> SolverStep:
    """A step of the table that calls the network, with the outputs up to its own."""
    own, before = outputs[-1], outputs[-2] if len(outputs) > 1 else None
    corrector = step.corrector and before is not None and own.continues(before) and not own.replayed
    if step.linear is not None:
        return SolverStep(step.noise, network_time=step.network_time, linear=step.linear, corrector=corrector)
    reference = before if step.contrast_reference == "previous" else outputs[0]
    alike = before is not None and reference is not None and own.continues(reference)
    order = min(step.order, _of_one_model(outputs), _by_guidance(outputs))
    if sum(output.served for output in outputs[-3:]) >= 2:
        order = min(order, 2)
    usual = SolverStep(step.noise)
    return replace(
        step,
        order=order,
        corrector=corrector,
        contrast=step.contrast if alike else usual.contrast,
        contrast_reference=step.contrast_reference if alike and step.contrast else usual.contrast_reference,
        momentum=usual.momentum,
    )


def _of_one_model(outputs: Sequence[_Output]) -> int:
    """How many of the last outputs the same model gave."""
    count = 0
    for output in reversed(outputs):
        if output.model != outputs[-1].model:
            break
        count += 1
    return count


def _by_guidance(outputs: Sequence[_Output]) -> int:
    """The highest order that changes of guidance leave to the last of some outputs."""
    changes = [place for place in range(1, len(outputs)) if outputs[place].guided != outputs[place - 1].guided]
    if not changes:
        return len(outputs)
    since = len(outputs) - 1 - changes[-1]
    if len(changes) > 1 and changes[-1] - changes[-2] < _SOON:
        return since + 1
    return since + 2


def _swinging(outputs: Sequence[_Output]) -> set[int]:
    """Places of the outputs, four or more in a row, whose factors on guidance go up and down by turns."""
    places: set[int] = set()
    for first in range(len(outputs) - 3):
        four = outputs[first : first + 4]
        changes = [after.factor - before.factor for before, after in pairwise(four)]
        turns = all(before * after < 0 for before, after in pairwise(changes))
        if turns and min(map(abs, changes)) > _SWING and all(output.continues(four[0]) for output in four):
            places |= set(range(first, first + 4))
    return places


def _steadied(step: SolverStep, before: int) -> SolverStep:
    """A step where guidance swings, after one of the order `before`. A corrector of first-order steps does no harm."""
    if step.linear is not None:
        return step
    return replace(step, order=min(step.order, 2), corrector=step.corrector and before == 1)


def resampled(table: SolverTable, steps: int) -> SolverTable:
    """A table for another number of network calls: levels between its own, even in their logarithm from one to the
    next, as Align Your Steps does (2404.14507); what the solver does in a step is that of the step its level lies in.

    Raises:
        FestinaError: steps in it are given by weights, by times of their own or make no call, which holds for their own
            places only.
    """
    kept = [step for step in table.steps if step.call != "delete"]
    if steps == len(kept) == table.calls:
        return table
    if any(step.linear is not None or step.network_time is not None or step.call != "network" for step in kept):
        raise FestinaError(
            f"the solver's table of {table.calls} network calls has steps that hold for their own places only: given "
            f"by weights, by network times of their own, or extrapolated. Make a table for {steps} calls anew."
        )
    levels = [step.noise for step in kept] + [table.final_noise]
    places = np.arange(steps) * len(kept) / steps
    made = []
    for place in places.tolist():
        first, share = int(place), place - int(place)
        begin, end = levels[first], levels[first + 1]
        noise = begin * (1 - share) + end * share if end == 0 else math.exp(_between(begin, end, share))
        # Levels may repeat, and rounding must not put one above the level before it.
        made.append(replace(kept[first], noise=begin if share == 0 else min(begin, max(end, noise))))
    return replace(table, steps=tuple(made))


def _between(begin: float, end: float, share: float) -> float:
    return math.log(begin) * (1 - share) + math.log(end) * share
