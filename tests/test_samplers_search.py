"""The search of samplers: what it may make, its predictor, and what it finds on toys."""

import math
from dataclasses import replace

import numpy as np
import pytest
from samplers_pipe import ToyPipe, error
from samplers_toy import vp

from festina.errors import FestinaError
from festina.samplers import SolverStep, SolverTable, compile_table
from festina.samplers.ranking import RankingPredictor, rank_correlation
from festina.samplers.search import EvolutionSettings, evolve
from festina.samplers.times import table_on, uniform_log_snr

FRAME = vp().frame
LEVELS = uniform_log_snr(FRAME, 30)


def golden(table):
    """Best for levels in even steps of the logarithm and order 3."""
    logs = np.log([step.noise for step in table.steps])
    return -np.diff(logs).std() + 0.1 * sum(step.order for step in table.steps)


def even(calls):
    """So many steps of the second order on levels evenly out of the list."""
    nodes = [LEVELS[round(place * len(LEVELS) / calls)] for place in range(calls)]
    return SolverTable(tuple(SolverStep(level, order=min(2, place + 1)) for place, level in enumerate(nodes)))


def test_tables_are_runnable_different_and_as_asked():
    settings = EvolutionSettings(evaluations=120, solvers=("data", "data_released", "unipc_bh2"), seed=3)
    asked = []
    found = evolve(LEVELS, 5, lambda table: asked.append(table) or golden(table), settings=settings)
    assert len(asked) == len(found.tables) == len(set(found.tables)) == 120
    assert found.fitness == tuple(map(golden, found.tables))
    assert golden(found.best) == max(found.fitness)
    for table in found.tables:
        assert table.calls == len(table.steps) == 5
        assert table.steps[0].noise == LEVELS[0]
        assert {step.noise for step in table.steps} <= set(LEVELS)
        assert len(compile_table(table, FRAME).slots) == 5
    made = {(step.solver, step.order, step.corrector) for table in found.tables for step in table.steps}
    assert {"data", "data_released", "unipc_bh2"} == {solver for solver, _, _ in made}
    assert {1, 2, 3} == {order for _, order, _ in made}
    # A corrector is that of the step before, and that solver has none.
    follows = [
        second.corrector
        for table in found.tables
        for first, second in zip(table.steps, table.steps[1:], strict=False)
        if first.solver == "data_released"
    ]
    assert follows
    assert not any(follows)


def test_the_seed_decides_everything():
    runs = [evolve(LEVELS, 4, golden, settings=EvolutionSettings(60, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].tables != runs[2].tables


def test_a_step_belongs_to_its_level_and_a_sampler_is_judged_once():
    start = table_on(FRAME, LEVELS[::6])
    assert all(step.network_time is None for step in start.steps)
    timed = SolverTable(
        tuple(replace(step, network_time=FRAME.network_time(step.noise)) for step in start.steps), start.final_noise
    )
    asked = []
    found = evolve(LEVELS, 5, lambda table: asked.append(table) or golden(table), [timed, start], EvolutionSettings(60))
    assert asked.count(start) == 1
    assert found.tables[0] == start
    assert len({compile_table(table, FRAME) for table in found.tables}) == len(found.tables) == 60
    assert all(step.network_time is None for table in found.tables for step in table.steps)


def test_seeds_are_judged_first_and_a_small_space_ends():
    start = SolverTable(tuple(SolverStep(level, order=1) for level in LEVELS[:3]))
    found = evolve(LEVELS, 3, golden, [start], EvolutionSettings(30))
    assert found.tables[0] == start
    # Two levels, one call: 2 solvers of one order, no choice of level.
    few = evolve(LEVELS[:2], 1, lambda table: 0.0, settings=EvolutionSettings(100))
    assert {step.solver for table in few.tables for step in table.steps} == {"data", "noise"}
    assert len(few.tables) == 2


def test_the_predictor_is_switched_off_where_it_cannot_rank():
    generator = np.random.default_rng(0)
    blind = evolve(LEVELS, 5, lambda table: generator.normal(), settings=EvolutionSettings(200))
    assert max(blind.trusts) < 0.5
    assert blind.screenings == 0
    places = {level: place for place, level in enumerate(LEVELS)}

    def additive(table):
        return -sum(abs(places[step.noise] - 10) for step in table.steps)

    seeing = evolve(LEVELS, 5, additive, settings=EvolutionSettings(200))
    assert seeing.screenings > 0
    never = evolve(LEVELS, 5, additive, settings=EvolutionSettings(200, screened=1))
    assert (never.screenings, never.trusts) == (0, ())
    # A trust that cannot be reached switches it off too.
    off = evolve(LEVELS, 5, additive, settings=EvolutionSettings(200, trusted=1.1))
    assert off.screenings == 0
    assert off.tables == evolve(LEVELS, 5, additive, settings=EvolutionSettings(200, screened=1)).tables


def test_rank_correlations():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, -1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert rank_correlation([1, 1], [1, 2]) == 0
    assert rank_correlation([], []) == 0


def test_a_predictor_ranks_tables_it_did_not_see():
    tables = evolve(LEVELS, 4, golden, settings=EvolutionSettings(200, children=200)).tables
    known, unseen = tables[:150], tables[150:]
    goal = [sum(step.order for step in table.steps) for table in tables]
    predictor = RankingPredictor(LEVELS, known, goal[:150])
    assert predictor.trust > 0.5
    assert rank_correlation(predictor.scores(unseen), goal[150:]) > 0.5
    # By chance, few held-out tables may lie in the right order; they are not trusted.
    assert RankingPredictor(LEVELS, known[:39], goal[:39]).trust == 0


def test_the_search_beats_its_seed_on_a_toy_and_on_fresh_noise():
    pipe, calls = ToyPipe(), 5
    exact = {seed: pipe.drawn(table_on(FRAME, LEVELS, order=3), seed, 256) for seed in (0, 9)}

    def far(table, seed):
        return error(pipe.drawn(table, seed, 256), exact[seed])

    start = even(calls)
    found = evolve(LEVELS, calls, lambda table: -far(table, 0), [start], EvolutionSettings(150))
    assert found.fitness[0] == -far(start, 0)
    assert far(found.best, 0) < 0.8 * far(start, 0)
    assert far(found.best, 9) < 0.85 * far(start, 9)


@pytest.mark.parametrize(("orders", "correctors"), [((2,), (True,)), ((3,), (False,)), ((1, 3), (False, True))])
def test_orders_and_correctors_are_those_that_were_asked_for(orders, correctors):
    settings = EvolutionSettings(150, orders=orders, correctors=correctors, seed=2)
    found = evolve(LEVELS, 5, golden, settings=settings)
    made = [[step.order for step in table.steps] for table in found.tables]
    for table, row in zip(found.tables, made, strict=True):
        allowed = [{min(order, place + 1) for order in orders} for place in range(5)]
        assert all(order in able for order, able in zip(row, allowed, strict=True))
        assert not table.steps[0].corrector
        assert {step.corrector for step in table.steps[1:]} <= set(correctors)
    assert {row[-1] for row in made} == set(orders)
    assert {step.corrector for table in found.tables for step in table.steps[1:]} == set(correctors)


def test_a_lowered_order_rises_again_where_the_step_moves():
    # The last steps of these seeds are of the first order, and their second ones of the second.
    seeds = [table_on(FRAME, LEVELS[::6], order=3), table_on(FRAME, LEVELS[:5], order=3)]
    assert [step.order for step in seeds[0].steps] == [1, 2, 3, 2, 1]
    settings = EvolutionSettings(150, orders=(2, 3), correctors=(False,), seed=4)
    found = evolve(LEVELS, 5, golden, seeds, settings)
    assert found.tables[:2] == tuple(seeds)
    assert {step.order for table in found.tables[2:] for step in table.steps[1:]} == {2, 3}


def test_a_search_of_the_levels_alone_finds_a_grid_no_worse_than_its_seed():
    pipe, calls, start = ToyPipe(), 5, even(5)
    exact = {seed: pipe.drawn(table_on(FRAME, LEVELS, order=3), seed, 256) for seed in (0, 9)}

    def far(table, seed=0):
        return error(pipe.drawn(table, seed, 256), exact[seed])

    settings = EvolutionSettings(100, solvers=("data",), orders=(2,), correctors=(False,), screened=1)
    found, again = (evolve(LEVELS, calls, lambda table: -far(table), [start], settings) for _ in range(2))
    assert found == again
    # All that differs between two tables are their levels.
    assert {start.at_noises([step.noise for step in table.steps]) == table for table in found.tables} == {True}
    assert found.fitness[0] == -far(start)
    assert far(found.best) < 0.9 * far(start)
    assert far(found.best, 9) < far(start, 9)


def test_extrapolations_against_deleted_steps_and_even_ones():
    """LTC-Accel (2503.09675) at equal calls: every second late step of 20 is left out, or 14 even steps are made."""
    pipe = ToyPipe()
    levels = uniform_log_snr(FRAME, 20)
    exact = pipe.drawn(table_on(FRAME, uniform_log_snr(FRAME, 400), order=3))

    def far(call, order):
        steps = [SolverStep(level, order=order) for level in levels]
        for place in range(7, 19, 2):
            steps[place] = SolverStep(levels[place], order=order, call=call)
        return error(pipe.drawn(SolverTable(tuple(steps))), exact)

    assert far("extrapolate", 1) < far("delete", 1)
    even = error(pipe.drawn(table_on(FRAME, uniform_log_snr(FRAME, 14), order=2)), exact)
    assert even < min(far("extrapolate", 2), far("delete", 2))


def test_what_is_refused():
    with pytest.raises(FestinaError, match="31 calls on 30 levels"):
        evolve(LEVELS, 31, golden)
    with pytest.raises(FestinaError, match="falling levels"):
        evolve(LEVELS[::-1], 3, golden)
    elsewhere = SolverTable(tuple(SolverStep(level) for level in (LEVELS[0], 1.2345, 0.5)))
    with pytest.raises(FestinaError, match="no table of 3 plain steps"):
        evolve(LEVELS, 3, golden, [elsewhere])
    for wrong in ({"evaluations": 0}, {"crossover": 2.0}, {"solvers": ()}, {"solvers": ("euler",)}, {"changes": 0.0}):
        with pytest.raises(FestinaError):
            EvolutionSettings(**wrong)
    for orders in ((), (0,), (4,), (2, 2), (2.0,), (True,)):
        with pytest.raises(FestinaError, match="Give different ones from 1 to 3"):
            EvolutionSettings(orders=orders)
    assert EvolutionSettings(solvers=("deis_time",), orders=(4,)).orders == (4,)
    for correctors in ((), (False, False), (1,)):
        with pytest.raises(FestinaError, match="the correctors are"):
            EvolutionSettings(correctors=correctors)
    for start, settings in (
        (even(5), EvolutionSettings(orders=(1,))),
        (even(5), EvolutionSettings(orders=(3,))),
        (even(5), EvolutionSettings(correctors=(True,))),
    ):
        with pytest.raises(FestinaError, match=r"step . of a seed has the order 2 .* Give seeds of these"):
            evolve(LEVELS, 5, golden, [start], settings)
