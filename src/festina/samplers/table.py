"""A sampler's steps as plain data, and their compilation to weights: one slot per network call.

A step that makes no network call is part of the slot before it, because a pipeline calls the network once per timestep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from festina.errors import FestinaError
from festina.samplers.coefficients import kind_of
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.interpolation import check_ratio
from festina.samplers.table_record import checked_record

__all__ = ["LinearWeights", "SolverStep", "SolverTable", "check_solver", "level_within"]

CALLS = ("network", "extrapolate", "delete")
REFERENCES = ("first", "previous")
RATIOS = ("released", "noise", "paper")
FORMS = ("data", "noise", "output")
STARTS = ("noise", "given", "gaussian")

_NEAR = 2e-3
"""Share by which a level may miss the model's largest: published levels are rounded (Align Your Steps), and the flow
grids of diffusers' multistep schedulers begin at 0.999."""


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
        noise: of predictions of the noise, in the order of `outputs` and beside them, for steps that weigh both
            predictions (DPM-Solver-v3, 2310.13268). Not with the form "noise".
    """

    outputs: tuple[float, ...]
    form: str = "output"
    sample: float = 0.0
    previous: float = 0.0
    anchor: float = 0.0
    noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise FestinaError(f"weights of the form {self.form!r} are not known. Use one of {', '.join(FORMS)}.")
        if self.form == "noise" and self.noise:
            raise FestinaError(
                'weights of the form "noise" and weights of the noise beside them are given. Add the latter to outputs.'
            )
        for name in ("outputs", "noise"):
            object.__setattr__(self, name, tuple(float(weight) for weight in getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, texts and numbers; weights of the noise only where there are some."""
        record = {**asdict(self), "outputs": list(self.outputs), "noise": list(self.noise)}
        return record if self.noise else {key: value for key, value in record.items() if key != "noise"}


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
        momentum: w of an extrapolation x + w g (x - previous x) (LTC-Accel, 2503.09675).
        ratio: its g. "noise": this step's length over that of the one before, in `noise`, with which w = 1 goes on as
            Euler's steps of flow and EDM models do. "paper": the same in the root of the signal-to-noise ratio, alpha /
            sigma, which ends at no noise 0. "released": as the authors' code, the ratio in noise of the two steps
            before, one step late. A fitted w (`festina.samplers.latent_scale`) makes up for the choice.
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
    ratio: str = "released"
    linear: LinearWeights | None = None

    def __post_init__(self) -> None:
        for name in ("noise", "contrast", "momentum", "network_time"):
            if (value := getattr(self, name)) is not None or name != "network_time":
                object.__setattr__(self, name, _number(value, f"{name!r} of a step"))
        if type(self.order) is not int or not isinstance(self.corrector, bool):
            raise FestinaError(
                f"a step has the order {self.order!r:.40} and corrector={self.corrector!r:.40}. Use a whole number and "
                "true or false."
            )
        highest = kind_of(self.solver).highest
        if not 1 <= self.order <= highest:
            raise FestinaError(f"{self.solver} has no order {self.order}. Use an order from 1 to {highest}.")
        for value, known in ((self.call, CALLS), (self.contrast_reference, REFERENCES), (self.ratio, RATIOS)):
            if value not in known:
                raise FestinaError(f"a step knows no {value!r}. Use one of {', '.join(known)}.")
        if self.ratio != "released" and self.call != "extrapolate":
            raise FestinaError(f"the ratio {self.ratio!r} is given to a step that is not extrapolated. Leave it out.")


@dataclass(frozen=True)
class SolverTable:
    """All steps of a run.

    Attributes:
        steps: from the noisiest on; levels never rise.
        final_noise: level that the last step ends at, 0 = clean.
        before_shift: whether the levels of a flow model are meant before the scheduler's shift, so that a shift that
            depends on the size of the picture can be applied at run time. Otherwise they are used as they are. Not with
            a step that has a network time of its own, which would stay where it is.
        start: how a run's first sample comes to lie at the first level. "noise": it is pure noise at the model's
            largest level, and the table begins there. "given": the caller's latents lie at the first level, as those of
            `festina.samplers.warm_start` do. "gaussian": it is pure noise at the model's largest level, which a plan
            (`festina.apply`) carries to the first one by Gaussian statistics; `PlanScheduler` alone does not.
    """

    steps: tuple[SolverStep, ...]
    final_noise: float = 0.0
    before_shift: bool = False
    start: str = "noise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "final_noise", _number(self.final_noise, "'final_noise' of a table"))
        if not self.steps or self.steps[0].call != "network":
            raise FestinaError('a table begins with a step whose call is "network".')
        if self.start not in STARTS:
            raise FestinaError(f"no start of a table is called {self.start!r}. Use one of {', '.join(STARTS)}.")
        noises = [step.noise for step in self.steps] + [self.final_noise]
        for place, (noise, following) in enumerate(pairwise(noises)):
            if following > noise or noise <= 0 or following < 0:
                raise FestinaError(
                    f"step {place} goes from noise {noise} to {following}. Noise falls from step to step and reaches 0 "
                    "only at the end."
                )
        if self.before_shift and any(step.network_time is not None for step in self.steps):
            raise FestinaError(
                "a step has a network_time of its own, and before_shift moves its level away from it. Leave the "
                "network_time out, or give levels after the shift."
            )
        kept = [step for step in self.steps if step.call != "delete"]
        if any(step.call == "extrapolate" for step in kept[:2]):
            raise FestinaError("an extrapolation needs two steps before it; the first two cannot be extrapolated.")
        if kept[-1].ratio == "paper" and self.final_noise == 0:
            raise FestinaError(
                "the last step is extrapolated by the paper's ratio, which is infinite at noise 0. Use 'noise' there."
            )

    @property
    def calls(self) -> int:
        """Network calls of a run."""
        return sum(step.call == "network" for step in self.steps)

    def at_noises(self, noises: Sequence[float]) -> SolverTable:
        """The same steps at other levels, one per step; the final level stays."""
        moved = [replace(step, noise=float(noise)) for step, noise in zip(self.steps, noises, strict=True)]
        return SolverTable(tuple(moved), self.final_noise, start=self.start)

    def at_own_times(self) -> SolverTable:
        """The same steps, in each of which the network is told the time that belongs to the level."""
        return replace(self, steps=tuple(replace(step, network_time=None) for step in self.steps))

    def checked(self, frame: Frame) -> SolverTable:
        """The table, if a model of this frame can run it.

        Raises:
            FestinaError: a level the model does not have, or a shift that its family does not know.
        """
        for step in self.steps:
            level_within(frame, step.noise, "a step begins at")
        if self.before_shift and frame.family != "flow":
            raise FestinaError("before_shift is for flow models, this model has no shift. Set it to False.")
        return self

    def want_start(self, frame: Frame) -> None:
        """Make sure that a run's first sample is read as what it is: pure noise at the model's largest level.

        Variance-preserving models may begin below it, as they do on diffusers' "leading" timesteps: their first sample
        has unit variance at every level. With a `start` other than "noise" any table may.

        Raises:
            FestinaError: the table of a flow or EDM model starts from noise, and not at the model's largest level.
        """
        first, largest = self.steps[0].noise, frame.largest_noise
        if self.start != "noise" or frame.family == "variance_preserving":
            return
        if abs(first - largest) > largest * _NEAR:
            raise FestinaError(
                f"the table begins at the noise level {first:g}, and the first sample of this model is made at "
                f"{largest:g}. Give the first step the noise {largest:g}; a lower one can only be begun at midway, as "
                'image-to-image pipelines do, or by a table whose start is "given" or "gaussian".'
            )

    def to_json(self) -> dict[str, Any]:
        """Plain lists, texts and numbers; a start from noise and what a step leaves at its default are left out."""
        steps = []
        for step in self.steps:
            record = {
                field.name: getattr(step, field.name)
                for field in fields(step)
                if field.name == "noise" or getattr(step, field.name) != field.default
            }
            if step.linear is not None:
                record["linear"] = step.linear.to_json()
            steps.append(record)
        start = {} if self.start == "noise" else {"start": self.start}
        return {"steps": steps, "final_noise": self.final_noise, "before_shift": self.before_shift, **start}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SolverTable:
        """The table written by `to_json`.

        Raises:
            FestinaError: unknown or missing keys, values of the wrong kind, or steps that make no table.
        """
        whole = checked_record(record, cls, "a table")
        steps = []
        for place, entry in enumerate(whole["steps"]):
            values = checked_record(entry, SolverStep, f"step {place} of a table")
            if values.get("linear") is not None:
                weights = checked_record(values["linear"], LinearWeights, f"'linear' of step {place} of a table")
                values["linear"] = LinearWeights(**weights)
            steps.append(SolverStep(**values))
        return cls(**{**whole, "steps": tuple(steps)})


def level_within(frame: Frame, noise: float, said: str) -> NoiseLevel:
    """The level that a scheduler calls `noise`, if the model has it.

    Raises:
        FestinaError: it has not; the message says before the number what was asked for.
    """
    level = frame.level(noise)
    if noise > frame.largest_noise * (1 + _NEAR):
        raise FestinaError(
            f"the model's largest noise level is {frame.largest_noise:g}, and {said} {noise:g}. Use levels up to the "
            "largest."
        )
    return level


def check_solver(solver: str, order: int, corrector: bool, largest_step_ratio: float | None) -> None:
    """Make sure that one solver can make all steps of a run.

    Raises:
        FestinaError: a solver or order that is not known, a corrector that the solver has not, or a ratio not above 0.
    """
    SolverStep(1.0, solver, order)
    if corrector and kind_of(solver).corrector is None:
        raise FestinaError(f"{solver} has no corrector. Use corrector=False.")
    if largest_step_ratio is not None:
        check_ratio(largest_step_ratio)


def _number(value: Any, what: str) -> float:
    """A number as a table keeps it, so that equal tables are written alike.

    Raises:
        FestinaError: it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise FestinaError(f"{what} is {value!r:.40}. Use a finite number.")
    if not math.isfinite(value):
        raise FestinaError(f"{what} is {value}. Use a finite number.")
    return float(value)
