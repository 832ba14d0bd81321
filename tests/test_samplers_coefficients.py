"""Weights of steps: phi-functions, polynomials integrated exactly, orders of convergence."""

import math

import numpy as np
import pytest
import torch
from samplers_toy import CENTRES, gaussian_end, noise, output, vp

from festina import FestinaError
from festina.samplers import KINDS, Frame, NoiseLevel, SolverStep, SolverTable, order_within_ratio
from festina.samplers.coefficients import contrast_weight, correction_weights, first_order, higher_order_weights
from festina.samplers.compiling import compile_table
from festina.samplers.dpm_solver_v3 import ModelStatistics, v3_table
from festina.samplers.interpolation import phi
from festina.samplers.run import SamplerRun

VP = Frame("variance_preserving", "epsilon", training_noise=tuple(np.geomspace(0.01, 160.0, 1000)))
FLOW = Frame("flow", "flow_prediction")
POINTS, SHARES = np.polynomial.legendre.leggauss(40)


def level_at(half_log_snr):
    return VP.level(math.exp(-half_log_snr))


def integral(function, start, end):
    return (end - start) / 2 * float(np.sum(SHARES * function(start + (end - start) * (POINTS + 1) / 2)))


@pytest.mark.parametrize("z", [-8.0, -1.0, -0.1001, -0.0999, -1e-9, 0.0, 1e-4, 0.0999, 0.1001, 2.5])
def test_phi_functions_are_their_integrals(z):
    assert phi(0, z) == pytest.approx(math.exp(z), rel=1e-14)
    for index in (1, 2, 3, 4):
        expected = integral(lambda s, k=index: np.exp((1 - s) * z) * s ** (k - 1) / math.factorial(k - 1), 0, 1)
        assert phi(index, z) == pytest.approx(expected, rel=1e-11)


# Uneven on purpose: the weights must know the true places.
PLACES = [0.3, -0.5, -0.9]
TARGET = 1.1


def exact_kinds():
    """(kind, order, degree that is integrated exactly)."""
    found = [(name, order, order - 1) for name in ("data", "noise") for order in (1, 2, 3)]
    # The second order of UniPC has the fixed weight 1/2 and the released forms have others: exact for constants only.
    found += [(name, 3, 2) for name in ("unipc_bh1", "unipc_bh2")]
    return found + [(f"{form}_released", order, 0) for form in ("data", "noise") for order in (2, 3)]


@pytest.mark.parametrize(("name", "order", "degree"), exact_kinds())
def test_polynomials_in_half_log_snr_are_integrated_exactly(name, order, degree):
    kind = KINDS[name]
    nodes, target = [level_at(place) for place in PLACES[:order]], level_at(TARGET)
    weights = higher_order_weights(VP, kind, nodes, target)
    assert weights.sum() == pytest.approx(0, abs=1e-12)
    sample_weight, output_weight = first_order(nodes[0], target, kind.form)
    for power in range(degree + 1):
        values = np.array(PLACES[:order]) ** power
        found = sample_weight * 0.7 + output_weight * values[0] + weights @ values
        if kind.form == "data":
            rest = target.sigma * integral(lambda place, p=power: np.exp(place) * place**p, PLACES[0], TARGET)
        else:
            rest = -target.alpha * integral(lambda place, p=power: np.exp(-place) * place**p, PLACES[0], TARGET)
        assert found == pytest.approx(sample_weight * 0.7 + rest, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "order"), [("data", 1), ("data", 2), ("noise", 2), ("unipc_bh1", 2), ("unipc_bh2", 3)]
)
def test_correctors_integrate_one_degree_more(name, order):
    kind = KINDS[name]
    nodes, target = [level_at(place) for place in PLACES[:order]], level_at(TARGET)
    weights = correction_weights(VP, kind, nodes, target)
    output_weight = first_order(nodes[0], target, kind.form)[1]
    for power in range(order + 1):
        found = weights[0] * TARGET**power + (output_weight + weights[1]) * PLACES[0] ** power
        found += sum(weight * place**power for weight, place in zip(weights[2:], PLACES[1:order], strict=True))
        sign, scale = (1, target.sigma) if kind.form == "data" else (-1, -target.alpha)
        expected = scale * integral(lambda place, p=power, s=sign: np.exp(s * place) * place**p, PLACES[0], TARGET)
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_time_polynomials_are_integrated_exactly(order):
    # Noise t^power on a flow model: d(sigma / alpha) = dt / (1 - t)^2 for times 0..1.
    times, goal = [0.6, 0.8, 0.85, 0.97][:order], 0.45
    nodes, target = [FLOW.level(time) for time in times], FLOW.level(goal)
    weights = higher_order_weights(FLOW, KINDS["deis_time"], nodes, target)
    weights[0] += first_order(nodes[0], target, "noise")[1]
    for power in range(order):
        expected = target.alpha * integral(lambda t, p=power: t**p / (1 - t) ** 2, times[0], goal)
        assert weights @ np.array(times) ** power == pytest.approx(expected, abs=1e-11)


def test_fixed_weights_are_adams_and_bashforths():
    levels = [VP.level(value) for value in (2.0, 3.0, 4.0, 5.0)]
    target = VP.level(1.0)
    whole = first_order(levels[0], target, "noise")[1]
    for expected in ([3 / 2, -1 / 2], [23 / 12, -4 / 3, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -3 / 8]):
        weights = higher_order_weights(VP, KINDS["adams_bashforth"], levels[: len(expected)], target) / whole
        np.testing.assert_allclose(weights + np.eye(len(expected))[0], expected, atol=1e-14)


def test_released_second_order_takes_half_the_first_order_weight():
    nodes, target = [level_at(0.0), level_at(-0.4)], level_at(0.8)
    weights = higher_order_weights(VP, KINDS["data_released"], nodes, target)
    # 1/2 alpha_t (1 - e^-h) D1 with D1 = (m0 - m1) / r, r = 0.4 / 0.8.
    assert weights[0] == pytest.approx(0.5 * target.alpha * (1 - math.exp(-0.8)) * 2)


def test_both_forms_of_the_first_step_are_one():
    source, target = FLOW.level(0.8), FLOW.level(0.3)
    sample, x0, dirt = 0.8 * 1.7 + 0.2 * -0.4, -0.4, 1.7
    for form, prediction in (("data", x0), ("noise", dirt)):
        weights = first_order(source, target, form)
        assert weights[0] * sample + weights[1] * prediction == pytest.approx(0.7 * x0 + 0.3 * dirt)


def test_step_ratio_guard_lowers_the_order():
    def guarded(coming, order):
        nodes = [level_at(0.0), level_at(-0.5), level_at(-1.0)]
        return order_within_ratio(nodes, level_at(coming), order, 2.0)

    assert guarded(0.99, 3) == 3
    assert guarded(1.01, 3) == 2
    assert guarded(1.01, 1) == 1
    assert order_within_ratio([level_at(0.0)], level_at(9.0), 2, 2.0) == 2
    assert order_within_ratio([level_at(0.0), level_at(-0.5)], NoiseLevel(1.0, 0.0), 2, 2.0) == 2


@pytest.mark.parametrize("ratio", [0, -2.0, math.nan, "2"])
def test_ratios_of_steps_are_above_0(ratio):
    with pytest.raises(FestinaError, match="largest ratio of two steps"):
        order_within_ratio([level_at(0.0)], level_at(9.0), 1, ratio)
    with pytest.raises(FestinaError, match="largest ratio of two steps"):
        vp(largest_step_ratio=ratio)


WIDE, MIDDLE = (20.0, 0.05), (4.0, 0.5)
"""First and last sigma / alpha of runs. Where errors change their sign within WIDE, their slope says nothing."""


def noises_of(frame, ends, count, spaced=np.geomspace):
    hats = spaced(*ends, count + 1)
    return (hats / (1 + hats) if frame.family == "flow" else hats).tolist()


def table_of(frame, solver, order, count, corrector=False, ends=WIDE, spaced=np.geomspace):
    """So many steps of one order, on even steps of the half log signal-to-noise ratio or of sigma / alpha."""
    noises = noises_of(frame, ends, count, spaced)
    if solver != "dpm_solver_v3":
        steps = [SolverStep(value, solver, order, corrector and place > 0) for place, value in enumerate(noises[:-1])]
        return SolverTable(tuple(steps), noises[-1])
    # Statistics of no model in particular. The last steps, which are of lower orders, are cut off.
    places = np.linspace(-6.0, 6.0, 1001)
    statistics = ModelStatistics(
        tuple(places), tuple(0.6 + 0.3 * np.sin(places)), tuple(-0.4 + 0.5 * np.cos(1.3 * places))
    )
    further = ends[1] * (ends[1] / ends[0]) ** ((order - 1) / count)
    longer = noises_of(frame, (ends[0], further), count + order - 1)
    made = v3_table(frame, longer[:-1], statistics, order, longer[-1])
    return SolverTable(made.steps[:count], noises[-1])


def error(frame, table, order):
    """Distance to the exact end, in float64. As many samples as the order are exact: where a run begins by lower
    orders, their few errors would hide the order of the rest."""
    compiled = compile_table(table, frame)
    first, last = frame.level(table.steps[0].noise), frame.level(table.final_noise)
    start = first.alpha * CENTRES[0] + first.sigma * noise(dtype=torch.float64)
    sample, run = start, SamplerRun(compiled, frame)
    for place, slot in enumerate(compiled.slots):
        sample = gaussian_end(start, first, slot.level) if place < order else sample
        sample = run.step(output(sample, slot.level, frame.prediction, CENTRES[:1]), sample)
    return (sample - gaussian_end(start, first, last)).abs().max().item()


def slope(frame, solver, order, corrector=False, ends=WIDE, spaced=np.geomspace):
    """By which power of the step the error falls."""
    errors = [
        error(frame, table_of(frame, solver, order, count, corrector, ends, spaced), order) for count in (80, 160)
    ]
    return math.log2(errors[0] / errors[1])


FRAMES = pytest.mark.parametrize("frame", [VP, FLOW], ids=["variance_preserving", "flow"])

SLOPES = [
    *(("data", order, 0) for order in (1, 2, 3)),
    ("noise", 2, 0),
    ("data_released", 2, 0),
    ("noise_released", 2, 0),
    ("deis_time", 2, 0),
    ("deis_time", 4, 0),
    # UniPC is of its order, and of one more with its corrector (2302.04867, theorem 3.1).
    *((name, order, 1) for name in ("data", "noise", "unipc_bh1", "unipc_bh2") for order in (1, 2, 3)),
    *((name, order, 0) for name in ("unipc_bh1", "unipc_bh2") for order in (2, 3)),
    *(("dpm_solver_v3", order, 0) for order in (1, 2, 3)),
]
"""Solver, order, and by how much its corrector raises it, 0 without one."""


@FRAMES
@pytest.mark.parametrize(("solver", "order", "raised"), SLOPES)
def test_orders_of_convergence(frame, solver, order, raised):
    expected = order + raised
    assert expected - 0.25 < slope(frame, solver, order, bool(raised)) < expected + 0.4


@FRAMES
@pytest.mark.parametrize("solver", ["noise", "deis_time"])
def test_orders_of_convergence_at_middle_noise(frame, solver):
    assert 2.75 < slope(frame, solver, 3, ends=MIDDLE) < 3.4


@FRAMES
@pytest.mark.parametrize("order", [2, 3, 4])
def test_fixed_weights_are_of_their_order_on_even_steps_of_sigma_over_alpha_and_elsewhere_of_2(frame, order):
    assert order - 0.3 < slope(frame, "adams_bashforth", order, ends=MIDDLE, spaced=np.linspace) < order + 0.4
    assert 1.75 < slope(frame, "adams_bashforth", order) < 2.25


@FRAMES
@pytest.mark.parametrize("form", ["data", "noise"])
def test_the_released_third_order_is_of_the_second(frame, form):
    # It takes half of the second derivative that the papers prove the third order with.
    assert 1.75 < slope(frame, f"{form}_released", 3) < 2.4
    errors = [error(frame, table_of(frame, name, 3, 160), 3) for name in (form, f"{form}_released")]
    assert errors[0] < errors[1] / 3


def test_kinds_say_what_they_cannot_do():
    nodes, target = [level_at(0.0)], level_at(1.0)
    with pytest.raises(FestinaError, match="no corrector"):
        correction_weights(VP, KINDS["deis_time"], nodes, target)
    with pytest.raises(FestinaError, match="no solver is called"):
        SolverStep(1.0, "midpoint")
    with pytest.raises(FestinaError, match="no order 4"):
        SolverStep(1.0, "data", 4)
    with pytest.raises(FestinaError, match="weighs the noise infinitely"):
        contrast_weight(FLOW.level(1.0), FLOW.level(0.5))
