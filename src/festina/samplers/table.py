"""A sampler's steps as plain data, and their compilation to weights: one slot per network call.

A step that makes no network call is part of the slot before it, because a pipeline calls the network once per timestep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from festina.errors import FestinaError
from festina.samplers.coefficients import kind_of
from festina.samplers.frames import Frame

__all__ = ["LinearWeights", "SolverStep", "SolverTable"]

CALLS = ("network", "extrapolate", "delete")
REFERENCES = ("first", "previous")
FORMS = ("data", "noise", "output")


@dataclass(frozen=True)
class LinearWeights:
    """A step given by its weights: OLSS (2305.14677), BNS (2403.01329), or any formula of one's own.

    Attributes:
        outputs: of network outputs, the current one first, then one, two, ... network calls back.
        form: what of the outputs they weigh: predictions of the picture ("data"), of the noise ("noise"), or the
            raw outputs ("output").
        sample: of the current sample.
        previous: of the sample that the network saw one call back.
        anchor: of the sample that the run started from.
    """

    outputs: tuple[float, ...]
    form: str = "output"
    sample: float = 0.0
    previous: float = 0.0
    anchor: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise FestinaError(f"weights of the form {self.form!r} are not known. Use one of {', '.join(FORMS)}.")
        object.__setattr__(self, "outputs", tuple(float(weight) for weight in self.outputs))


@dataclass(frozen=True)
class SolverStep:
    """One step, from its noise level to that of the next step that is not deleted.

    Attributes:
        noise: the level as the scheduler counts it: sigma / alpha, for flow models sigma.
        solver: a name of `festina.samplers.KINDS`; not looked at where `linear` is given.
        order: of the solver, lowered where fewer outputs are at hand and on the way to noise 0.
        corrector: whether this step's output corrects the sample it was made from, before the step (UniC, 2302.04867).
            The corrector is that of the step before. Left out in a run's first step, and in noise forms right after
            (nearly) pure noise.
        network_time: what the network is told, None for the time that belongs to the level.
        contrast: DualFast's c (2506.13058): the noise in the first-order term is (1 + c) noise - c reference.
        contrast_reference: which earlier output is the reference, "first" or "previous".
        call: "network"; "extrapolate", no call, the sample moves on as it did in the step before; or "delete": no call
            and no step, the step before goes on to the next level.
        momentum: w of an extrapolation x + w g (x - previous x) (LTC-Accel, 2503.09675), where g is, as released, the
            ratio of the two steps before in noise: |n_i - n_{i-1}| / |n_{i-1} - n_{i-2}|.
        linear: the step's weights, in place of a solver.
    """

    noise: float
    solver: str = "data"
    order: int = 2
    corrector: bool = False
    network_time: float | None = None
    contrast: float = 0.0
    contrast_reference: str = "previous"
    call: str = "network"
    momentum: float = 1.0
    linear: LinearWeights | None = None

    def __post_init__(self) -> None:
        highest = kind_of(self.solver).highest
        if not 1 <= self.order <= highest:
            raise FestinaError(f"{self.solver} has no order {self.order}. Use an order from 1 to {highest}.")
        for value, known in ((self.call, CALLS), (self.contrast_reference, REFERENCES)):
            if value not in known:
                raise FestinaError(f"a step knows no {value!r}. Use one of {', '.join(known)}.")


@dataclass(frozen=True)
class SolverTable:
    """All steps of a run.

    Attributes:
        steps: from the noisiest on; levels never rise.
        final_noise: level that the last step ends at, 0 = clean.
        before_shift: whether the levels of a flow model are meant before the scheduler's shift, so that a shift that
            depends on the size of the picture can be applied at run time. Otherwise they are used as they are.
    """

    steps: tuple[SolverStep, ...]
    final_noise: float = 0.0
    before_shift: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not self.steps or self.steps[0].call != "network":
            raise FestinaError('a table begins with a step whose call is "network".')
        noises = [step.noise for step in self.steps] + [self.final_noise]
        for place, (noise, following) in enumerate(pairwise(noises)):
            if following > noise or noise <= 0 or following < 0:
                raise FestinaError(
                    f"step {place} goes from noise {noise} to {following}. Noise falls from step to step and reaches 0 "
                    "only at the end."
                )
        kept = [step for step in self.steps if step.call != "delete"]
        if any(step.call == "extrapolate" for step in kept[:2]):
            raise FestinaError("an extrapolation needs two steps before it; the first two cannot be extrapolated.")

    @property
    def calls(self) -> int:
        """Network calls of a run."""
        return sum(step.call == "network" for step in self.steps)

    def at_noises(self, noises: Sequence[float]) -> SolverTable:
        """The same steps at other levels, one per step; the final level stays."""
        moved = [replace(step, noise=float(noise)) for step, noise in zip(self.steps, noises, strict=True)]
        return SolverTable(tuple(moved), self.final_noise)

    def checked(self, frame: Frame) -> SolverTable:
        """The table, if a model of this frame can run it.

        Raises:
            FestinaError: a level the model does not have, or a shift that its family does not know.
        """
        for step in self.steps:
            frame.level(step.noise)
        if self.before_shift and frame.family != "flow":
            raise FestinaError("before_shift is for flow models, this model has no shift. Set it to False.")
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain lists, texts and numbers; what a step leaves at its default is left out."""
        steps = []
        for step in self.steps:
            record = {
                field.name: getattr(step, field.name)
                for field in fields(step)
                if field.name == "noise" or getattr(step, field.name) != field.default
            }
            if step.linear is not None:
                record["linear"] = {**asdict(step.linear), "outputs": list(step.linear.outputs)}
            steps.append(record)
        return {"steps": steps, "final_noise": self.final_noise, "before_shift": self.before_shift}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SolverTable:
        """The table written by `to_json`.

        Raises:
            FestinaError: unknown or missing keys, or steps that make no table.
        """
        _check_keys(record, cls)
        steps = []
        for entry in record["steps"]:
            _check_keys(entry, SolverStep)
            values = dict(entry)
            if values.get("linear") is not None:
                _check_keys(values["linear"], LinearWeights)
                values["linear"] = LinearWeights(**values["linear"])
            steps.append(SolverStep(**values))
        return cls(tuple(steps), record.get("final_noise", 0.0), record.get("before_shift", False))


def _check_keys(record: Mapping[str, Any], kind: type) -> None:
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(record) - known)
    needed = {"SolverTable": {"steps"}, "SolverStep": {"noise"}, "LinearWeights": {"outputs"}}[kind.__name__]
    missing = sorted(needed - set(record))
    if unknown or missing:
        raise FestinaError(
            f"a {kind.__name__} with {f'unknown keys {unknown}' if unknown else f'no {missing}'}; it has the keys "
            f"{', '.join(sorted(known))}."
        )
