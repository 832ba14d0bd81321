"""DPM-Solver-v3 as tables: its two special cases, its formulas written out, orders, measured statistics, refusals."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from samplers_gaussian import FAMILIES
from samplers_pipe import ToyPipe, error
from samplers_toy import CENTRES, gaussian_end, levels_of, noise, output, run, vp
from test_samplers_pipelines import counted
from test_samplers_table import trajectory
from tiny import dit_pipeline

from festina import FestinaError
from festina.samplers import Frame, LinearWeights, PlanScheduler, SolverStep, SolverTable, compile_table
from festina.samplers.dpm_solver_v3 import ModelStatistics, v3_table
from festina.samplers.model_statistics import measure_statistics
from festina.samplers.times import table_on, uniform_log_snr, uniform_time

FRAME = Frame("variance_preserving", "epsilon", training_noise=tuple(np.geomspace(0.01, 160.0, 1000)))
FLOW = Frame("flow", "flow_prediction")
NOISES = [8.0, 4.0, 2.2, 1.1, 0.5, 0.2]


def constant(linear, growth):
    """Statistics that are the same at all levels, kept at a few uneven ones."""
    return ModelStatistics((-5.1, -0.7, 0.4, 8.0), (linear,) * 4, (growth,) * 4)


def smooth(count=1001, start=-5.0, end=5.0):
    """Statistics of no model in particular."""
    places = np.linspace(start, end, count)
    linear, growth = 0.6 + 0.3 * np.sin(places), -0.4 + 0.5 * np.cos(1.3 * places)
    return ModelStatistics(tuple(places), tuple(linear), tuple(growth))


@pytest.mark.parametrize("final", [0.0, 0.05])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("solver", "linear", "growth"), [("data", 1.0, 0.0), ("noise", 0.0, -1.0)])
def test_predictions_of_the_picture_and_of_the_noise_are_special_cases(solver, linear, growth, order, final):
    made = v3_table(FRAME, NOISES, constant(linear, growth), order, final)
    expected = trajectory(table_on(FRAME, NOISES, solver, order, final_noise=final))
    for found, wanted in zip(trajectory(made), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_steps_are_weights_of_both_predictions_and_orders_are_lowered_at_the_ends():
    made = v3_table(FRAME, NOISES, smooth(), 3)
    assert [len(step.linear.noise) for step in made.steps[:-1]] == [1, 2, 3, 3, 2]
    assert all(len(step.linear.outputs) == len(step.linear.noise) for step in made.steps[:-1])
    assert made.steps[-1].linear is None
    slots = compile_table(made, FRAME).slots
    assert 0 not in (*slots[3].update.data, *slots[3].update.noise)
    assert (slots[-1].update.sample, slots[-1].update.data) == (0, (1.0,))


def written_out(statistics, frame, noises, order, sample):
    """The formulas of the paper with b = 0, on cumulative sums over many levels."""
    fine = np.linspace(statistics.half_log_snrs[0], statistics.half_log_snrs[-1], 400_001)
    pace = fine[1] - fine[0]

    def summed(values):
        return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2)]) * pace

    linear = np.interp(fine, statistics.half_log_snrs, statistics.linear)
    whole_linear = summed(linear)
    whole_growth = summed(np.interp(fine, statistics.half_log_snrs, statistics.growth))

    def at(place, values):
        return float(np.interp(place, fine, values))

    levels, seen = [frame.level(value) for value in noises], []
    for place, (source, target) in enumerate(pairwise(levels)):
        dirt = output(sample, source, "epsilon")
        here = source.half_log_snr
        rest = (source.sigma * dirt - at(here, linear) * sample) / source.alpha
        seen.insert(0, (here, rest))
        # The steps before the last two are made, as the last of a run are lowered in order.
        used = seen[: min(order, len(levels) - 1 - place)]
        start_linear, start_growth = at(here, whole_linear), at(here, whole_growth)
        transformed = [math.exp(start_growth - at(node, whole_growth)) * value for node, value in used]
        matrix = [[(node - here) ** k / math.factorial(k) for k in range(len(used))] for node, _ in used]
        inverse = np.linalg.inv(np.array(matrix))
        ahead = np.linspace(here, target.half_log_snr, 20_001)
        rise = np.exp(np.interp(ahead, fine, whole_linear + whole_growth) - start_linear - start_growth)
        decay = math.exp(start_linear - at(target.half_log_snr, whole_linear))
        total = target.alpha / source.alpha * decay * sample
        for k in range(len(used)):
            values = rise * (ahead - here) ** k / math.factorial(k)
            integral = float(((values[1:] + values[:-1]) / 2).sum() * (ahead[1] - ahead[0]))
            derivative = sum(float(inverse[k, j]) * value for j, value in enumerate(transformed))
            total = total - target.alpha * decay * integral * derivative
        sample = total
    return sample


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_run_is_the_formulas_written_out(order):
    scheduler = vp()
    statistics = ModelStatistics((-3.0, -1.0, -0.2, 1.3, 4.0), (0.98, 0.9, 0.5, 0.3, 0.1), (0.1, 0.4, 0.2, -0.9, -1.6))
    noises = [10.0, 4.0, 2.2, 1.1, 0.5, 0.2, 0.08]
    made = v3_table(scheduler.frame, noises[:-1], statistics, order, final_noise=noises[-1])
    scheduler = PlanScheduler.from_scheduler(scheduler, made)
    scheduler.set_timesteps(6)
    levels = [scheduler.frame.level(value) for value in noises[:-1]]
    found = run(scheduler, levels, noise(dtype=torch.float64), "epsilon")
    expected = written_out(statistics, scheduler.frame, noises, order, noise(dtype=torch.float64))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_moments_are_their_integrals():
    # l + s = 0.5 everywhere: the exponential is that of a line.
    statistics = ModelStatistics((-2.0, 0.3, 3.0), (0.1, 0.8, 0.6), (0.4, -0.3, -0.1))
    start, end = -1.4, 2.1
    length, z = end - start, 0.5 * (end - start)
    first, second = math.expm1(z) / z, (math.exp(z) * (z - 1) + 1) / z**2
    third = (math.exp(z) * (z**2 - 2 * z + 2) - 2) / z**3
    expected = [length * first, length * second, length * third / 2]
    np.testing.assert_allclose(statistics.moments(start, end, 3), expected, rtol=1e-13)
    linear, growth = statistics.integrals(np.array([-2.0, 0.3, 3.0]))
    np.testing.assert_allclose(linear, [0, 0.45 * 2.3, 0.45 * 2.3 + 0.7 * 2.7], rtol=1e-14)
    np.testing.assert_allclose(linear + growth, [0, 0.5 * 2.3, 0.5 * 5.0], rtol=1e-14)


def flow_of(start, first, half_log_snr):
    """The exact sample and its level on the path of one Gaussian."""
    level = FRAME.level(math.exp(-half_log_snr))
    return gaussian_end(start, first, level), level


def step_error(order, length):
    """What the third step of a run on even steps misses, all its predictions being exact."""
    places = [0.2 + length * (place - 2) for place in range(6)]
    made = v3_table(FRAME, [math.exp(-place) for place in places[:-1]], smooth(), order, math.exp(-places[-1]))
    update = compile_table(made, FRAME).slots[2].update
    first = FRAME.level(5.0)
    start = first.alpha * CENTRES[0] + first.sigma * noise(dtype=torch.float64)
    samples, levels = zip(*(flow_of(start, first, place) for place in places), strict=True)
    said = [
        FRAME.predictions(output(sample, level, "epsilon", CENTRES[:1]), sample, level)
        for sample, level in zip(samples[2::-1], levels[2::-1], strict=True)
    ]
    found = update.sample * samples[2]
    for (picture, dirt), of_picture, of_dirt in zip(said, update.data, update.noise, strict=False):
        found = found + of_picture * picture + of_dirt * dirt
    return (found - samples[3]).abs().max().item()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_err_by_one_power_more_than_their_order_whatever_the_statistics(order):
    slope = math.log2(step_error(order, 0.2) / step_error(order, 0.1))
    assert order + 0.7 < slope < order + 1.6


def run_error(frame, order, count):
    """Distance to the exact end, on even steps of the half log signal-to-noise ratio in float64."""
    hats = np.geomspace(10.0, 0.05, count + 1)
    noises = (hats / (1 + hats) if frame.family == "flow" else hats).tolist()
    first, last = frame.level(noises[0]), frame.level(noises[-1])
    start = first.alpha * CENTRES[0] + first.sigma * noise(dtype=torch.float64)
    scheduler = FAMILIES[frame.family]()
    made = replace(v3_table(scheduler.frame, noises[:-1], smooth(), order, noises[-1]), start="given")
    scheduler = PlanScheduler.from_scheduler(scheduler, made)
    scheduler.set_timesteps(count)
    levels = [frame.level(value) for value in noises[:-1]]
    found = run(scheduler, levels, start, scheduler.frame.prediction, CENTRES[:1])
    return (found - gaussian_end(start, first, last)).abs().max().item()


@pytest.mark.parametrize("frame", [FRAME, FLOW], ids=["variance_preserving", "flow"])
@pytest.mark.parametrize("order", [1, 2])
def test_runs_converge_with_their_order_whatever_the_statistics(frame, order):
    slope = math.log2(run_error(frame, order, 40) / run_error(frame, order, 80))
    assert order - 0.25 < slope < order + 0.6


def test_the_third_order_gains_on_the_second():
    errors = {order: [run_error(FRAME, order, count) for count in (40, 80)] for order in (2, 3)}
    assert errors[3][0] < errors[2][0] / 2
    # The first and last steps are of lower orders, so that the slope of a whole run is not 3.
    assert math.log2(errors[3][0] / errors[3][1]) > 1.9


def test_pure_noise_of_a_flow_model_is_left_by_eulers_step_and_not_looked_back_on():
    levels = [1.0, 0.8, 0.5, 0.2]
    made = v3_table(FLOW, levels, smooth(), 3)
    slots = compile_table(made, FLOW).slots
    euler = compile_table(table_on(FLOW, levels, order=1), FLOW).slots[0].update
    assert slots[0].update == euler
    assert [len(slot.update.data) for slot in slots] == [1, 1, 2, 1]
    later = v3_table(FLOW, levels[1:], smooth(), 3)
    assert made.steps[1:] == later.steps


def test_tables_round_trip_through_json():
    made = v3_table(FRAME, NOISES, smooth(), 3)
    assert SolverTable.from_json(json.loads(json.dumps(made.to_json()))) == made
    plain = SolverTable((SolverStep(1.0, linear=LinearWeights((0.5,), "data", sample=0.5)),))
    assert "noise" not in plain.to_json()["steps"][0]["linear"]
    record = made.to_json()
    record["steps"][0]["linear"]["noise"] = 0.5
    with pytest.raises(FestinaError, match=r"'noise' of 'linear' of step 0 .* wanted a list of finite numbers"):
        SolverTable.from_json(record)


def test_statistics_round_trip_through_their_file(tmp_path):
    path, statistics = tmp_path / "statistics.json", smooth(7)
    statistics.save(path)
    assert ModelStatistics.load(path) == statistics
    for change, said in (
        ({"version": 2}, "version 2"),
        ({"colour": 1}, "have the keys version, half_log_snrs"),
        ({"linear": 0.5}, "are lists of numbers"),
        ({"growth": [0.5, "a"]}, "wanted finite numbers"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(FestinaError, match=said):
            ModelStatistics.load(path)
        statistics.save(path)
    path.write_text("[]")
    with pytest.raises(FestinaError, match=r"statistics\.json: .* have the keys"):
        ModelStatistics.load(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: v3_table(FRAME, NOISES, smooth(), 0), "no order 0"),
        (lambda: v3_table(FRAME, NOISES, smooth(), 4), "from 1 to 3"),
        (lambda: v3_table(FRAME, NOISES, smooth(start=-2.0)), "level 8 has sigma / alpha 8, .* from 7.389 to"),
        (lambda: v3_table(FRAME, NOISES, smooth(end=1.0)), "level 0.2 has .* from 148.4 to 0.3679"),
        (lambda: v3_table(FRAME, NOISES, smooth(end=2.0), final_noise=0.1), "level 0.1 has"),
        (lambda: v3_table(FLOW, [0.999, 0.5], smooth()), "level 0.999 has sigma / alpha 999"),
        (lambda: v3_table(FRAME, [2.0, 2.0, 1.0], smooth()), "do not fall"),
        (lambda: v3_table(FRAME, [1.0, 0.5], smooth(), final_noise=0.5), "do not fall"),
        (lambda: v3_table(FRAME, [], smooth()), "at least one"),
        (lambda: v3_table(FRAME, [161.0, 1.0], smooth()), "largest noise level is 160"),
        (lambda: ModelStatistics((0.0,), (1.0,), (0.0,)), "at least two levels"),
        (lambda: ModelStatistics((0.0, 1.0), (1.0,), (0.0, 0.0)), r"linear of a model's statistics is \(1.0,\)"),
        (lambda: ModelStatistics((0.0, 1.0), (1.0, 1.0), (0.0, math.nan)), "wanted finite numbers"),
        (lambda: ModelStatistics((0.0, 0.0), (1.0, 1.0), (0.0, 0.0)), "do not rise"),
        (lambda: LinearWeights((1.0,), "noise", noise=(0.5,)), "Add the latter to outputs"),
        (
            lambda: compile_table(SolverTable((SolverStep(1.0, linear=LinearWeights((), noise=(1.0, 1.0))),)), FRAME),
            "want 2 outputs",
        ),
        (lambda: compile_table(v3_table(FRAME, NOISES, smooth(), 3), FRAME, 2), "want 3 outputs"),
    ],
)
def test_what_cannot_be_made_is_refused(make, said):
    with pytest.raises(FestinaError, match=said):
        make()


def test_levels_a_rounding_beyond_the_statistics_are_let_pass():
    statistics = ModelStatistics((-math.log(7.99), 4.0), (1.0, 1.0), (0.0, 0.0))
    found = trajectory(v3_table(FRAME, NOISES, statistics))[-1]
    torch.testing.assert_close(found, trajectory(table_on(FRAME, NOISES))[-1], atol=1e-10, rtol=0)


VARIANCES = torch.tensor([2.0, 0.7, 0.1, 0.02], dtype=torch.float64)


class DiagonalPipe:
    """Draws from a Gaussian around 0 of different variances, from noise whose numbers are all 1 or -1.

    Along the probability flow each number stays at one deviation from 0, so that means over pictures are exact.
    """

    def __init__(self, family, variances=VARIANCES):
        self.scheduler = FAMILIES[family]()
        self.frame, self.variances = self.scheduler.frame, variances

    def __call__(self, steps):
        self.scheduler.set_timesteps(steps)
        levels = levels_of(self.scheduler)
        signs = torch.tensor([[1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
        sample = signs * (levels[0].sigma ** 2 + levels[0].alpha ** 2 * self.variances).sqrt()
        for timestep, level in zip(self.scheduler.timesteps, levels, strict=True):
            # The sample as the network wants it is asked for, as pipelines do.
            self.scheduler.scale_model_input(sample, timestep)
            said = self.said(sample, level)
            sample = self.scheduler.step(said, timestep, sample, return_dict=False)[0]
        return sample

    def said(self, sample, level):
        spread = level.alpha**2 * self.variances + level.sigma**2
        picture, dirt = level.alpha * self.variances / spread * sample, level.sigma / spread * sample
        of_picture, of_dirt = self.frame.output_weights(level)
        return of_picture * picture + of_dirt * dirt


def closed_form(half_log_snrs):
    """l and s of the Gaussian: f is (l_d - l) y in each direction, where y, the sample over alpha, has the variance
    c_d + e^(-2 lambda) and the slope -l_d y."""
    linear, growth = [], []
    for place in half_log_snrs:
        square = math.exp(-2 * place)
        spread = VARIANCES + square
        own = square / spread
        away, slope = own - own.mean(), -2 * own * (1 - own)
        change = slope - slope.mean() - away * own
        linear.append(float(own.mean()))
        growth.append(float((away * change * spread).sum() / (away**2 * spread).sum()))
    return linear, growth


@pytest.mark.parametrize("family", FAMILIES)
def test_measured_statistics_of_a_gaussian_are_their_closed_form(family):
    pipe = DiagonalPipe(family)
    noises = uniform_log_snr(pipe.frame, 120)
    before = pipe.scheduler
    found = measure_statistics(pipe, noises, lambda: pipe(240))
    assert pipe.scheduler is before
    inner = [pipe.frame.level(value).half_log_snr for value in noises if value < 1 or family != "flow"]
    np.testing.assert_allclose(found.half_log_snrs, inner, atol=1e-6)
    linear, growth = closed_form(found.half_log_snrs)
    np.testing.assert_allclose(found.linear, linear, atol=1e-6)
    np.testing.assert_allclose(found.growth, growth, atol=0.02)


def test_measuring_follows_the_run_of_the_second_order():
    # The doubled calls and the moves leave no trace in where the run goes.
    pipe, ends = DiagonalPipe("variance_preserving"), []
    noises = uniform_log_snr(pipe.frame, 7)
    measure_statistics(pipe, noises, lambda: ends.append(pipe(14)))
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, table_on(pipe.frame, noises))
    torch.testing.assert_close(ends[0], pipe(7), atol=1e-6, rtol=0)


def test_the_measured_linear_part_is_the_mean_square_of_the_noise():
    """E[trace(sigma d noise / d x)] = E|noise|^2 for exact scores, by integration by parts: no derivative is needed."""
    pipe = ToyPipe()
    noises, squares = uniform_log_snr(pipe.frame, 30), []
    found = measure_statistics(pipe, noises, lambda: pipe(60, samples=8192))
    scheduler = PlanScheduler.from_scheduler(pipe.scheduler, table_on(pipe.frame, noises))
    scheduler.set_timesteps(30)
    sample = noise(0, 8192, torch.float64)
    for timestep, level in zip(scheduler.timesteps, levels_of(scheduler), strict=True):
        said = output(sample, level, "epsilon")
        squares.append(float(said.square().mean()))
        sample = scheduler.step(said, timestep, sample, return_dict=False)[0]
    np.testing.assert_allclose(found.linear, squares, atol=0.03)


def test_measured_statistics_draw_better_than_either_prediction():
    pipe = ToyPipe(flow=True)
    frame = pipe.frame
    statistics = measure_statistics(pipe, uniform_log_snr(frame, 60), lambda: pipe(120, seed=5, samples=512))
    exact = pipe.drawn(table_on(frame, uniform_log_snr(frame, 400), order=3), seed=1)
    for steps in (8, 15):
        noises = uniform_time(frame, steps)
        ours = error(pipe.drawn(v3_table(frame, noises, statistics), seed=1), exact)
        for solver in ("data", "noise"):
            assert ours < 0.9 * error(pipe.drawn(table_on(frame, noises, solver), seed=1), exact)


def test_measuring_needs_a_move_three_levels_and_a_rest():
    pipe = DiagonalPipe("variance_preserving")
    noises = uniform_log_snr(pipe.frame, 4)
    with pytest.raises(FestinaError, match="the nudge is 0"):
        measure_statistics(pipe, noises, lambda: pipe(8), nudge=0.0)
    with pytest.raises(FestinaError, match="precision rounds the nudge away"):
        measure_statistics(pipe, noises, lambda: pipe(8), nudge=1e-20)
    with pytest.raises(FestinaError, match="2 levels below pure noise"):
        measure_statistics(pipe, noises[::3], lambda: pipe(4))
    alike = DiagonalPipe("variance_preserving", torch.full((4,), 0.5, dtype=torch.float64))
    with pytest.raises(FestinaError, match="is a multiple of the sample"):
        measure_statistics(alike, noises, lambda: alike(8))


def test_a_pipeline_is_measured_and_then_runs_the_table():
    pipe = dit_pipeline()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    before, frame, calls = pipe.scheduler, PlanScheduler.from_scheduler(pipe.scheduler).frame, []

    def call(steps):
        generator = torch.Generator().manual_seed(0)
        return {"class_labels": [1], "num_inference_steps": steps, "generator": generator, "output_type": "np"}

    statistics = measure_statistics(pipe, uniform_log_snr(frame, 5), lambda: calls.append(counted(pipe, call(10))[1]))
    assert (pipe.scheduler is before, calls, len(statistics.linear)) == (True, [10], 5)
    table = v3_table(frame, uniform_time(frame, 4), statistics)
    pipe.scheduler = PlanScheduler.from_scheduler(pipe.scheduler, table)
    first, made = counted(pipe, call(4))
    second, _ = counted(pipe, call(4))
    assert made == 4
    assert torch.equal(first, second)
