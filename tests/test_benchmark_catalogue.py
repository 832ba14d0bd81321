"""The methods that a benchmark tries: all there are, each with settings that make plans."""

import inspect
from dataclasses import replace

import pytest
import torch
from denoisers.unets_image import unet_2d_condition
from tiny import PROMPT, flux_transformer, pixart_pipeline

from festina import FestinaError, Plan, methods
from festina.benchmark.catalogue import CATALOGUE, entries_named
from festina.benchmark.entries import Entry
from festina.benchmark.variants import Failed, Variant, of_entry, of_plans, untouched
from festina.calibration import calibrate

STEPS = 20
CALL = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20, "height": 16, "width": 16}
FITTED = ("gits", "olss")
"""Ways to fit a table; the method is `solver`."""

OF_UNETS = ("deepcache", "faster_diffusion")
SMALL = torch.nn.Linear(1, 1)
"""Stands for a smaller denoiser, which no plan looks at before it runs."""


@pytest.fixture(scope="module")
def pipe():
    """A transformer of as many blocks as `scenes` has."""
    return pixart_pipeline(8)


@pytest.fixture(scope="module")
def calibration(pipe):
    return calibrate(pipe, [PROMPT, f"{PROMPT} again"], STEPS, guidance=4.5, call=CALL)


def test_every_method_takes_part():
    made = {
        name
        for name in methods.__all__
        if inspect.signature(getattr(methods, name)).return_annotation in (Plan, "Plan")
    }
    assert {entry.method for entry in CATALOGUE} == made | set(FITTED)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.method)
def test_every_setting_makes_a_plan(entry, pipe, calibration):
    denoiser = unet_2d_condition() if entry.method in OF_UNETS else pipe
    found = of_entry(denoiser, entry, STEPS, lambda: calibration, {"small": SMALL})
    assert not [each.reason for each in found if isinstance(each, Failed)]
    assert len(found) >= 3
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert (each.kind, each.group, each.steps) == ("method", entry.method, len(each.plan.steps))
        assert each.steps == each.plan.settings.get("calls", STEPS)
        assert each.name.startswith(f"{entry.method} ")
        assert each.settings == each.plan.settings
        assert each.key.startswith(each.plan.key())


def test_thresholds_and_intervals_are_those_of_the_name(pipe, calibration):
    """A knob that did not arrive would leave plans that differ by their names only."""
    for entry in CATALOGUE:
        if entry.method in (*OF_UNETS, "smoothcache", "magcache", "cachequant"):
            continue
        found = of_entry(pipe, entry, STEPS, lambda: calibration, {"small": SMALL})
        assert len({each.key for each in found}) == len(found), entry.method


@pytest.mark.parametrize("steps", [2, 4, 20, 50])
def test_settings_fit_the_number_of_steps(steps):
    for entry in CATALOGUE:
        for knobs in entry.settings(steps):
            assert knobs.get("interval", 0) < steps
            assert knobs.get("gate_step", 1) <= steps


def test_what_fails_for_one_reason_is_listed_once(pipe):
    (deepcache,) = entries_named("deepcache")
    (failed,) = of_entry(pipe, deepcache, STEPS, lambda: None)
    assert (failed.name, failed.group) == ("deepcache", "deepcache")
    assert "wanted a U-Net" in failed.reason


def test_what_fails_for_several_reasons_is_listed_with_each():
    def refuse(pipe, steps, knobs, calibration):
        if knobs["n"] == 0:
            return Plan.computing_all("A", ["b.0.ff"], steps)
        raise FestinaError(f"not {knobs['n']}")

    def n(*values):
        return lambda steps: tuple({"n": value} for value in values)

    found = of_entry(None, Entry("m", n(1, 0), refuse), 3, lambda: None)
    assert [type(each) for each in found] == [Failed, Variant]
    found = of_entry(None, Entry("m", n(1, 2), refuse), 3, lambda: None)
    assert [(each.name, each.reason) for each in found] == [("m n=1", "not 1"), ("m n=2", "not 2")]


def test_what_has_no_setting_for_so_few_steps_is_listed(pipe):
    (failed,) = of_entry(pipe, *entries_named("fora"), 2, lambda: None)
    assert (failed.name, failed.reason) == ("fora", "none of its settings is for runs of 2 steps.")


def test_methods_of_cross_attention_do_not_take_joint_attention():
    (failed,) = of_entry(flux_transformer(), *entries_named("tgate"), STEPS, lambda: None)
    assert "cross-attention" in failed.reason
    found = of_entry(flux_transformer(), *entries_named("pab"), STEPS, lambda: None)
    assert all(set(each.settings["ranges"]) == {"spatial"} for each in found)


def test_names_choose_entries():
    assert entries_named("all") == CATALOGUE
    assert [entry.method for entry in entries_named("tgate, fora")] == ["fora", "tgate"]
    with pytest.raises(FestinaError, match="no such method: foura; wanted 'all', or some of fora, taylorseer"):
        entries_named("fora,foura")
    with pytest.raises(FestinaError, match="no method"):
        entries_named(" , ")


def test_fewer_steps_go_from_few_to_nearly_all():
    first, *fewer = untouched(20)
    assert (first.name, first.kind, first.steps) == ("uncached", "uncached", 20)
    assert [each.steps for each in fewer] == [2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18]
    assert [each.steps for each in untouched(3)] == [3, 2]
    assert [each.steps for each in untouched(2)] == [2]


def test_plans_of_another_number_of_steps_take_no_part():
    plan = Plan.computing_all("A", ["b.0.ff"], 4)
    good, bad = of_plans((("a", plan), ("b", plan.resample(5))), 4)
    assert (good.name, good.kind, good.plan) == ("a", "plan", plan)
    assert bad.reason == "it has 5 steps, the benchmark 4; see `festina plan convert PLAN --steps 4`."


def test_calls_are_steps_in_which_a_denoiser_is_called(pipe, calibration):
    stitch, ltc, solver = (entries_named(name)[0] for name in ("t_stitch", "ltc_accel", "solver"))
    assert {each.calls for each in of_entry(pipe, stitch, STEPS, lambda: None, {"small": SMALL})} == {STEPS}
    assert [each.calls for each in of_entry(pipe, solver, STEPS, lambda: None)][:3] == [5, 8, 12]
    replaying = of_entry(pipe, ltc, STEPS, lambda: calibration)
    assert all(each.calls == STEPS - sum(step.replays for step in each.plan.steps) < STEPS for each in replaying)


def test_what_carries_the_noise_has_the_statistics_with_it(pipe, calibration):
    """And what they say is part of what it is: with others its pictures are others."""
    (entry,) = entries_named("teleportation")
    found = of_entry(pipe, entry, STEPS, lambda: calibration)
    assert [each.calls for each in found] == [STEPS - left for left in (1, 2, 4, 6)]
    assert len({id(each.statistics) for each in found}) == 1
    assert found[0].statistics.count == len(calibration.pictures)
    moved = replace(found[0].statistics, mean=found[0].statistics.mean + 1)
    assert replace(found[0], statistics=moved).key != found[0].key
    (failed,) = of_plans([("mine", found[0].plan)], STEPS)
    assert "its sampler starts 'gaussian'" in failed.reason


def test_what_all_settings_share_is_made_once():
    made = []

    def prepare(pipe, steps, calibration):
        made.append(calibration)
        return f"{calibration} of {steps} steps"

    def make(pipe, steps, knobs, prepared):
        assert prepared == "calibration of 3 steps"
        return Plan.computing_all("A", ["b.0.ff"], knobs["n"])

    entry = Entry("m", lambda steps: ({"n": 2}, {"n": 4}), make, needs_calibration=True, prepare=prepare)
    assert [each.steps for each in of_entry(None, entry, 3, lambda: "calibration")] == [2, 4]
    assert made == ["calibration"]


def test_what_cannot_be_prepared_is_tried_once(pipe):
    tried = []

    def prepare(pipe, steps, calibration):
        tried.append(steps)
        raise FestinaError("no")

    entry = Entry("m", lambda steps: ({"n": 2}, {"n": 4}), lambda *_: None, needs_calibration=True, prepare=prepare)
    (failed,) = of_entry(None, entry, 3, lambda: "calibration")
    assert (failed.reason, tried) == ("no", [3])


def test_a_plan_whose_model_was_not_given_is_not_run(pipe):
    (stitch,) = entries_named("t_stitch")
    (failed,) = of_entry(pipe, stitch, STEPS, lambda: None)
    assert failed.reason.startswith("no model 'small' was given")
    plan = methods.t_stitch(pipe, STEPS, 0.5)
    (failed,) = of_plans([("mine", plan)], STEPS)
    assert isinstance(failed, Failed)
    (made,) = of_plans([("mine", plan)], STEPS, {"small": SMALL, "tiny": SMALL})
    assert made.models == {"small": SMALL}
    assert made.key != of_plans([("mine", plan)], STEPS, {"small": torch.nn.Linear(2, 2)})[0].key


def test_a_plan_with_a_solver_may_have_its_own_number_of_steps(pipe):
    (solver,) = entries_named("solver")
    plan = of_entry(pipe, solver, STEPS, lambda: None)[0].plan
    (made,) = of_plans([("mine", plan)], STEPS)
    assert made.steps == made.calls == 5
