"""What a benchmark compares: ways to run one pipeline, each made from a method's knobs, a plan, or another library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import nn

from festina.benchmark.entries import Calibrate, Carried, Entry
from festina.errors import FestinaError
from festina.executor import Run, accelerate
from festina.metrics.reward import weights_fingerprint
from festina.peers import Peer, calibrated, peers_for, running
from festina.plan import Plan
from festina.samplers.teleportation import GaussianStatistics
from festina.strict import plain

Kind = Literal["uncached", "fewer-steps", "method", "plan", "peer"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The untouched sampler, the same with fewer steps, a plan of a published method, any other plan, another library."""

UNCACHED = "uncached"

SHARES_OF_STEPS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Numbers of steps of the untouched sampler, as shares of all: close enough to go from one to the next in a line."""

FEWEST_STEPS = 2


@dataclass(frozen=True)
class Variant:
    """One way to run the pipeline.

    Attributes:
        name: unique in its benchmark.
        kind: one of `KINDS`.
        group: what it is shown under: the method's name, the kind, or the library's name.
        steps: sampling steps.
        settings: knobs of the method, JSON values by name.
        plan: the plan it runs; None for the untouched sampler and for peers.
        peer: another library's acceleration; None for all others.
        models: the denoisers that its plan calls in the place of the pipeline's own, by name.
        statistics: of the model, by which its plan carries the first noise; None if it carries none.
    """

    name: str
    kind: Kind
    group: str
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    peer: Peer | None = None
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    statistics: GaussianStatistics | None = None

    @property
    def calls(self) -> int:
        """In how many steps a denoiser is called; of other libraries, in how many there may be a call."""
        return self.steps if self.plan is None else self.plan.calls

    @cached_property
    def key(self) -> str:
        """What decides its pictures: two variants with one key run alike."""
        if self.peer is not None:
            knobs = json.dumps(self.settings, sort_keys=True)
            return f"{self.peer.package} {self.peer.version} {self.peer.name} {knobs} at {self.steps} steps"
        if self.plan is None or computes_everything(self.plan):
            return f"untouched at {self.steps} steps"
        weights = "".join(f" {name} {weights_fingerprint(model)}" for name, model in sorted(self.models.items()))
        carried = "" if self.statistics is None else f" statistics {self.statistics.fingerprint}"
        return self.plan.key() + weights + carried

    @property
    def untouched(self) -> bool:
        """Whether it is the untouched sampler, with all steps or fewer."""
        return self.kind in ("uncached", "fewer-steps")

    @contextmanager
    def running(self, pipe: Any) -> Iterator[Run | None]:
        """A context in which the pipeline runs this way; yields the run if it has a plan.

        Raises:
            FestinaError: the plan does not fit the pipeline, or the other library refuses it or breaks.
        """
        if self.peer is not None:
            with running(pipe, self.peer):
                yield None
        elif self.plan is None:
            yield None
        else:
            with accelerate(pipe, self.plan, self.models, self.statistics) as run:
                yield run


@dataclass(frozen=True)
class NotRun:
    """A way to run the pipeline that does not take part; for its attributes see `Variant`."""

    name: str
    group: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Failed(NotRun):
    """One that did not work, and why; a method as a whole where no setting of it was tried."""

    reason: str


@dataclass(frozen=True)
class Alike(NotRun):
    """One that is the same as another one and was not run again."""

    same_as: str


@dataclass(frozen=True)
class Lineup:
    """All that takes part, and what does not.

    Attributes:
        variants: what runs, each once; the first is the untouched sampler.
        alike: what runs as one of these does.
        failed: what could not be made.
    """

    variants: tuple[Variant, ...]
    alike: tuple[Alike, ...]
    failed: tuple[Failed, ...]


def computes_everything(plan: Plan) -> bool:
    """Whether a plan changes nothing: every site computes in every step, in every branch of guidance."""
    return plan.key() == Plan.computing_all(plan.denoiser, plan.sites, len(plan.steps)).key()


def untouched(steps: int) -> tuple[Variant, ...]:
    """The untouched sampler, and the same with fewer steps."""
    counts = sorted({round(share * steps) for share in SHARES_OF_STEPS})
    fewer = [count for count in counts if FEWEST_STEPS <= count < steps]
    return (
        Variant(UNCACHED, "uncached", UNCACHED, steps),
        *(Variant(f"{count} steps", "fewer-steps", "fewer steps", count) for count in fewer),
    )


def of_entry(
    pipe: Any, entry: Entry, steps: int, calibrate: Calibrate, models: Mapping[str, nn.Module] = MappingProxyType({})
) -> list[Variant | Failed]:
    """The variants of a method over its range of knobs; where a plan cannot be made, the reason.

    A method that fails in the same way whatever its knobs are is listed once.

    Args:
        pipe: the pipeline.
        entry: the method.
        steps: sampling steps.
        calibrate: gives the calibration.
        models: other denoisers of the pipeline's kind, by name.
    """
    found: list[Variant | Failed] = []
    made_from = _made_from(pipe, entry, steps, calibrate)
    for knobs in entry.settings(steps):
        name = named(entry.method, knobs)
        try:
            made = entry.make(pipe, steps, knobs, made_from())
            plan, statistics = (made.plan, made.statistics) if isinstance(made, Carried) else (made, None)
            count, called = len(plan.steps), _called(plan, models)
            found.append(
                Variant(name, "method", entry.method, count, plan.settings, plan, models=called, statistics=statistics)
            )
        except FestinaError as error:
            found.append(Failed(name, entry.method, dict(knobs), str(error)))
    if not found:
        return [Failed(entry.method, entry.method, {}, f"none of its settings is for runs of {steps} steps.")]
    reasons = {each.reason for each in found if isinstance(each, Failed)}
    if len(found) > 1 and len(reasons) == 1 and all(isinstance(each, Failed) for each in found):
        return [Failed(entry.method, entry.method, {}, reasons.pop())]
    return found


def _made_from(pipe: Any, entry: Entry, steps: int, calibrate: Calibrate) -> Callable[[], Any]:
    """Gives what an entry's plans are made from: made when it is first asked for; what went wrong then, goes wrong for
    all that ask."""

    @cache
    def prepared() -> Any:
        if not entry.needs_calibration:
            return None
        try:
            return calibrate() if entry.prepare is None else entry.prepare(pipe, steps, calibrate())
        except FestinaError as error:
            return error

    def asked_for() -> Any:
        found = prepared()
        if isinstance(found, FestinaError):
            raise found
        return found

    return asked_for


def of_plans(
    plans: Sequence[tuple[str, Plan]], steps: int, models: Mapping[str, nn.Module] = MappingProxyType({})
) -> list[Variant | Failed]:
    """Plans by their names; one of another number of steps takes no part, unless it has a solver of its own."""
    found: list[Variant | Failed] = []
    for name, plan in plans:
        count = len(plan.steps)
        if count != steps and plan.solver is None:
            reason = f"it has {count} steps, the benchmark {steps}; see `festina plan convert PLAN --steps {steps}`."
            found.append(Failed(name, "plans", {}, reason))
            continue
        try:
            if plan.solver is not None and plan.solver.start != "noise":
                raise FestinaError(
                    f"its sampler starts {plan.solver.start!r}, and a benchmark has no latents to give, and statistics "
                    "of its own only."
                )
            called = _called(plan, models)
            found.append(Variant(name, "plan", "plans", count, {"method": plan.method}, plan, models=called))
        except FestinaError as error:
            found.append(Failed(name, "plans", {}, str(error)))
    return found


def _called(plan: Plan, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The models that a plan calls.

    Raises:
        FestinaError: one is not there.
    """
    if missing := sorted(plan.models - set(models)):
        raise FestinaError(f"no model {missing[0]!r} was given (on the command line: --with {missing[0]}=SOURCE).")
    return {name: models[name] for name in sorted(plan.models)}


def of_peers(pipe: Any, steps: int, render: Callable[[], object]) -> list[Variant | Failed]:
    """The accelerations of other libraries that there are for a pipeline.

    Args:
        pipe: the pipeline.
        steps: sampling steps.
        render: draws a picture in so many steps, for what has to be measured first.
    """
    found: list[Variant | Failed] = []
    for peer in peers_for(pipe, steps):
        name = f"{peer.package} {peer.label}"
        try:
            ready = calibrated(pipe, peer, render)
        except FestinaError as error:
            found.append(Failed(name, peer.package, plain(peer.knobs), str(error)))
        else:
            found.append(Variant(name, "peer", peer.package, steps, plain(ready.knobs), peer=ready))
    return found


def lineup(found: Iterable[Variant | Failed]) -> Lineup:
    """Put together what runs: each key once.

    Raises:
        FestinaError: two variants have one name.
    """
    first: dict[str, Variant] = {}
    alike, failed = [], []
    names: set[str] = set()
    for each in found:
        if each.name in names:
            raise FestinaError(f"two runs are called {each.name!r}; rename one of the plan files.")
        names.add(each.name)
        if isinstance(each, Failed):
            failed.append(each)
        elif each.key in first:
            alike.append(Alike(each.name, each.group, each.settings, first[each.key].name))
        else:
            first[each.key] = each
    return Lineup(tuple(first.values()), tuple(alike), tuple(failed))


def named(method: str, knobs: Mapping[str, Any]) -> str:
    """A method with its knobs, as "fora interval=3"."""
    return " ".join([method, *(f"{knob}={_short(value)}" for knob, value in knobs.items())])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "/".join(_short(each) for each in value.values())
    return "-".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)
