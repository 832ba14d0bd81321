"""Evolutionary search of a sampler: noise levels, and per step solver, order and corrector.

AutoDiffusion (Li et al., arXiv 2309.10438) searches the times, USF with S3 (Liu et al., 2312.07243) also what each step
does. Both mutate and cross sets of steps and judge them by the pictures drawn. Here a step belongs to its level, so
that adding or leaving out one shifts none of the others. A deleted step is a level that was not chosen; steps that are
extrapolated are not searched, as each step here is a network call.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from festina.errors import FestinaError
from festina.samplers.coefficients import KINDS, kind_of
from festina.samplers.ranking import RankingPredictor
from festina.samplers.table import SolverStep, SolverTable

__all__ = ["Evolution", "EvolutionSettings", "evolve"]

Fitness = Callable[[SolverTable], float]

_ORDER_SHARES = {1: 0.25, 2: 0.45, 3: 0.3, 4: 0.3}
"""How often an order is drawn, next to the others that may be."""

_TRIES = 50
"""Children in a row that were evaluated before, after which the space counts as used up."""


@dataclass(frozen=True)
class EvolutionSettings:
    """How a search goes.

    Attributes:
        evaluations: tables judged in all, at least 1.
        population: the best so many tables have children; AutoDiffusion and S3 keep 10 to 15.
        children: tables judged per generation.
        solvers: names of `festina.samplers.KINDS` to choose from.
        orders: which orders a step may have, ones that all the solvers have. Where fewer outputs are at hand, in the
            first steps, an order is lowered to them.
        correctors: whether a step may do without a corrector (False), have one (True), or either. With one solver, one
            order and one of these only the levels are searched, as AutoDiffusion does.
        crossover: share of children of two parents; the others are changed copies of one.
        changes: chance of each step of a child to move or to change what it does.
        screened: children made for each one that is judged, once the predictor's rank correlation on tables held out
            from it is `trusted`; 1 = no predictor. Below that, it is switched off for the generation.
        trusted: rank correlation from which on the predictor chooses.
        seed: of all random choices.

    Raises:
        FestinaError: a number out of its range, a solver that is not known, an order that a solver has not, or nothing
            to choose from.
    """

    evaluations: int = 300
    population: int = 12
    children: int = 20
    solvers: tuple[str, ...] = ("data", "noise")
    orders: tuple[int, ...] = (1, 2, 3)
    correctors: tuple[bool, ...] = (False, True)
    crossover: float = 0.4
    changes: float = 0.2
    screened: int = 6
    trusted: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.evaluations, self.population, self.children, self.screened) < 1:
            raise FestinaError("evaluations, population, children and screened are at least 1 each.")
        if not (0 <= self.crossover <= 1 and 0 < self.changes <= 1):
            raise FestinaError("crossover is a share from 0 to 1, changes a chance above 0 and up to 1.")
        if not self.solvers:
            raise FestinaError(f"no solvers to choose from. Give some of {', '.join(KINDS)}.")
        highest = min(kind_of(name).highest for name in self.solvers)
        whole = all(type(order) is int and 1 <= order <= highest for order in self.orders)
        if not self.orders or not whole or len(set(self.orders)) < len(self.orders):
            raise FestinaError(
                f"the orders to choose from are {self.orders!r:.60}. Give different ones from 1 to {highest}, the "
                "highest that all the solvers have."
            )
        said = [value for value in self.correctors if isinstance(value, bool)]
        if not said or len(said) < len(self.correctors) or len(set(said)) < len(said):
            raise FestinaError(f"the correctors are {self.correctors!r:.60}. Give (False,), (True,) or (False, True).")


@dataclass(frozen=True)
class Evolution:
    """What a search found.

    Attributes:
        tables: every table judged, in this order, each once.
        fitness: of each.
        trusts: rank correlation of the predictor on held-out tables, one per generation that made one.
        screenings: generations whose children the predictor chose.
    """

    tables: tuple[SolverTable, ...]
    fitness: tuple[float, ...]
    trusts: tuple[float, ...]
    screenings: int

    @property
    def best(self) -> SolverTable:
        """The table of the highest fitness, the first such one."""
        return self.tables[int(np.argmax(self.fitness))]


def evolve(
    levels: Sequence[float],
    calls: int,
    fitness: Fitness,
    seeds: Sequence[SolverTable] = (),
    settings: EvolutionSettings | None = None,
) -> Evolution:
    """Search the steps of a sampler with so many network calls. The same arguments give the same result.

    Args:
        levels: noise levels to choose from, falling; every table begins at the first one and ends clean.
        calls: network calls of every table, from 1 to the number of levels.
        fitness: judges a table, higher is better; not finite counts as worst. Called once per table.
        seeds: tables judged first: on these levels, with so many calls, one per step. Times of their own are left out,
            as a step belongs to its level: the network is told the time of the level.
        settings: how the search goes.

    Raises:
        FestinaError: levels that do not fall, fewer of them than calls, or a seed that is no such table.
    """
    search = _Search(tuple(map(float, levels)), calls, fitness, settings or EvolutionSettings())
    for table in seeds:
        search.want_fitting(table)
    search.judge([table.at_own_times() for table in seeds])
    search.judge(search.unseen(search.settings.children, search.random))
    while search.left and search.generation():
        pass
    return Evolution(tuple(search.found), tuple(search.found.values()), tuple(search.trusts), search.screenings)


class _Search:
    """A search under way."""

    def __init__(self, levels: tuple[float, ...], calls: int, fitness: Fitness, settings: EvolutionSettings) -> None:
        if not 1 <= calls <= len(levels) or any(np.diff(levels) >= 0):
            raise FestinaError(
                f"{calls} calls on {len(levels)} levels were asked for. Give falling levels, at least as many as calls."
            )
        self.levels, self.calls, self.fitness, self.settings = levels, calls, fitness, settings
        self.orders = tuple(sorted(settings.orders))
        self.found: dict[SolverTable, float] = {}
        self.trusts: list[float] = []
        self.screenings = 0
        self._random = np.random.default_rng(settings.seed)

    @property
    def left(self) -> int:
        """Evaluations left."""
        return self.settings.evaluations - len(self.found)

    def want_fitting(self, table: SolverTable) -> None:
        """Raise a `FestinaError` unless a table lies in the space that is searched."""
        steps = table.steps
        plain = all(step.call == "network" and step.linear is None and step.contrast == 0 for step in steps)
        on_levels = steps[0].noise == self.levels[0] and {step.noise for step in steps} <= set(self.levels)
        usual = table.final_noise == 0 and not table.before_shift and table.start == "noise"
        if not (plain and on_levels and len(steps) == self.calls and usual):
            raise FestinaError(
                f"a seed of the search is no table of {self.calls} plain steps on its levels from noise to clean. Make "
                "it with levels from the list that is searched, beginning with the first."
            )
        for place, step in enumerate(steps):
            # The last step's order is lowered on the way to noise 0, and a corrector wants a step before it.
            lowered = place == len(steps) - 1 or any(step.order == min(order, place + 1) for order in self.orders)
            correctable = place > 0 and kind_of(steps[place - 1].solver).corrector is not None
            corrected = not correctable or step.corrector in self.settings.correctors
            if step.order > max(self.orders) or not lowered or not corrected:
                raise FestinaError(
                    f"step {place} of a seed has the order {step.order} and corrector={step.corrector}; the search has "
                    f"orders={self.orders} and correctors={self.settings.correctors}. Give seeds of these."
                )

    def judge(self, tables: Sequence[SolverTable]) -> None:
        """Evaluate tables that were not evaluated yet, as many as are left."""
        for table in tables:
            if table not in self.found and self.left:
                value = float(self.fitness(table))
                self.found[table] = value if np.isfinite(value) else -np.inf

    def generation(self) -> bool:
        """Children of the best tables; False if nothing new comes of them."""
        wanted = min(self.settings.children, self.left)
        predictor = self._predictor()
        pool = self.unseen(wanted * (self.settings.screened if predictor else 1), self.child)
        if predictor:
            self.screenings += 1
            pool = [pool[place] for place in np.argsort(-predictor.scores(pool), kind="stable")[:wanted]]
        self.judge(pool)
        return bool(pool)

    def _predictor(self) -> RankingPredictor | None:
        if self.settings.screened == 1:
            return None
        predictor = RankingPredictor(self.levels, list(self.found), list(self.found.values()))
        self.trusts.append(predictor.trust)
        return predictor if predictor.trust >= self.settings.trusted else None

    def unseen(self, count: int, make: Callable[[], SolverTable]) -> list[SolverTable]:
        """So many different tables that were not evaluated; fewer if hardly any new ones come."""
        made: dict[SolverTable, None] = {}
        tries = 0
        while len(made) < count and tries < _TRIES:
            table = make()
            tries = tries + 1 if table in self.found or table in made else 0
            if not tries:
                made[table] = None
        return list(made)

    def random(self) -> SolverTable:
        """A table of random steps."""
        return self._table({0: self._step()})

    def child(self) -> SolverTable:
        """A changed copy of one of the best tables, or of what two of them have above and below a level."""
        best = sorted(self.found, key=self.found.__getitem__, reverse=True)[: self.settings.population]
        mother, father = (self._nodes(best[self._random.integers(len(best))]) for _ in range(2))
        if self._random.random() < self.settings.crossover:
            cut = self._random.integers(1, len(self.levels) + 1)
            mother = {place: step for place, step in mother.items() if place < cut}
            mother |= {place: step for place, step in father.items() if place >= cut}
        return self._table(self._changed(mother))

    def _changed(self, nodes: dict[int, SolverStep]) -> dict[int, SolverStep]:
        """Steps of which some have moved to a level nearby, or do something else."""
        changed: dict[int, SolverStep] = {}
        for place, step in nodes.items():
            moved, now = place, step
            if self._random.random() < self.settings.changes and place > 0:
                reach = max(1, len(self.levels) // (2 * self.calls))
                moved = int(np.clip(place + self._random.integers(-reach, reach + 1), 1, len(self.levels) - 1))
            if self._random.random() < self.settings.changes:
                now = self._step()
            changed.setdefault(moved if moved not in nodes else place, now)
        return changed

    def _table(self, nodes: dict[int, SolverStep]) -> SolverTable:
        """The table of these steps, with random ones added or left out until there are as many as calls."""
        places = sorted(nodes)
        while len(places) > self.calls:
            places.pop(int(self._random.integers(1, len(places))))
        while len(places) < self.calls:
            free = sorted(set(range(len(self.levels))) - set(places))
            insort(places, int(self._random.choice(free)))
        steps: list[SolverStep] = []
        for count, place in enumerate(places):
            step = nodes.get(place) or self._step()
            # An order above the outputs at hand would be lowered anyway, and one that was lowered rises again where the
            # step has come to another place. A corrector is that of the step before.
            order = min(min(order for order in self.orders if order >= step.order), count + 1)
            able = bool(steps) and kind_of(steps[-1].solver).corrector is not None
            wanted = self.settings.correctors
            corrector = able and (step.corrector if step.corrector in wanted else wanted[0])
            steps.append(replace(step, noise=self.levels[place], order=order, corrector=corrector))
        return SolverTable(tuple(steps))

    def _nodes(self, table: SolverTable) -> dict[int, SolverStep]:
        return {self.levels.index(step.noise): step for step in table.steps}

    def _step(self) -> SolverStep:
        """A random step; its level comes with its place."""
        solver = str(self._random.choice(self.settings.solvers))
        shares = np.array([_ORDER_SHARES[order] for order in self.orders])
        order = int(self._random.choice(self.orders, p=shares / shares.sum()))
        corrector = bool(self._random.choice(self.settings.correctors))
        return SolverStep(self.levels[0], solver, order, corrector)
