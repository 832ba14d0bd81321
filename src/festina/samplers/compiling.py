"""From a table of steps to slots: per network call, weights over the sample and the outputs. float64, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from festina.errors import FestinaError
from festina.samplers.coefficients import (
    Kind,
    contrast_weight,
    correction_weights,
    first_order,
    higher_order_weights,
    kind_of,
)
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.table import LinearWeights, SolverStep, SolverTable

__all__ = ["CompiledTable", "Slot", "UnfoldedStep", "Weights", "compile_table", "unfold_table"]

_LEAST_PICTURE = 1e-3
"""Share of the picture below which a noise-form corrector is left out: its weights grow as one over the share."""


@dataclass(frozen=True)
class Weights:
    """A sample as a linear combination.

    Attributes:
        sample: of the current sample (corrected, if the slot corrects it).
        previous: of the sample, corrected likewise, one network call back.
        anchor: of the sample that the run started from.
        data: of predictions of the picture, the current one first, then one, two, ... calls back.
        noise: of predictions of the noise, likewise.
    """

    sample: float = 0.0
    previous: float = 0.0
    anchor: float = 0.0
    data: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()

    def combined(self, factor: float, other: Weights, other_factor: float) -> Weights:
        """factor * self + other_factor * other."""

        def mixed(mine: tuple[float, ...], others: tuple[float, ...]) -> tuple[float, ...]:
            total = np.zeros(max(len(mine), len(others)))
            total[: len(mine)] += factor * np.array(mine)
            total[: len(others)] += other_factor * np.array(others)
            return tuple(total.tolist())

        return Weights(
            factor * self.sample + other_factor * other.sample,
            factor * self.previous + other_factor * other.previous,
            factor * self.anchor + other_factor * other.anchor,
            mixed(self.data, other.data),
            mixed(self.noise, other.noise),
        )


@dataclass(frozen=True)
class Slot:
    """One network call and what is made of its output.

    Attributes:
        level: noise level of the sample.
        network_time: what the network is told.
        correction: the sample again, from the previous one and the outputs, before the update; None = no correction.
        update: the next slot's sample.
    """

    level: NoiseLevel
    network_time: float
    correction: Weights | None
    update: Weights


@dataclass(frozen=True)
class CompiledTable:
    """Slots of a run.

    Attributes:
        slots: one per network call, the first of them at the call that the run begins with.
        noises: levels of the slots as the scheduler counts them, and the final one.
    """

    slots: tuple[Slot, ...]
    noises: tuple[float, ...]

    def last_reads(self, form: str) -> tuple[int, ...]:
        """Per slot, the last slot that reads its prediction ("data" or "noise") with a weight; -1 if none does."""
        last = [-1] * len(self.slots)
        for index, slot in enumerate(self.slots):
            for weights in (slot.correction, slot.update):
                for back, weight in enumerate(getattr(weights, form) if weights else ()):
                    if weight != 0:
                        last[index - back] = index
        return tuple(last)


@dataclass(frozen=True)
class UnfoldedStep:
    """A step on its own, without the extrapolations after it.

    Attributes:
        place: in the table's steps.
        slot: what the step makes with a network call. The weights look back on outputs and samples of the network's
            calls that the table makes, and on that of the step itself.
        ratio: of the lengths of this step and the one before, if the table extrapolates it; None otherwise.
    """

    place: int
    slot: Slot
    ratio: float | None


def compile_table(table: SolverTable, frame: Frame, first_call: int = 0) -> CompiledTable:
    """The weights of every network call of a table.

    Args:
        table: steps; levels as the network sees them, after any shift.
        frame: of the model.
        first_call: network call to begin at, e.g. where a picture is changed; outputs before it are not there, and
            orders are lowered for it.

    Raises:
        FestinaError: a level the model does not have; weights that want outputs which are not there; a corrector
            where the step before has none.
    """
    kept = [step for step in table.checked(frame).steps if step.call != "delete"]
    noises = [step.noise for step in kept] + [table.final_noise]
    calls = [place for place, step in enumerate(kept) if step.call == "network"]
    if not 0 <= first_call < len(calls):
        raise FestinaError(f"the table makes {table.calls} network calls, none of them is number {first_call}.")
    calls = calls[first_call:]
    linears = [kept[place].linear for place in calls]
    if first_call > 0 and any(linear is not None and linear.anchor != 0 for linear in linears):
        raise FestinaError(
            f"the table weighs the sample that a run starts from, so it cannot begin at network call {first_call}. "
            "Begin at its first step, or use a table without an anchor."
        )
    compiler = _Compiler(frame)
    for place, following in zip(calls, [*calls[1:], len(kept)], strict=True):
        tails = [kept[tail].momentum * _ratio(frame, noises, kept[tail], tail) for tail in range(place + 1, following)]
        compiler.add(kept[place], frame.level(noises[place + 1]), tails)
    return CompiledTable(tuple(compiler.slots), (*(noises[place] for place in calls), table.final_noise))


def unfold_table(table: SolverTable, frame: Frame) -> tuple[UnfoldedStep, ...]:
    """What every step makes with a network call, those of them too that the table extrapolates.

    An extrapolated step looks back on the outputs that the run has by then. Its own is left out of all later steps'
    weights, as a run by the table does not have it.

    Args:
        table: steps; levels as the network sees them, after any shift.
        frame: of the model.

    Returns:
        one per step that is not deleted.

    Raises:
        FestinaError: as `compile_table`.
    """
    places = [place for place, step in enumerate(table.checked(frame).steps) if step.call != "delete"]
    kept = [table.steps[place] for place in places]
    noises = [step.noise for step in kept] + [table.final_noise]
    compiler, made = _Compiler(frame), []
    for index, (place, step) in enumerate(zip(places, kept, strict=True)):
        target = frame.level(noises[index + 1])
        if step.call == "network":
            compiler.add(step, target, ())
            made.append(UnfoldedStep(place, compiler.slots[-1], None))
        else:
            made.append(UnfoldedStep(place, compiler.tried(step, target), _ratio(frame, noises, step, index)))
    return tuple(made)


def _ratio(frame: Frame, noises: Sequence[float], step: SolverStep, place: int) -> float:
    """How much further an extrapolated step goes than the one before it, as the step wants it counted."""
    ahead = place if step.ratio == "released" else place + 1
    levels = noises[ahead - 2 : ahead + 1]
    if step.ratio == "paper":
        levels = [1 / frame.level(noise).sigma_hat for noise in levels]
    last, earlier = levels[2] - levels[1], levels[1] - levels[0]
    if earlier == 0:
        raise FestinaError(
            f"an extrapolation at noise {noises[place]} follows a step of length 0. Leave that step out."
        )
    return last / earlier


class _Compiler:
    """Slots made so far, and what the next one may look back on."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.slots: list[Slot] = []
        self._last: tuple[SolverStep, list[int]] | None = None

    def add(self, step: SolverStep, target: NoiseLevel, tails: Sequence[float]) -> None:
        """A slot for a step to a target, followed by extrapolations with these factors."""
        level = self.frame.level(step.noise)
        correction = self._correction(level) if step.corrector and self._last is not None else None
        time = self.frame.network_time(step.noise) if step.network_time is None else step.network_time
        self.slots.append(Slot(level, time, correction, Weights()))
        if step.linear is not None:
            update, backs = self._linear(step.linear), [0]
        else:
            backs = self._backs(step, target)
            update = self._solver(step, target, backs)
        before, after = Weights(sample=1.0), update
        for factor in tails:
            before, after = after, after.combined(1 + factor, before, -factor)
        self.slots[-1] = replace(self.slots[-1], update=after)
        self._last = (step, backs)

    def tried(self, step: SolverStep, target: NoiseLevel) -> Slot:
        """The slot of a step to a target; later ones do not look back on it."""
        before = self._last
        self.add(step, target, ())
        self._last = before
        return self.slots.pop()

    def _backs(self, step: SolverStep, target: NoiseLevel) -> list[int]:
        """How many calls back the outputs of a step lie: the newest at distinct levels, as many as its order."""
        kind = kind_of(step.solver)
        order = 1 if target.sigma == 0 and not kind.reaches_clean else step.order
        backs: list[int] = []
        for back in range(len(self.slots)):
            level = self.slots[-1 - back].level
            if len(backs) < order and all(level != self.slots[-1 - other].level for other in backs):
                backs.append(back)
        return backs

    def _solver(self, step: SolverStep, target: NoiseLevel, backs: Sequence[int]) -> Weights:
        kind = kind_of(step.solver)
        nodes = [self.slots[-1 - back].level for back in backs]
        update = _first_order(kind, nodes[0], target, self.slots[-1].correction is not None)
        higher = higher_order_weights(self.frame, kind, nodes, target)
        update = update.combined(1, _spread(kind.form, backs, higher.tolist()), 1)
        reference = len(self.slots) - 1 if step.contrast_reference == "first" else 1
        if step.contrast != 0 and len(self.slots) > 1:
            amount = step.contrast * contrast_weight(nodes[0], target)
            update = update.combined(1, _spread("noise", [0, reference], [amount, -amount]), 1)
        return update

    def _correction(self, level: NoiseLevel) -> Weights | None:
        """This slot's sample from the previous one, with the output at this level among the nodes."""
        assert self._last is not None
        step, backs = self._last
        if step.linear is not None:
            raise FestinaError("a step given by its weights has no corrector. Leave out the corrector after it.")
        kind = kind_of(step.solver)
        nodes = [self.slots[-1 - back].level for back in backs]
        if kind.form == "noise" and nodes[0].alpha < _LEAST_PICTURE:
            return None
        start = _first_order(kind, nodes[0], level, self.slots[-1].correction is not None)
        # Seen from this slot, what the step before weighed lies one call further back.
        moved = Weights(previous=start.sample, data=(0.0, *start.data), noise=(0.0, *start.noise))
        weights = correction_weights(self.frame, kind, nodes, level).tolist()
        return moved.combined(1, _spread(kind.form, [0, *(back + 1 for back in backs)], weights), 1)

    def _linear(self, linear: LinearWeights) -> Weights:
        wanted = max(len(linear.outputs), len(linear.noise))
        if wanted > len(self.slots) or (linear.previous != 0 and len(self.slots) < 2):
            raise FestinaError(
                f"the weights of call {len(self.slots) - 1} want {wanted} outputs"
                f"{' and the previous sample' if linear.previous else ''}, but only {len(self.slots)} calls were made "
                "by then. Begin at the table's first step, or give weights for what is there."
            )
        shares = {"data": (1.0, 0.0), "noise": (0.0, 1.0)}
        data, noise = [], []
        for back, weight in enumerate(linear.outputs):
            own = self.frame.output_weights(self.slots[-1 - back].level)
            of_data, of_noise = shares.get(linear.form, own)
            data.append(weight * of_data)
            noise.append(weight * of_noise)
        outputs = Weights(linear.sample, linear.previous, linear.anchor, tuple(data), tuple(noise))
        return outputs.combined(1, Weights(noise=linear.noise), 1)


def _first_order(kind: Kind, source: NoiseLevel, target: NoiseLevel, corrected: bool) -> Weights:
    """The first-order step. Its two forms differ only where the sample was corrected after its output was made; the
    data form is sound at pure noise too."""
    form = kind.form if corrected else "data"
    sample, output = first_order(source, target, form)
    return Weights(sample, data=(output,)) if form == "data" else Weights(sample, noise=(output,))


def _spread(form: str, backs: Sequence[int], weights: Sequence[float]) -> Weights:
    """Weights of outputs that lie so many calls back."""
    places = [0.0] * (max(backs) + 1)
    for back, weight in zip(backs, weights, strict=True):
        places[back] += weight
    return Weights(data=tuple(places)) if form == "data" else Weights(noise=tuple(places))
