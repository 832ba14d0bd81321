"""Plans that replay: their normal form, key, file, other numbers of steps, prices, and how they are shown."""

import json
from dataclasses import replace

import pytest
from calls import Shape, prices, traced
from test_cost import plan_of
from tiny import pixart_transformer

from festina import FestinaError, Plan, Step
from festina.cost import held_bytes, plan_macs, values_held
from festina.formats import to_step_mask
from festina.gates import Gate
from festina.token_cost import maps_of
from festina.tokens import Tokens

PAIR = ("transformer_blocks.0.attn1", "transformer_blocks.0.ff")
PLAN = plan_of(PAIR, "CC", "RC", "CR", "RR")
SHAPE = Shape(2, 16, 5)


def rows(plan):
    return ["".join(row) for row in plan.canonical().table()]


def test_the_first_step_replays_nothing():
    steps = (Step(1.0, "RR", replay=0.5), Step(0.5, "CC", replay=0.5))
    plan = Plan("A", PAIR, steps).canonical()
    assert [step.replay for step in plan.steps] == [None, 0.5]
    assert rows(plan) == ["CC", "RR"]
    with pytest.raises(FestinaError, match="nothing can be replayed in step 0; wanted 1 to 3"):
        PLAN.replaying({0: 1.0})
    with pytest.raises(FestinaError, match="nothing can be replayed in step 4"):
        PLAN.replaying({4: 1.0})


def test_what_a_replaying_step_says_of_sites_means_nothing():
    base = PLAN.replaying({2: 0.9})
    said = replace(base.steps[2], actions="C3", branches="conditional", ahead=1)
    other = replace(base, steps=(*base.steps[:2], said, base.steps[3]))
    assert other.canonical() == base.canonical()
    assert other.key() == base.key()
    assert rows(base) == ["CC", "RC", "RR", "RR"]
    assert base.mask().tolist() == [[True, True], [False, True], [False, False], [False, False]]
    assert base.canonical().canonical() == base.canonical()
    assert base.computed_steps() == (0, 1)


def test_replays_have_a_key_of_their_own():
    keys = [plan.key() for plan in (PLAN, PLAN.replaying({1: 1.0}), PLAN.replaying({1: 0.9}), PLAN.replaying({2: 1.0}))]
    assert len(set(keys)) == 4
    assert PLAN.replaying({}).key() == PLAN.key()


def test_a_forecast_does_not_count_what_is_not_computed():
    plan = plan_of(PAIR, "CC", "CC", "CC", "2R")
    assert rows(plan)[3] == "2R"
    assert rows(plan.replaying({1: 1.0}))[3] == "1R"
    assert rows(plan.replaying({1: 1.0, 2: 1.0}))[3] == "RR"


def test_branches_go_on_through_a_replay():
    """What follows is compared with the step before the replayed one."""
    sides = ("all", "conditional", "all", "conditional", "all")
    steps = tuple(Step(1 - n / 5, "CC" if n == 0 else "RC", side) for n, side in enumerate(sides))
    plan = Plan("A", PAIR, steps)
    assert rows(plan) == ["CC", "RC", "CC", "RC", "CC"]
    replaying = plan.replaying({2: 1.0}).canonical()
    assert [step.branches for step in replaying.steps] == ["all", "conditional", "conditional", "conditional", "all"]
    assert rows(replaying) == ["CC", "RC", "RR", "RC", "CC"]


def test_a_map_waits_through_a_replay():
    """An attention that the plan does not name computes in every step, but not in one that replays."""
    feed, attention = PAIR[1], PAIR[0]
    partial = (Step(1.0, "C"), Step(0.6, "R"), Step(0.3, "T", shares=(0.5,)))
    plan = Plan("A", (feed,), partial, tokens=Tokens("importance")).replaying({1: 1.0}).canonical()
    assert maps_of(plan, {feed: attention}) == {attention: ((True, False, True), (True, True, False))}


def test_zero_is_one_factor():
    assert PLAN.replaying({2: -0.0}).key() == PLAN.replaying({2: 0.0}).key()


def test_a_gate_that_never_decides_is_no_gate():
    gate = Gate("transformer_blocks.0:residual", "residual", "computed", 0.1)
    blocks = ("transformer_blocks.1:residual",)
    plan = Plan("A", blocks, (Step(1.0, "C"), Step(0.5, "G")), gate=gate)
    assert plan.canonical().gate == gate
    assert plan.replaying({1: 1.0}).canonical().gate is None


def test_what_is_answered_ahead_ends_before_a_replay():
    regions = ("conv_in:feature", "down_blocks.0..mid_block:feature")
    steps = tuple(Step(1 - n / 5, "CC" if n == 0 else "RR", ahead=4 if n == 0 else 0) for n in range(5))
    plan = Plan("UNet2DConditionModel", regions, steps)
    assert [step.ahead for step in plan.canonical().steps] == [4, 0, 0, 0, 0]
    assert [step.ahead for step in plan.replaying({3: 1.0}).canonical().steps] == [2, 0, 0, 0, 0]
    assert [step.ahead for step in plan.replaying({1: 1.0}).canonical().steps] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "1", True])
def test_factors_are_numbers(factor):
    with pytest.raises(FestinaError, match="the factor of what is replayed in step 1 is no finite number"):
        PLAN.replaying({1: factor})


def test_files_of_three_schemas():
    plan = PLAN.replaying({2: 0.96875, 3: 1})
    record = json.loads(plan.to_json())
    assert record["festina_plan"] == 3
    assert record["steps"][2] == {"noise": 0.5, "actions": "CR", "replay": 0.96875}
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    # A plan that replays nothing is written as before there were replays; a file may say schema 3 all the same.
    before = json.loads(PLAN.to_json())
    assert before["festina_plan"] == 2
    assert Plan.from_json(json.dumps(before | {"festina_plan": 3})) == PLAN
    first = {name: value for name, value in before.items() if name not in ("basis", "gate")}
    assert Plan.from_json(json.dumps(first | {"festina_plan": 1})) == PLAN
    with pytest.raises(FestinaError, match=r"step 2 has unknown keys \['replay'\]"):
        Plan.from_json(json.dumps(record | {"festina_plan": 2}))
    with pytest.raises(FestinaError, match="this Festina reads schemas 1 to 4"):
        Plan.from_json(json.dumps(record | {"festina_plan": 5}))
    for wrong in (None, "1", True, [1]):
        record["steps"][2]["replay"] = wrong
        with pytest.raises(FestinaError, match="'replay' of step 2 is a number"):
            Plan.from_json(json.dumps(record))


def test_other_numbers_of_steps_replay_over_the_same_noise():
    plan = PLAN.replaying({2: 0.9})
    assert [step.replay for step in plan.resample(8).steps] == [None] * 4 + [0.9, 0.9, None, None]
    assert [step.replay for step in plan.resample(2).steps] == [None, 0.9]


def test_a_replayed_step_costs_nothing():
    model = pixart_transformer()
    table = prices(model, SHAPE)
    once = plan_macs(plan_of(PAIR, "CC"), table).total
    assert plan_macs(plan_of(PAIR, "CC", "CC", "CC").replaying({1: 1.0}), table).total == 2 * once
    served = plan_macs(plan_of(PAIR, "CC", "RC"), table).total
    assert plan_macs(plan_of(PAIR, "CC", "RC", "RC").replaying({1: 1.0}), table).total == served
    # Half a step for one branch of guidance; none for its replay.
    steps = (Step(1.0, "CC"), Step(0.6, "CC", "conditional"), Step(0.3, "CC", "conditional"))
    halves = Plan(PLAN.denoiser, PAIR, steps).replaying({2: 1.0})
    assert plan_macs(halves, table).total == once + once // 2


def test_values_wait_through_a_replay():
    assert values_held(PLAN).tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    # Now step 3 reads what steps 0 and 1 computed.
    assert values_held(PLAN.replaying({2: 1.0})).tolist() == [[1, 0], [1, 1], [1, 1], [0, 0]]
    assert values_held(PLAN.replaying({3: 1.0})).tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("branches", [1, 2])
def test_bytes_of_answers_by_hand(branches):
    model = pixart_transformer()
    value, answer = 2 * 16 * 16 * 4, 2 * 4 * 8 * 8 * 4  # rows x tokens x width, rows x channels x height x width

    def held(plan):
        return held_bytes(plan, model, traced(model, SHAPE), 4, branches)

    assert held(plan_of(PAIR, "CC", "CC", "CC").replaying({1: 1.0})) == branches * answer
    assert held(plan_of(PAIR, "CC", "CC", "RC").replaying({1: 1.0})) == branches * (value + answer)
    # The first value is freed before the answer comes: of each branch in its turn.
    assert held(plan_of(PAIR, "CC", "RC", "CC").replaying({2: 1.0})) == max(
        branches * value, (branches - 1) * value + answer, branches * answer
    )


def test_a_mask_of_steps_cannot_say_it():
    with pytest.raises(FestinaError, match="replay"):
        to_step_mask(plan_of(PAIR, "CC", "CC").replaying({1: 1.0}))


def test_it_is_shown(festina, tmp_path):
    PLAN.replaying({2: 0.96875}).save(tmp_path / "plan.json")
    code, out, _ = festina("plan", "show", tmp_path / "plan.json")
    assert code == 0
    assert "  1 0.750 .# 1/2\n  2 0.500 the last answer, times 0.9688\n  3 0.250 .. 0/2\n" in out
