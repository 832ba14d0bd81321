"""The plan: canonical form, identity, resampling, and what it cannot be."""

from dataclasses import replace

import numpy as np
import pytest

from festina.errors import FestinaError
from festina.plan import MAX_SITES, MAX_STEPS, Measurement, Plan, Step, even_noise

BLOCK, ATTN, FF = "transformer_blocks.0:residual", "transformer_blocks.0.attn1", "transformer_blocks.0.ff"


def plan_of(*rows, sites=(ATTN, FF), denoiser="D", **fields):
    steps = tuple(Step(level, row) for level, row in zip(even_noise(len(rows)), rows, strict=True))
    return Plan(denoiser, tuple(sites), steps, **fields)


def rows_of(plan):
    return [step.actions for step in plan.steps]


def fora(interval, steps=20):
    return plan_of(*("C" if step % interval == 0 else "R" for step in range(steps)), sites=("a",))


def full_plan():
    return plan_of(
        "CC",
        "R1",
        "SC",
        method="search",
        settings={"budget": 3, "nested": {"knobs": [1, 2.5, None, True, "ä"]}},
        sampler="DDIMScheduler",
        measured=(Measurement("reward", 0.5, "", "1 prompt"), Measurement("run", 2, "s", "")),
    )


@pytest.mark.parametrize(
    ("rows", "canonical"),
    [
        (("RR", "RC"), ["CC", "RC"]),
        (("S9", "CS"), ["CC", "CS"]),
        # A forecast of order k needs k + 1 computed values.
        (("CC", "1C", "CC", "3C", "2R"), ["CC", "RC", "CC", "1C", "1R"]),
        (("CC", "CC", "CC", "CC", "93"), ["CC", "CC", "CC", "CC", "33"]),
        (("CC", "CR", "C1", "21"), ["CC", "CR", "CR", "2R"]),
    ],
)
def test_canonical_form(rows, canonical):
    assert rows_of(plan_of(*rows).canonical()) == canonical


@pytest.mark.parametrize("order", [(BLOCK, ATTN), (ATTN, BLOCK)])
def test_sites_within_a_served_block_have_no_action(order):
    block = order.index(BLOCK)

    def rows(*pairs):
        return [pair if block == 0 else pair[::-1] for pair in pairs]

    plan = plan_of(*rows("RR", "RC", "CR", "SC", "CC", "C1", "1C"), sites=order)
    assert rows_of(plan.canonical()) == rows("CC", "RR", "CR", "SR", "CC", "C1", "1R")


def test_computing_in_a_served_block_feeds_no_forecast():
    plan = plan_of("CC", "RC", "C1", sites=(BLOCK, ATTN))
    assert rows_of(plan.canonical()) == ["CC", "RR", "CR"]


def test_nesting_follows_whole_names():
    # transformer_blocks.1 does not contain transformer_blocks.10.
    sites = ("transformer_blocks.1:residual", "transformer_blocks.10.ff", "transformer_blocks.1.ff")
    assert rows_of(plan_of("CCC", "RCC", sites=sites).canonical()) == ["CCC", "RCR"]


def test_canonical_is_idempotent_and_keeps_the_rest():
    plan = replace(full_plan(), steps=plan_of("R9", "3S", "CC").steps)
    once = plan.canonical()
    assert once.canonical() == once
    assert replace(once, steps=plan.steps) == plan


def test_equivalent_plans_have_one_key():
    wanted = plan_of("CC", "R1", "CR").key()
    assert plan_of("RR", "RR", "CR").key() == plan_of("CC", "RR", "CR").key() == wanted
    assert replace(plan_of("CC", "RR", "CR"), method="other", settings={"a": 1}, sampler="X").key() == wanted
    assert len(wanted) == 64


@pytest.mark.parametrize(
    "other",
    [
        plan_of("CC", "RR", "CC"),
        plan_of("CC", "RS", "CR"),
        plan_of("CC", "RR"),
        plan_of("CC", "RR", "CR", denoiser="E"),
        plan_of("CC", "RR", "CR", sites=(FF, ATTN)),
    ],
)
def test_other_runs_have_other_keys(other):
    assert other.key() != plan_of("CC", "RR", "CR").key()


def test_computed_steps():
    plan = plan_of("CC", "RR", "RC", "1S", "CR")
    assert plan.computed_steps() == (0, 2, 4)
    assert plan.computed_steps(ATTN) == (0, 4)
    assert plan.computed_steps(FF) == (0, 2)
    with pytest.raises(FestinaError, match="no site 'x'"):
        plan.computed_steps("x")


def test_table_and_mask():
    plan = plan_of("CC", "R1")
    assert plan.table().tolist() == [["C", "C"], ["R", "1"]]
    assert plan.mask().tolist() == [[True, True], [False, False]]


def test_from_mask():
    mask = np.array([[True, False], [False, True]])
    plan = Plan.from_mask("D", ["a", "b"], mask, noise=[0.9, 0.1], method="m", settings={"k": 1})
    assert plan == Plan("D", ("a", "b"), (Step(0.9, "CR"), Step(0.1, "RC")), "m", {"k": 1})
    with pytest.raises(FestinaError, match=r"shape \(2, 2\) for 3 sites"):
        Plan.from_mask("D", ["a", "b", "c"], mask)


def test_computing_all():
    plan = Plan.computing_all("D", ["a", "b"], 3)
    assert rows_of(plan) == ["CC"] * 3
    assert plan.method == "uncached"


@pytest.mark.parametrize(
    ("interval", "steps", "row"),
    [
        (2, 10, "C" * 10),
        (2, 40, "CCRR" * 10),
        (2, 15, "CRR" * 5),
        (4, 10, "CR" * 5),
        (5, 4, "CCCC"),
        (3, 60, "CC" + "RRRRRRCCC" * 6 + "RRRR"),
    ],
)
def test_resampling_fora(interval, steps, row):
    plan = fora(interval).resample(steps)
    assert "".join(rows_of(plan)) == row
    assert [step.noise for step in plan.steps] == pytest.approx(even_noise(steps))


def test_resampling_to_the_same_steps_changes_nothing():
    plan = full_plan()
    assert plan.resample(3) is plan


def test_resampling_follows_the_noise_not_the_position():
    levels, rows = (1.0, 0.9, 0.8, 0.2), ("C", "R", "S", "C")
    plan = Plan("D", ("a",), tuple(Step(level, row) for level, row in zip(levels, rows, strict=True)))
    halved = plan.resample(2)
    assert [(step.noise, step.actions) for step in halved.steps] == [(1.0, "C"), (0.8, "S")]
    doubled = plan.resample(8)
    assert [step.noise for step in doubled.steps] == pytest.approx([1, 0.95, 0.9, 0.85, 0.8, 0.5, 0.2, 0.1])
    # Halfway between two records the noisier one counts.
    assert "".join(rows_of(doubled)) == "CCRRSSCC"


@pytest.mark.parametrize("levels", [(1.0, 0.0), (1.0, 0.2), (0.7,), (1.0, 0.9, 0.0), (0.5, 0.4, 0.01)])
def test_resampling_falls_from_step_to_step(levels):
    plan = Plan("D", ("a",), tuple(Step(level, "C") for level in levels))
    for steps in (1, 2, 7, 50):
        noise = [step.noise for step in plan.resample(steps).steps]
        assert len(noise) == steps
        assert noise[0] == levels[0]
        assert min(noise) >= 0


def test_resampling_says_where_it_came_from():
    plan = full_plan().resample(6)
    assert plan.settings == {**full_plan().settings, "resampled_from_steps": 3}
    assert plan.measured == ()
    assert (plan.method, plan.sampler) == ("search", "DDIMScheduler")


@pytest.mark.parametrize("steps", [0, -1, MAX_STEPS + 1])
def test_impossible_numbers_of_steps(steps):
    with pytest.raises(FestinaError, match=f"to {steps} steps"):
        full_plan().resample(steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": ()}, "0 sites"),
        ({"steps": ()}, "0 steps"),
        ({"sites": (ATTN, ATTN)}, "once"),
        ({"sites": (ATTN,)}, "2 actions for 1 sites"),
        ({"sites": (ATTN, "")}, "a site"),
        ({"sites": (ATTN, "x" * 513)}, "a site"),
        ({"sites": (ATTN, "\udc80")}, "Unicode"),
        ({"sites": tuple(map(str, range(MAX_SITES + 1)))}, "20001 sites"),
        ({"denoiser": ""}, "'denoiser'"),
        ({"method": ""}, "'method'"),
        ({"sampler": "x" * 513}, "'sampler'"),
        ({"settings": {"a": float("nan")}}, "not JSON"),
        ({"settings": {"a": object()}}, "not JSON"),
        ({"settings": {"a": {"b": "\ud800"}}}, "Unicode"),
        ({"steps": (Step(1.0, "CX"),)}, "unknown actions"),
        ({"steps": (Step(1.1, "CC"),)}, "noise 1.1"),
        ({"steps": (Step(-0.1, "CC"),)}, "noise -0.1"),
        ({"steps": (Step(float("nan"), "CC"),)}, "noise nan"),
        ({"steps": (Step(0.5, "CC"), Step(0.5, "CC"))}, "step 1 lies at noise 0.5"),
    ],
)
def test_what_a_plan_cannot_be(change, message):
    with pytest.raises(FestinaError) as refusal:
        replace(full_plan(), **change)
    assert message in str(refusal.value)


def test_settings_are_nested_as_deep_as_a_file_allows():
    deep = {}
    for _ in range(15):
        deep = {"a": deep}
    plan = replace(full_plan(), settings=deep)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(FestinaError, match="deeper"):
        replace(plan, settings={"a": {"a": deep}})


def test_settings_are_what_the_file_gives_back():
    knobs = [1, 2]
    plan = replace(full_plan(), settings={"pair": (1, 2), "knobs": knobs})
    knobs.append(3)
    assert plan.settings == {"pair": [1, 2], "knobs": [1, 2]}
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_what_a_measurement_cannot_be(value):
    with pytest.raises(FestinaError, match="'psnr' is no finite number"):
        Measurement("psnr", value, "dB", "")
