"""A latency model: the seconds of a run, fitted on a handful of timed runs.

The seconds of a run are taken as

    fixed_per_step x steps + sum over groups of sites of (seconds per computation x computations in the plan)

where a group is a component of a stack (`festina.sites.Site.group`), whose sites cost the same. Thirteen timings that
ECAD published for PixArt-alpha follow this form within 1.5 %, where MACs rank the components wrongly. A model holds
for one machine, one shape of call and one number of calls per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from festina.errors import FestinaError
from festina.plan import COMPUTE, Plan
from festina.sites import Site
from festina.strict import is_number

SCHEMA = 1
"""Version of the record this code writes and reads."""


@dataclass(frozen=True)
class Group:
    """Sites that cost the same: the group's name, the seconds of one computation, and the sites' names."""

    name: str
    seconds: float
    sites: tuple[str, ...]


@dataclass(frozen=True)
class LatencyModel:
    """Seconds of a run, linear in its computations.

    Attributes:
        fixed_per_step: seconds every step takes in which the denoiser is called, whatever it serves.
        groups: the groups of sites; their sites are all the sites a plan may name.
    """

    fixed_per_step: float
    groups: tuple[Group, ...]

    def seconds(self, plan: Plan) -> float:
        """Seconds of a run by the plan.

        Raises:
            FestinaError: the plan names a site the model was not fitted for.
        """
        computed = _computations(plan, [group.sites for group in self.groups])
        prices = [group.seconds for group in self.groups]
        return self.fixed_per_step * _called(plan) + float(np.dot(computed, prices))

    def to_dict(self) -> dict[str, Any]:
        """The model as JSON values."""
        groups = [{"name": group.name, "seconds": group.seconds, "sites": list(group.sites)} for group in self.groups]
        return {"festina_latency": SCHEMA, "fixed_per_step": self.fixed_per_step, "groups": groups}

    @staticmethod
    def from_dict(record: Any) -> LatencyModel:
        """Read what `to_dict` wrote, strictly.

        Raises:
            FestinaError: a key too many or too few, or a value of the wrong kind.
        """
        _keys(record, {"festina_latency", "fixed_per_step", "groups"}, "it")
        version, groups = record["festina_latency"], record["groups"]
        _want(type(version) is int and version == SCHEMA, f"'festina_latency' is {SCHEMA}")
        _want(isinstance(groups, list) and len(groups) > 0, "'groups' is a list of groups")
        model = LatencyModel(_seconds(record["fixed_per_step"]), tuple(_read_group(group) for group in groups))
        sites = [site for group in model.groups for site in group.sites]
        _want(len(set(sites)) == len(sites), "each site is in one group")
        return model


def fit(samples: Sequence[tuple[Plan, float]], sites: Sequence[Site]) -> LatencyModel:
    """Fit the model on timed runs, by non-negative least squares.

    Args:
        samples: plans (see `probe_plans`) and the seconds their runs took.
        sites: the sites to price, e.g. `festina.sites.component_sites`; those a plan does not name compute always.

    Raises:
        FestinaError: a time is not positive, a plan names another site, or the samples do not tell the costs apart.
    """
    groups = _grouped(sites)
    if wrong := [seconds for _, seconds in samples if not 0 < seconds < float("inf")]:
        raise FestinaError(f"a run took {wrong[0]} seconds; wanted times above 0.")
    rows = [[_called(plan), *_computations(plan, list(groups.values()))] for plan, _ in samples]
    counts = np.array(rows, dtype=np.float64).reshape(len(samples), 1 + len(groups))
    _check_rank(counts, ["the fixed cost of a step", *groups])
    # Columns of one size: counts of groups with many and with few sites differ by orders of magnitude.
    sizes = np.linalg.norm(counts, axis=0)
    scaled, _ = nnls(counts / sizes, np.array([seconds for _, seconds in samples]))
    fixed, *prices = (float(price) for price in scaled / sizes)
    return LatencyModel(
        fixed, tuple(Group(name, price, groups[name]) for name, price in zip(groups, prices, strict=True))
    )


def probe_plans(denoiser: str, sites: Sequence[Site], steps: int) -> list[Plan]:
    """Plans whose timings identify a model of these sites: everything computed, each group reused alone after the
    first step, everything reused after the first step, and every second step computed (FORA).

    Args:
        denoiser: class name of the denoiser.
        sites: the sites to price.
        steps: steps of each plan, at least 2; more steps make the timings differ more.

    Raises:
        FestinaError: there are no sites, or fewer than 2 steps.
    """
    if steps < 2:
        raise FestinaError(f"cannot probe with {steps} steps; wanted at least 2, as the first computes everything.")
    groups, names = _grouped(sites), [site.name for site in sites]
    everything = np.ones((steps, len(names)), dtype=bool)
    masks = [everything]
    for members in groups.values():
        alone = everything.copy()
        alone[1:, np.isin(names, members)] = False
        masks.append(alone)
    second, first = np.zeros_like(everything), np.zeros_like(everything)
    second[::2], first[0] = True, True
    plans = [Plan.from_mask(denoiser, names, mask, method="probe") for mask in [*masks, first, second]]
    return list({plan.key(): plan for plan in plans}.values())


def _grouped(sites: Sequence[Site]) -> dict[str, tuple[str, ...]]:
    if not sites:
        raise FestinaError("a latency model needs at least one site; found none.")
    groups: dict[str, tuple[str, ...]] = {}
    for site in sites:
        groups[site.group] = (*groups.get(site.group, ()), site.name)
    return groups


def _called(plan: Plan) -> int:
    """In how many steps the denoiser is called, not its last answer replayed.

    Raises:
        FestinaError: another denoiser is called in some.
    """
    if plan.models:
        raise FestinaError(
            f"the plan calls the models {sorted(plan.models)}, and a latency model knows one denoiser only. Time it."
        )
    return plan.calls


def _computations(plan: Plan, groups: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """How often the sites of each group compute in a run, float (groups,); for some tokens counts as their share."""
    known = [site for group in groups for site in group]
    if missing := sorted(set(plan.sites) - set(known)):
        raise FestinaError(
            f"the latency model knows nothing of {len(missing)} of the plan's sites, as {missing[0]!r}; fit one with "
            f"the plan's sites among its `sites`."
        )
    named = set(plan.sites)
    others = tuple(site for site in known if site not in named)
    # Written out with all sites, so that the canonical form also says which sites within served blocks do not run.
    none = (0.0,) * len(others)
    steps = tuple(
        replace(step, actions=step.actions + COMPUTE * len(others), shares=step.shares and step.shares + none)
        for step in plan.steps
    )
    whole = replace(plan, sites=plan.sites + others, steps=steps).canonical()
    shares = np.array([step.shares or (0.0,) * len(whole.sites) for step in whole.steps])
    times = dict(zip(whole.sites, (whole.mask() + shares).sum(axis=0).tolist(), strict=True))
    return np.array([sum(times[site] for site in group) for group in groups], dtype=np.float64)


def _check_rank(counts: NDArray[np.float64], names: Sequence[str]) -> None:
    _, sizes, directions = np.linalg.svd(counts / np.maximum(1, np.linalg.norm(counts, axis=0)))
    # What the runs leave open: changes of the costs that change no run's seconds.
    null = directions[int((sizes > 1e-10).sum()) :]
    if not len(null):
        return
    mixed = [name for name, column in zip(names, null.T, strict=True) if np.abs(column).max() > 1e-8]
    raise FestinaError(
        f"{len(counts)} timed runs do not tell apart the costs of {', '.join(mixed)}; wanted runs in which each group "
        f"of sites is reused without the others (festina.latency.probe_plans gives such plans)."
    )


def _read_group(record: Any) -> Group:
    _keys(record, {"name", "seconds", "sites"}, "a group")
    sites = record["sites"]
    _want(isinstance(record["name"], str), "the name of a group is a text")
    _want(isinstance(sites, list) and all(isinstance(site, str) for site in sites), "'sites' is a list of names")
    _want(len(sites) > 0, "a group has at least one site")
    return Group(record["name"], _seconds(record["seconds"]), tuple(sites))


def _seconds(value: Any) -> float:
    _want(is_number(value) and value >= 0, "seconds are numbers from 0 on")
    return float(value)


def _keys(record: Any, wanted: set[str], where: str) -> None:
    _want(isinstance(record, dict) and set(record) == wanted, f"{where} is an object of {', '.join(sorted(wanted))}")


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise FestinaError(f"not a valid latency model: {message}.")
