"""GITS: its dynamic programming against all paths, its costs against closed forms, and its grid on a toy."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from samplers_pipe import ToyPipe, error

from festina.errors import FestinaError
from festina.samplers import Frame
from festina.samplers.gits import COSTS, cheapest_path, gits_noises, jump_costs
from festina.samplers.recording import Trajectory
from festina.samplers.times import table_on, uniform_log_snr


def price(costs, path, discount):
    return sum(discount**place * costs[jump] for place, jump in enumerate(pairwise(path)))


@pytest.mark.parametrize("nodes", [2, 3, 5, 8])
@pytest.mark.parametrize("discount", [0.8, 1.0, 1.15])
def test_the_path_is_the_cheapest_of_all(nodes, discount):
    generator = np.random.default_rng(nodes)
    # Below 0 too, as deviations may be, and nonsense where a jump would go backward.
    costs = generator.normal(size=(nodes, nodes))
    for steps in range(1, nodes):
        paths = [(0, *middle, nodes - 1) for middle in combinations(range(1, nodes - 1), steps - 1)]
        best = min(paths, key=lambda path: price(costs, path, discount))
        assert cheapest_path(costs, steps, discount) == best


def test_a_discount_above_1_makes_late_jumps_count_more():
    # From 0 to 4 in two jumps; each costs the square of its length.
    costs = np.array([[(end - start) ** 2.0 for end in range(5)] for start in range(5)])
    assert cheapest_path(costs, 2) == (0, 2, 4)
    assert cheapest_path(costs, 2, 4.0) == (0, 3, 4)
    assert cheapest_path(costs, 2, 0.25) == (0, 1, 4)
    assert cheapest_path(costs, 4) == (0, 1, 2, 3, 4)


def test_costs_of_jumps_by_hand():
    """EDM, where x0 is 0 and the noise the sample over its level; pictures of two values."""
    frame = Frame("edm", "epsilon", sigma_data=1.0)
    samples = torch.tensor([[[4.0, 0.0]], [[2.0, 1.0]], [[0.0, 0.0]]])
    # c_skip x + c_out F = 0 with c_skip = 1 / (1 + level^2) and c_out = level / sqrt(1 + level^2): F = -x / (...).
    outputs = torch.stack([-samples[0] / (4 * 17**0.5), -samples[1] / (2 * 5**0.5)])
    teacher = Trajectory(frame, (4.0, 2.0, 0.0), samples, outputs)
    # From level 4 to 2 the sample halves, to (2, 0); the run is at (2, 1), 1 away from the straight line.
    assert jump_costs(teacher, "l2")[0] == pytest.approx([np.inf, 1.0, 0.0], abs=1e-6)
    assert jump_costs(teacher, "l1")[0] == pytest.approx([np.inf, 1.0, 0.0], abs=1e-6)
    assert jump_costs(teacher, "deviation")[0] == pytest.approx([np.inf, -1.0, 0.0], abs=1e-6)
    assert jump_costs(teacher, "deviation")[1] == pytest.approx([np.inf, np.inf, 0.0], abs=1e-6)
    assert np.isinf(np.tril(jump_costs(teacher))).sum() == 6


@pytest.mark.parametrize("flow", [False, True])
def test_neighbours_of_a_first_order_run_cost_nothing(flow):
    teacher = ToyPipe(flow).teacher(12)
    for name in COSTS:
        costs = jump_costs(teacher, name)
        scale = costs[np.isfinite(costs)].max()
        assert np.abs(np.diag(costs, 1)).max() < 1e-6 * scale
        assert costs[0, -1] > 1e-2 * scale


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("cost", COSTS)
def test_the_grid_beats_even_steps_and_most_random_ones_on_fresh_noise(flow, cost):
    pipe = ToyPipe(flow)
    teacher = pipe.teacher(60)
    exact = pipe.drawn(table_on(pipe.frame, uniform_log_snr(pipe.frame, 600), order=3), seed=9)
    generator = np.random.default_rng(0)

    def far(noises):
        return error(pipe.drawn(table_on(pipe.frame, noises, order=1), seed=9), exact)

    for steps in (5, 8):
        noises = gits_noises(teacher, steps, cost=cost)
        assert len(noises) == steps
        assert noises[0] == teacher.noises[0]
        assert set(noises) <= set(teacher.noises)
        chosen = [np.sort(generator.choice(np.arange(1, 60), steps - 1, replace=False)) for _ in range(20)]
        grids = [[teacher.noises[node] for node in (0, *nodes)] for nodes in chosen]
        errors = [far(grid) for grid in (noises, uniform_log_snr(pipe.frame, steps), *grids)]
        assert errors[0] < 0.85 * errors[1]
        assert errors[0] < np.quantile(errors[2:], 0.25)


def test_what_is_refused():
    teacher = ToyPipe().teacher(4, samples=2)
    for steps in (0, 5):
        with pytest.raises(FestinaError, match="Use 1 to 4 jumps"):
            gits_noises(teacher, steps)
    with pytest.raises(FestinaError, match="discount above 0"):
        gits_noises(teacher, 2, 0.0)
    with pytest.raises(FestinaError, match="no cost of jumps is called 'l3'"):
        gits_noises(teacher, 2, cost="l3")
