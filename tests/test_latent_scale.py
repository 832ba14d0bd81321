"""LTC-Accel's latent form: the ratios of extrapolated steps, and weights measured along the accelerated run."""

import json
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from samplers_pipe import ToyPipe, error
from samplers_toy import levels_of, noise, output, table
from tiny import PROMPT, flux_pipeline

from festina import FestinaError
from festina.calibration.coherence import measure_coherence
from festina.methods import released_interval, replayed_steps
from festina.records import Step
from festina.samplers import Frame, LinearWeights, SolverStep, SolverTable, compile_table
from festina.samplers.compiling import unfold_table
from festina.samplers.composing import composed
from festina.samplers.latent_scale import fit_latent_scales
from festina.samplers.own import own_table
from festina.samplers.times import karras, table_on, uniform_log_snr, uniform_time

RATIOS = ("released", "noise", "paper")
FLOW = Frame("flow", "flow_prediction")
EDM = Frame("edm", "epsilon", initial_scale=80.01)
VP = Frame("variance_preserving", "epsilon", training_noise=tuple(np.geomspace(0.01, 160.0, 1000)))
LEVELS = {
    "flow": (FLOW, (1.0, 0.9, 0.7, 0.4)),
    "edm": (EDM, (80.0, 20.0, 6.0, 1.0)),
    "vp": (VP, (160.0, 9.0, 4.0, 0.5)),
}


def extrapolated(made, *places, **fields):
    """The table with extrapolations at these places."""
    steps = [
        replace(step, call="extrapolate", **fields) if place in places else step
        for place, step in enumerate(made.steps)
    ]
    return replace(made, steps=tuple(steps))


def weights(made):
    """Weights of the extrapolated steps by place."""
    return {place: step.momentum for place, step in enumerate(made.steps) if step.call == "extrapolate"}


def ratios(made, frame):
    """Ratios of the extrapolated steps by place."""
    return {step.place: step.ratio for step in unfold_table(made, frame) if step.ratio is not None}


@pytest.mark.parametrize("family", LEVELS)
def test_ratios_in_closed_form(family):
    frame, (a, b, c, d) = LEVELS[family]
    root = (lambda level: (1 - level) / level) if family == "flow" else (lambda level: 1 / level)
    wanted = {
        "released": (b - c) / (a - b),
        "noise": (c - d) / (b - c),
        "paper": (root(d) - root(c)) / (root(c) - root(b)),
    }
    for kind in RATIOS:
        made = extrapolated(SolverTable(table(a, b, c).steps, d), 2, ratio=kind)
        assert ratios(made, frame) == {2: pytest.approx(wanted[kind], rel=1e-12)}


def test_a_deleted_step_has_no_length():
    whole = extrapolated(SolverTable(table(1.0, 0.9, 0.8, 0.7, 0.5).steps, 0.1), 3, ratio="noise")
    found = ratios(
        replace(whole, steps=tuple(replace(s, call="delete") if s.noise == 0.8 else s for s in whole.steps)), FLOW
    )
    assert found == {3: pytest.approx(0.2 / 0.2, rel=1e-12)}
    assert ratios(whole, FLOW) == {3: pytest.approx(0.2 / 0.1, rel=1e-12)}


def test_ratios_of_the_released_example():
    """Stable Diffusion 3.5 as in the authors' example, shift 3, 40 steps: the two differ at the very end only."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(40)
    made = table(*scheduler.sigmas[:-1].double().tolist(), order=1)
    places = range(11, 40, 2)
    released, true = (ratios(extrapolated(made, *places, ratio=kind), FLOW) for kind in ("released", "noise"))
    assert released[39] == pytest.approx(1.101648, abs=2e-6)
    assert true[39] == pytest.approx(0.123806, abs=2e-6)
    assert all(true[place] == pytest.approx(released[place], rel=6e-3) for place in places[:-1])


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_with_the_ratio_in_noise_and_weight_1_eulers_steps_go_on(family):
    """The run is that of the grid without the level of the extrapolated step."""
    frame, levels = LEVELS[family]
    whole = SolverTable(table(*levels, order=1).steps)
    merged = compile_table(extrapolated(whole, 2, 3, ratio="noise"), frame)
    shorter = compile_table(SolverTable(whole.steps[:2]), frame)
    assert merged.noises == shorter.noises
    for found, wanted in zip(merged.slots, shorter.slots, strict=True):
        assert found.update.sample == pytest.approx(wanted.update.sample, abs=1e-12)
        assert found.update.data == pytest.approx(wanted.update.data, abs=1e-12)
    lagging = compile_table(extrapolated(whole, 2, 3), frame).slots[1].update
    assert abs(lagging.sample - shorter.slots[1].update.sample) > 0.01


def test_the_merged_grid_draws_the_same_points():
    pipe = ToyPipe(flow=True)
    whole = table(*np.linspace(1, 0.1, 10), order=1)
    skipping = pipe.drawn(extrapolated(whole, 3, 5, 7, ratio="noise"))
    merged = pipe.drawn(SolverTable(tuple(step for place, step in enumerate(whole.steps) if place not in (3, 5, 7))))
    torch.testing.assert_close(skipping, merged, atol=1e-12, rtol=0)


SAMPLERS = [
    (False, {"solver": "data", "order": 1}),
    (False, {"solver": "data", "order": 3}),
    (False, {"solver": "unipc_bh2", "order": 2, "corrector": True}),
    (True, {"solver": "data", "order": 1}),
    (True, {"solver": "adams_bashforth", "order": 3}),
]


@pytest.mark.parametrize(("flow", "solver"), SAMPLERS)
def test_weights_are_fitted_where_the_accelerated_run_will_be(flow, solver):
    """Each is the least squares weight of the change that this very run makes, towards what a call would make of it."""
    pipe = ToyPipe(flow)
    whole = table_on(pipe.frame, uniform_log_snr(pipe.frame, 9), **solver)
    made = extrapolated(whole, 3, 5, 6, ratio="noise")
    fitted = fit_latent_scales(pipe, made, lambda: pipe(9))
    assert list(weights(fitted)) == [3, 5, 6]
    for place, found in weights(fitted).items():
        before, level = fitted.steps[:place], [*(step.noise for step in fitted.steps), 0.0][place + 1]
        here = pipe.drawn(SolverTable(before, fitted.steps[place].noise))
        there = pipe.drawn(SolverTable((*before, whole.steps[place]), level))
        change = pipe.drawn(SolverTable((*before, replace(fitted.steps[place], momentum=1.0)), level)) - here
        wanted = float(((there - here) * change).sum() / change.square().sum())
        assert found == pytest.approx(wanted, rel=1e-6)
        # The closest of a grid of weights is the one nearest to it.
        grid = np.linspace(found - 0.5, found + 0.5, 101)
        errors = [float((there - here - weight * change).norm()) for weight in grid]
        assert int(np.argmin(errors)) == 50
    # Where a run with all calls would be, the second one is another.
    plain = fit_latent_scales(pipe, extrapolated(whole, 5, ratio="noise"), lambda: pipe(9))
    assert abs(weights(plain)[5] - weights(fitted)[5]) > 1e-5


def test_the_paper_s_loop_for_eulers_steps():
    """Its algorithm 2, step by step."""
    pipe, levels, skipped = ToyPipe(flow=True), [*np.linspace(1, 0.125, 8), 0.0], (3, 5)
    fitted = fit_latent_scales(pipe, extrapolated(table(*levels[:-1], order=1), *skipped), lambda: pipe(8))
    samples, wanted = [noise(0, 64, torch.float64)], {}
    for place, level in enumerate(levels[:-1]):
        here = samples[-1]
        there = here + (levels[place + 1] - level) * output(here, FLOW.level(level), "flow_prediction")
        if place in skipped:
            ratio = (level - levels[place - 1]) / (levels[place - 1] - levels[place - 2])
            base = ratio * (here - samples[-2])
            wanted[place] = float(((there - here) * base).sum() / (base * base).sum())
            there = here + wanted[place] * base
        samples.append(there)
    assert weights(fitted) == pytest.approx(wanted, rel=1e-9)
    torch.testing.assert_close(pipe.drawn(fitted), samples[-1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("flow", [False, True])
def test_a_fitted_run_does_not_depend_on_the_ratio(flow):
    pipe = ToyPipe(flow)
    whole = table_on(pipe.frame, karras(pipe.frame, 8))
    tables = [extrapolated(whole, 3, 5, ratio=kind) for kind in RATIOS]
    fitted = [fit_latent_scales(pipe, made, lambda: pipe(8)) for made in tables]
    products = [[weights(made)[place] * ratio for place, ratio in ratios(made, pipe.frame).items()] for made in fitted]
    assert products[0] == pytest.approx(products[1], rel=1e-9)
    assert products[0] == pytest.approx(products[2], rel=1e-9)
    assert len({round(weights(made)[5], 6) for made in fitted}) == 3
    for made in fitted[1:]:
        torch.testing.assert_close(pipe.drawn(made), pipe.drawn(fitted[0]), atol=1e-9, rtol=0)


def test_pictures_of_one_call_share_a_weight_and_runs_are_averaged():
    pipe = ToyPipe()
    made = extrapolated(table_on(pipe.frame, uniform_log_snr(pipe.frame, 8)), 3, 5)
    alone = [weights(fit_latent_scales(pipe, made, lambda seed=seed: pipe(8, seed, 4))) for seed in (1, 2)]
    both = weights(fit_latent_scales(pipe, made, lambda: [pipe(8, seed, 4) for seed in (1, 2)]))
    assert alone[0][3] != pytest.approx(alone[1][3], rel=1e-4)
    assert both == {place: pytest.approx((alone[0][place] + alone[1][place]) / 2, rel=1e-12) for place in (3, 5)}


def test_one_network_call_per_step_and_nothing_left_behind():
    pipe, source = ToyPipe(), []
    whole = table_on(pipe.frame, uniform_log_snr(pipe.frame, 8))
    made = extrapolated(whole, 3, 5)
    made = replace(made, steps=(*made.steps[:6], replace(made.steps[6], call="delete"), made.steps[7]))
    before = pipe.scheduler

    def draw():
        source.append(pipe.scheduler)
        pipe(8)

    fitted = fit_latent_scales(pipe, made, draw)
    assert pipe.scheduler is before
    assert [float(level) for level in source[0].sigmas] == pytest.approx(
        [*(step.noise for place, step in enumerate(whole.steps) if place != 6), 0.0]
    )
    assert "step" not in vars(source[0])
    others = [(step, old) for step, old in zip(fitted.steps, made.steps, strict=True) if step.call != "extrapolate"]
    assert all(step == old for step, old in others)
    assert SolverTable.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


def test_levels_before_the_shift_are_fitted_after_it():
    pipe = ToyPipe(flow=True)
    before = extrapolated(SolverTable(table(1.0, 0.75, 0.5, 0.25, order=1).steps, before_shift=True), 2)
    after = extrapolated(table(1.0, 0.9, 0.75, 0.5, order=1), 2)
    fitted = fit_latent_scales(pipe, before, lambda: pipe(4))
    assert weights(fitted) == pytest.approx(weights(fit_latent_scales(pipe, after, lambda: pipe(4))), rel=1e-9)
    assert fitted.before_shift
    assert [step.noise for step in fitted.steps] == [1.0, 0.75, 0.5, 0.25]


def test_for_eulers_steps_the_weights_are_the_factors_of_replayed_outputs():
    pipe = flux_pipeline()
    call = {"height": 16, "width": 16, "max_sequence_length": 20}

    def draw():
        start = torch.Generator().manual_seed(0)
        pipe(PROMPT, num_inference_steps=8, generator=start, output_type="latent", **call)

    made = extrapolated(own_table(pipe, 8, draw), 3, 5, ratio="noise")
    found = weights(fit_latent_scales(pipe, made, draw))
    assert found == pytest.approx(measure_coherence(pipe, [PROMPT], 8, (3, 5), call=call).mean_factors(), rel=1e-4)


def test_samples_of_few_bits_are_not_subtracted():
    """The fit goes on from exact samples, as a run by the table does: differences of rounded ones are noise."""
    pipe = ToyPipe()
    made = extrapolated(table_on(pipe.frame, uniform_log_snr(pipe.frame, 8), order=1), 3, 5)

    def drawn(dtype):
        pipe.scheduler.set_timesteps(8)
        sample = noise(0, 64, torch.float64).to(dtype)
        for timestep, level in zip(pipe.scheduler.timesteps, levels_of(pipe.scheduler), strict=True):
            said = output(sample.double(), level, "epsilon").to(sample.dtype)
            sample = pipe.scheduler.step(said, timestep, sample).prev_sample
        assert sample.dtype == dtype

    exact = weights(fit_latent_scales(pipe, made, lambda: drawn(torch.float64)))
    coarse = weights(fit_latent_scales(pipe, made, lambda: drawn(torch.bfloat16)))
    assert coarse == pytest.approx(exact, abs=0.002)


def test_a_plan_keeps_the_ratio():
    made = extrapolated(table(1.0, 0.8, 0.5, 0.2), 2, ratio="noise", momentum=0.9)
    steps = [Step(1 - place / 3, "C") for place in range(3)]
    assert composed(made, steps).steps[2] == SolverStep(0.5, call="extrapolate", momentum=0.9, ratio="noise")


def test_what_cannot_be_fitted():
    pipe = ToyPipe(flow=True)
    whole = table(1.0, 0.8, 0.5, 0.2, order=1)
    made = extrapolated(whole, 2)
    still = replace(whole.steps[1], linear=LinearWeights((0.0,), sample=1.0))
    source = pipe.scheduler

    def midway():
        pipe.scheduler.set_timesteps(4)
        pipe.scheduler.set_begin_index(2)
        pipe.scheduler.step(noise(), pipe.scheduler.timesteps[2], noise())

    for wrong, draw, message in (
        (whole, lambda: pipe(4), "no step of the table is extrapolated"),
        (replace(made, start="gaussian"), lambda: pipe(4), 'the table\'s start is "gaussian"'),
        (made, lambda: None, "nothing was drawn"),
        (made, lambda: pipe(3), "a table of 4 steps with 4 network calls, and the pipeline asks for 3"),
        (made, midway, "a run began at step 2. Let every run begin at noise"),
        (
            replace(made, steps=(made.steps[0], still, *made.steps[2:])),
            lambda: pipe(4),
            "the samples do not change in the step before an extrapolated one",
        ),
    ):
        with pytest.raises(FestinaError, match=message):
            fit_latent_scales(pipe, wrong, draw)
        assert pipe.scheduler is source


@pytest.mark.parametrize("flow", [False, True])
def test_what_measured_weights_gain(flow):
    """DDIM's steps come closer to the run with all calls than by weight 1 with any ratio; Euler's of a flow do not."""
    pipe = ToyPipe(flow)
    whole = table_on(pipe.frame, uniform_time(pipe.frame, 20), order=1)
    left = replayed_steps(released_interval(20))
    full, made = pipe.drawn(whole, 9), extrapolated(whole, *left)
    measured = error(pipe.drawn(fit_latent_scales(pipe, made, lambda: pipe(20, 1)), 9), full)
    plain = [error(pipe.drawn(extrapolated(whole, *left, ratio=kind), 9), full) for kind in RATIOS]
    if flow:
        assert measured == pytest.approx(plain[1], rel=0.05)
        assert plain[2] > 2 * plain[1]
    else:
        assert measured < 0.75 * min(plain)
