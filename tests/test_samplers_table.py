"""Tables of steps, and what they are compiled to: folding, deleting, extrapolating, explicit weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from samplers_toy import noise, output

from festina import FestinaError
from festina.samplers import Frame, LinearWeights, SolverStep, SolverTable
from festina.samplers.coefficients import first_order
from festina.samplers.compiling import compile_table
from festina.samplers.run import SamplerRun

FRAME = Frame("variance_preserving", "epsilon", training_noise=tuple(np.geomspace(0.01, 160.0, 1000)))
FLOW = Frame("flow", "flow_prediction")
NOISES = [8.0, 4.0, 2.2, 1.1, 0.5, 0.2]


def table_at(*noises, **settings):
    """A table at other levels."""
    return SolverTable(tuple(SolverStep(value, **settings) for value in noises))


def table(*changes, final=0.0, **settings):
    """A table at NOISES whose steps have the settings, with changes {place: {field: value}}."""
    steps = [SolverStep(value, **settings) for value in NOISES]
    for change in changes:
        for place, fields in change.items():
            steps[place] = replace(steps[place], **fields)
    return SolverTable(tuple(steps), final)


def trajectory(made, frame=FRAME, first_call=0, seed=0):
    """The samples that the network sees, and the last one, in float64."""
    compiled = compile_table(made, frame, first_call)
    run, samples = SamplerRun(compiled, frame), [noise(seed, dtype=torch.float64)]
    for slot in compiled.slots:
        samples.append(run.step(output(samples[-1], slot.level, frame.prediction), samples[-1]))
    assert run.held == 0
    return samples


def test_a_deleted_step_is_a_step_that_is_not_there():
    deleted = table({2: {"call": "delete"}, 3: {"call": "delete"}}, order=3)
    shorter = SolverTable(tuple(step for step in deleted.steps if step.call == "network"))
    assert deleted.calls == 4
    assert compile_table(deleted, FRAME) == compile_table(shorter, FRAME)


@pytest.mark.parametrize(
    ("kind", "noises"), [("released", (4, 4, 2, 1)), ("noise", (4, 2, 2, 1)), ("paper", (4, 2, 2, 1))]
)
def test_nothing_is_extrapolated_from_a_step_of_no_length(kind, noises):
    steps = list(table_at(*noises).steps)
    steps[2] = replace(steps[2], call="extrapolate", ratio=kind)
    with pytest.raises(FestinaError, match=r"an extrapolation at noise 2\.0 follows a step of length 0"):
        compile_table(SolverTable(tuple(steps)), FRAME)


@pytest.mark.parametrize("kind", ["released", "noise", "paper"])
def test_extrapolations_equal_the_explicit_loop(kind):
    going_on = {"call": "extrapolate", "ratio": kind}
    made = table({2: going_on | {"momentum": 0.8}, 3: going_on | {"momentum": 1.1}}, order=1)
    compiled = compile_table(made, FRAME)
    assert compiled.noises == (8.0, 4.0, 0.5, 0.2, 0.0)
    samples = [noise(dtype=torch.float64)]
    for place, value in enumerate(NOISES[:4]):
        level, x = FRAME.level(value), samples[-1]
        if place in (2, 3):
            first, second, third = NOISES[place - 2 :][:3] if kind == "released" else NOISES[place - 1 :][:3]
            ratio = (second - third) / (first - second)
            if kind == "paper":
                ratio = (1 / third - 1 / second) / (1 / second - 1 / first)
            samples.append(x + {2: 0.8, 3: 1.1}[place] * ratio * (x - samples[-2]))
        else:
            picture = FRAME.predictions(output(x, level, "epsilon"), x, level)[0]
            weights = first_order(level, FRAME.level(NOISES[place + 1]), "data")
            samples.append(weights[0] * x + weights[1] * picture)
    seen = trajectory(made)
    torch.testing.assert_close(seen[1], samples[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(seen[2], samples[4], atol=1e-12, rtol=0)


def test_a_corrector_reaches_across_an_extrapolation():
    # The corrected sample does not depend on where the extrapolation left the sample, only the output does.
    plain = compile_table(table({2: {"call": "delete"}, 3: {"corrector": True}}), FRAME)
    jumping = compile_table(table({2: {"call": "extrapolate"}, 3: {"corrector": True}}), FRAME)
    assert jumping.slots[2].correction == plain.slots[2].correction
    assert jumping.slots[1].update != plain.slots[1].update


@pytest.mark.parametrize("solver", ["data", "noise", "adams_bashforth", "deis_time", "unipc_bh2", "data_released"])
def test_compiled_weights_written_as_linear_steps_reproduce_a_solver(solver):
    made = table(solver=solver, order=3, final=0.05)
    steps = []
    for step, slot in zip(made.steps, compile_table(made, FRAME).slots, strict=True):
        update = slot.update
        # x = alpha x0 + sigma noise at the current level turns its picture into sample and noise.
        level = slot.level
        sample = update.sample + update.data[0] / level.alpha
        dirt = [0.0] * max(len(update.noise), 1)
        dirt[: len(update.noise)] = update.noise
        dirt[0] -= update.data[0] * level.sigma / level.alpha
        if len(update.data) > 1:
            linear = LinearWeights(update.data, "data", sample=update.sample)
        else:
            linear = LinearWeights(tuple(dirt), "output", sample=sample)
        steps.append(SolverStep(step.noise, linear=linear))
    expected = trajectory(made)[-1]
    torch.testing.assert_close(trajectory(SolverTable(tuple(steps), 0.05))[-1], expected, atol=1e-10, rtol=0)


def test_raw_outputs_of_flow_models_are_weighed_as_they_are():
    linear = LinearWeights((-0.3, 0.1), anchor=0.5, sample=0.25)
    made = SolverTable((SolverStep(1.0, order=1), SolverStep(0.6, linear=linear)), 0.2)
    seen = trajectory(made, FLOW)
    said = [
        output(sample, FLOW.level(value), "flow_prediction") for sample, value in zip(seen, (1.0, 0.6), strict=False)
    ]
    expected = 0.25 * seen[1] + 0.5 * seen[0] - 0.3 * said[1] + 0.1 * said[0]
    torch.testing.assert_close(seen[2], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("reference", ["first", "previous"])
def test_contrast_extrapolates_the_noise_of_the_first_order_term(reference):
    made = table(*[{place: {"contrast": 0.3, "contrast_reference": reference}} for place in range(6)], order=1)
    seen, dirts, x = trajectory(made), [], noise(dtype=torch.float64)
    for place, value in enumerate(NOISES):
        level = FRAME.level(value)
        torch.testing.assert_close(seen[place], x, atol=1e-11, rtol=0)
        dirts.append(output(x, level, "epsilon"))
        other = dirts[0] if reference == "first" else dirts[max(place - 1, 0)]
        dirt = 1.3 * dirts[-1] - 0.3 * other
        target = FRAME.level([*NOISES, 0.0][place + 1])
        x = target.alpha * (x - level.sigma * dirt) / level.alpha + target.sigma * dirt
    torch.testing.assert_close(seen[-1], x, atol=1e-11, rtol=0)


def test_orders_are_lowered_for_missing_outputs_and_at_the_clean_end():
    slots = compile_table(table(order=3), FRAME).slots
    assert [len(slot.update.data) for slot in slots] == [1, 2, 3, 3, 3, 1]
    assert slots[-1].update.sample == 0
    assert slots[-1].update.data == (1.0,)
    fixed = compile_table(table(solver="adams_bashforth", order=4), FRAME).slots
    assert [len(slot.update.noise) for slot in fixed] == [1, 2, 3, 4, 4, 4]


def test_beginning_midway_is_a_run_of_the_rest():
    made = table({2: {"call": "extrapolate"}}, order=3, corrector=True)
    rest = SolverTable(made.steps[3:])
    assert compile_table(made, FRAME, first_call=2) == compile_table(rest, FRAME)
    assert compile_table(made, FRAME, first_call=2).slots[0].correction is None


def test_repeated_levels_stay_in_place_and_count_once():
    made = SolverTable(tuple(SolverStep(value, order=3) for value in (4.0, 4.0, 2.0, 2.0, 1.0)), 0.5)
    slots = compile_table(made, FRAME).slots
    assert slots[0].update.sample == 1
    assert sum(slots[0].update.data) == 0
    # At 1.0 the outputs are those at 1.0, 2.0 (the newer one) and 4.0 (the newer one).
    assert [weight != 0 for weight in slots[4].update.data] == [True, True, False, True]
    seen, plain = trajectory(made), trajectory(SolverTable(tuple(made.steps[place] for place in (0, 2, 4)), 0.5))
    torch.testing.assert_close(seen[-1], plain[-1], atol=1e-12, rtol=0)


def test_predictions_are_let_go_after_their_last_read():
    compiled = compile_table(table(order=2), FRAME)
    assert compiled.last_reads("noise") == (-1,) * 6
    assert compiled.last_reads("data") == (1, 2, 3, 4, 4, 5)
    run, x = SamplerRun(compiled, FRAME), noise()
    for slot in compiled.slots:
        x = run.step(output(x, slot.level, "epsilon"), x)
        assert run.held <= 1


def test_tables_round_trip_through_json():
    made = table(
        {1: {"linear": LinearWeights((0.5, 0.25), "noise", previous=0.1), "network_time": 3.5}},
        {3: {"call": "extrapolate", "momentum": 0.7, "ratio": "paper"}},
        {4: {"contrast": 0.1, "contrast_reference": "first", "corrector": True}},
        solver="unipc_bh1",
    )
    assert SolverTable.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_the_released_ratio_is_not_written():
    released = table({2: {"call": "extrapolate"}, 3: {"call": "extrapolate", "ratio": "noise"}}).to_json()
    assert ["ratio" in step for step in released["steps"]] == [False, False, False, True, False, False]
    assert SolverTable.from_json(released).steps[2].ratio == "released"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([1.0], "a table is \\[1.0\\]; wanted an object"),
        ({"steps": 4}, "'steps' of a table is 4; wanted a list of steps"),
        ({"steps": [3.0]}, "step 0 of a table is 3.0; wanted an object"),
        ({"steps": [{"noise": "1"}]}, "'noise' of step 0 of a table is '1'; wanted a finite number"),
        ({"steps": [{"noise": 1.0}, {"noise": None}]}, "'noise' of step 1 of a table is None"),
        ({"steps": [{"noise": float("nan")}]}, "'noise' of step 0 of a table is nan"),
        ({"steps": [{"noise": 1.0, "order": 2.0}]}, "'order' of step 0 of a table is 2.0; wanted a whole number"),
        ({"steps": [{"noise": 1.0, "order": True}]}, "'order' of step 0 of a table is True"),
        ({"steps": [{"noise": 1.0, "solver": ["data"]}]}, "'solver' of step 0 .*; wanted a text"),
        ({"steps": [{"noise": 1.0, "corrector": "no"}]}, "'corrector' .* is 'no'; wanted true or false"),
        ({"steps": [{"noise": 1.0, "network_time": "999"}]}, "'network_time' .* wanted a finite number or null"),
        ({"steps": [{"noise": 1.0, "linear": [0.5]}]}, "'linear' .* wanted an object or null"),
        (
            {"steps": [{"noise": 1.0, "linear": {"outputs": 0.5}}]},
            "'outputs' of 'linear' of step 0 .* is 0.5; wanted a list of finite numbers",
        ),
        ({"steps": [{"noise": 1.0, "linear": {"outputs": ["a"]}}]}, "'outputs' .* wanted a list of finite numbers"),
        ({"steps": [{"noise": 1.0}], "final_noise": None}, "'final_noise' of a table is None; wanted a finite number"),
        ({"steps": [{"noise": 1.0}], "before_shift": 1}, "'before_shift' of a table is 1; wanted true or false"),
        ({"steps": [{"noise": 1.0}], 3: 1}, "unknown keys \\['3'\\]"),
    ],
)
def test_values_of_the_wrong_kind_are_named(record, said):
    with pytest.raises(FestinaError, match=said):
        SolverTable.from_json(record)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SolverTable(()), "begins with a step"),
        (lambda: SolverTable((SolverStep(1.0), SolverStep(2.0))), "Noise falls"),
        (lambda: SolverTable((SolverStep(1.0),), 2.0), "Noise falls"),
        (lambda: SolverTable((SolverStep(1.0), SolverStep(0.5, call="extrapolate"))), "two steps before"),
        (lambda: SolverStep(1.0, call="guess"), "knows no 'guess'"),
        (lambda: SolverStep(1.0, call="extrapolate", ratio="golden"), "knows no 'golden'. Use one of released, noise,"),
        (lambda: SolverStep(1.0, ratio="noise"), "'noise' is given to a step that is not extrapolated"),
        (lambda: SolverStep(1.0, call="delete", ratio="paper"), "'paper' is given to a step that is not extrapolated"),
        (lambda: table({5: {"call": "extrapolate", "ratio": "paper"}}), "infinite at noise 0. Use 'noise' there"),
        (lambda: LinearWeights((1.0,), "score"), "form 'score'"),
        (lambda: SolverTable.from_json({"steps": [{"noise": 1.0, "colour": 1}]}), "unknown keys"),
        (lambda: SolverTable.from_json({"steps": [{"order": 1}]}), "no \\['noise'\\]"),
        (lambda: compile_table(SolverTable((SolverStep(1.5),)), FLOW), "no noise level"),
        (lambda: compile_table(SolverTable((SolverStep(161.0),)), FRAME), "largest noise level is 160, and .* at 161"),
        (
            lambda: SolverTable((SolverStep(1.0), SolverStep(0.5, network_time=500.0)), before_shift=True),
            "before_shift moves its level away",
        ),
        (
            lambda: compile_table(table_at(1.0, 1.0, 0.5, contrast=0.1), FLOW),
            "step from pure noise weighs the noise infinitely",
        ),
        (lambda: compile_table(SolverTable((SolverStep(1.5),), before_shift=True), FRAME), "no shift"),
        (lambda: compile_table(SolverTable((SolverStep(1.0, linear=LinearWeights((1.0, 1.0))),)), FRAME), "want 2"),
        (lambda: compile_table(table(), FRAME, 6), "none of them is number 6"),
        (lambda: compile_table(table(), FRAME, -1), "none of them is number -1"),
        (
            lambda: compile_table(table({3: {"linear": LinearWeights((1.0,), anchor=1.0)}}), FRAME, 1),
            "weighs the sample that a run starts from",
        ),
        (lambda: compile_table(table({1: {"corrector": True}}, solver="deis_time"), FRAME), "no corrector"),
        (
            lambda: compile_table(SolverTable(tuple(SolverStep(x, "deis_time") for x in (160.1, 160.05))), FRAME),
            "distinct training times",
        ),
    ],
)
def test_tables_that_cannot_run_raise(make, said):
    with pytest.raises(FestinaError, match=said):
        make()
