"""OLSS: linear forms of samplers, fits that must find them, and which fit draws better."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from samplers_pipe import ToyPipe, error

from festina.errors import FestinaError
from festina.samplers import SolverStep, SolverTable
from festina.samplers.olss import choose_nodes, fit_on_policy, fit_to_teacher, linear_form
from festina.samplers.recording import record
from festina.samplers.times import karras, table_on

TABLES = {
    "ddim": {"order": 1},
    "2M": {"order": 2},
    "UniPC": {"solver": "unipc_bh2", "order": 3, "corrector": True},
    "plms": {"solver": "adams_bashforth", "order": 4},
}


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_every_sampler_has_a_linear_form(flow, name):
    pipe = ToyPipe(flow)
    table = table_on(pipe.frame, karras(pipe.frame, 6), **TABLES[name])
    linear = linear_form(table, pipe.frame)
    assert [len(step.linear.outputs) for step in linear.steps] == [1, 2, 3, 4, 5, 6]
    assert [step.noise for step in linear.steps] == [step.noise for step in table.steps]
    torch.testing.assert_close(pipe.drawn(linear), pipe.drawn(table), atol=1e-7, rtol=0)


def test_steps_without_calls_are_in_the_weights():
    pipe = ToyPipe()
    steps = [SolverStep(level, order=1, contrast=0.1) for level in karras(pipe.frame, 6)]
    steps[2] = SolverStep(steps[2].noise, call="extrapolate", momentum=0.9)
    steps[4] = SolverStep(steps[4].noise, call="delete")
    table = SolverTable(tuple(steps))
    linear = linear_form(table, pipe.frame)
    assert linear.calls == len(linear.steps) == 4
    torch.testing.assert_close(pipe.drawn(linear), pipe.drawn(table), atol=1e-7, rtol=0)


@pytest.mark.parametrize("flow", [False, True])
def test_fits_find_the_weights_of_a_teacher_that_has_them(flow):
    pipe = ToyPipe(flow)
    table = table_on(pipe.frame, karras(pipe.frame, 4), order=1)
    teacher = record(pipe, table, lambda: pipe(4))
    nodes = range(5)
    wanted = linear_form(table, pipe.frame)
    for fitted in (
        fit_to_teacher(teacher, nodes),
        fit_on_policy(pipe, teacher, nodes, lambda: pipe(4), ridge=0.0),
        # A ridge towards the teacher's own weights leaves them alone, however strong.
        fit_to_teacher(teacher, nodes, ridge=1e6, order=1),
    ):
        for step, goal in zip(fitted.steps, wanted.steps, strict=True):
            assert step.linear.anchor == pytest.approx(goal.linear.anchor, abs=1e-5)
            assert step.linear.outputs == pytest.approx(goal.linear.outputs, abs=1e-5)


def test_a_strong_ridge_leaves_the_solver():
    pipe = ToyPipe()
    teacher = pipe.teacher(20)
    nodes = (0, 5, 10, 15, 20)
    solver = linear_form(table_on(pipe.frame, [teacher.noises[node] for node in nodes[:-1]]), pipe.frame)
    fitted = fit_to_teacher(teacher, nodes, ridge=1e12)
    torch.testing.assert_close(pipe.drawn(fitted), pipe.drawn(solver), atol=1e-5, rtol=0)
    assert error(pipe.drawn(fit_to_teacher(teacher, nodes)), pipe.drawn(solver)) > 1e-3


@pytest.mark.parametrize("steps", [5, 10])
def test_the_fit_on_policy_draws_better(steps):
    pipe = ToyPipe()
    teacher = pipe.teacher(100)
    nodes = tuple(range(0, 101, 100 // steps))
    on_policy = fit_on_policy(pipe, teacher, nodes, lambda: pipe(steps))
    fresh = pipe.teacher(100, seed=5, samples=256).samples[-1]

    def far(table):
        return error(pipe.drawn(table, seed=5, samples=256), fresh)

    first, second = (far(table_on(pipe.frame, [teacher.noises[node] for node in nodes[:-1]], order=n)) for n in (1, 2))
    forced = far(fit_to_teacher(teacher, nodes))
    assert far(on_policy) < second / 2 < first / 2
    assert far(on_policy) < forced / 2
    # Ten steps fitted to the teacher alone blow up: they never see what the steps before them did.
    assert (forced > 10 * first) == (steps == 10)
    # A ridge tames them, but not as much.
    assert far(on_policy) < far(fit_to_teacher(teacher, nodes, ridge=1e-3)) < second


def test_chosen_nodes_have_the_smallest_largest_error():
    pipe = ToyPipe()
    teacher = pipe.teacher(9)

    def largest(path):
        """The largest error of a step of a path, straight from the definition."""
        errors = []
        for place, (_, end) in enumerate(pairwise(path)):
            columns = torch.cat([teacher.samples[:1], teacher.outputs[list(path[: place + 1])]]).flatten(1).numpy().T
            target = teacher.samples[end].flatten().numpy()
            errors.append(np.linalg.norm(target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]))
        return max(errors)

    for steps in (1, 2, 3, 9):
        path = choose_nodes(teacher, steps)
        assert len(path) == steps + 1
        assert (path[0], path[-1]) == (0, 9)
        paths = [(0, *middle, 9) for middle in combinations(range(1, 9), steps - 1)]
        ranks = sorted(map(largest, paths))
        assert largest(path) <= np.quantile(ranks, 0.1) + 1e-9


def test_what_is_refused():
    pipe = ToyPipe()
    teacher = pipe.teacher(4, samples=8)
    for nodes in ((0, 4, 3), (1, 4), (0, 2), (0, 2, 2, 4), (0,)):
        with pytest.raises(FestinaError, match="no path through a teacher of 4 steps"):
            fit_to_teacher(teacher, nodes)
    flow = ToyPipe(flow=True)
    with pytest.raises(FestinaError, match="run_table"):
        linear_form(SolverTable((SolverStep(1.0), SolverStep(0.5)), before_shift=True), flow.frame)
    with pytest.raises(FestinaError, match="ridge is -1"):
        fit_to_teacher(teacher, (0, 2, 4), ridge=-1.0)
    with pytest.raises(FestinaError, match="5 steps of a teacher with 4"):
        choose_nodes(teacher, 5)
    with pytest.raises(FestinaError, match="teacher's noise"):
        fit_on_policy(pipe, teacher, (0, 2, 4), lambda: pipe(2, seed=1, samples=8))
