"""Plans that change guidance: their normal form, key, file, resampling, prices, methods, and how they are shown."""

import json
from dataclasses import replace

import pytest
from calls import Shape, prices, traced
from guided import KINDS, table
from test_cost import plan_of
from tiny import pixart_transformer

from festina import FestinaError, Plan, Step
from festina.cost import held_bytes, plan_macs, values_held
from festina.formats import to_step_mask
from festina.methods import fora, guidance_interval, guidance_reuse, guidance_table
from festina.methods.guidance import guided
from festina.records import difference_kept

PAIR = ("transformer_blocks.0.attn1", "transformer_blocks.0.ff")
SHAPE = Shape(2, 16, 5)
MODEL = pixart_transformer()


def plan(branches, letters="", factors=None, replays=None):
    rows = [2 * letter for letter in letters or "C" * len(branches)]
    made = guided(plan_of(PAIR, *rows), factors, [KINDS[letter] for letter in branches])
    return made.replaying(replays or {})


def kinds(made):
    words = {word: letter for letter, word in KINDS.items()}
    return "".join(words[step.branches] for step in made.canonical().steps)


def letters(made):
    return "".join(step.actions[0] for step in made.canonical().steps)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("add", "add"),
        ("ddd", "add"),  # the first step has nothing to use again
        ("cdd", "cad"),  # nor has one before which only one branch ran
        ("acd", "acd"),  # the difference is still there
        ("amd", "ama"),  # what was stored before was merged, and what goes on with the other branch is forgotten
        ("amc", "amc"),
        ("mdd", "mad"),
    ],
)
def test_without_a_difference_all_branches_run(said, wanted):
    made = plan(said)
    assert kinds(made) == wanted
    assert made.canonical().canonical() == made.canonical()
    assert made.key() == plan(wanted).key()


def test_what_computes_anew():
    # The branch with the caption goes on from all to the difference, and to one answer for both.
    assert letters(plan("addcda", "CRRRRR")) == "CRRRRC"
    assert letters(plan("adad", "CRRR")) == "CRCR"
    assert letters(plan("amda", "CRRR")) == "CRCR"


def test_a_forecast_does_not_count_what_is_forgotten():
    """Where both branches run again, nothing of before is left: what follows has one value."""
    assert letters(plan("adaaa", "CCC22")) == "CCCRR"
    assert letters(plan("adaaa", "CCCC2")) == "CCCC1"
    # The branch with the caption goes on with what was stored for both.
    assert letters(plan("aaddd", "CCCC2")) == "CCCC2"
    made = plan("adaaa", "CCC2C")
    assert made.key() == plan("adaaa", "CCCRC").key()
    assert values_held(made)[:, 0].tolist() == [0, 0, 1, 0, 0]


def test_a_difference_times_nothing_is_none():
    made = plan("adda", factors=[1.0, 0.0, -0.0, 1.0])
    assert kinds(made) == "acca"
    assert made.key() == plan("acca").key()
    # Both run where both are asked for: that is another plan.
    assert plan("aa", factors=[1.0, 0.0]).key() != plan("ac").key()
    assert plan("aa", factors=[1, -0.0]).key() == plan("aa", factors=[1.0, 0.0]).key()


def test_a_factor_on_one_answer_for_both_means_nothing():
    made = plan("acm", factors=[2.0, 3.0, 4.0])
    assert [step.guidance for step in made.canonical().steps] == [2.0, 1.0, 1.0]
    assert made.key() == plan("acm", factors=[2.0, 1.0, 1.0]).key()


def test_factors_stay_where_an_answer_is_replayed():
    made = plan("aada", factors=[1.0, 2.0, 1.0, 3.0], replays={1: 1.0, 3: 0.5})
    assert kinds(made) == "aadd"
    assert [step.guidance for step in made.canonical().steps] == [1.0, 2.0, 1.0, 3.0]


def test_keys_tell_guidance_apart():
    made = [plan("aaa"), plan("aad"), plan("aac"), plan("aaa", factors=[1, 1, 2]), plan("aad", factors=[1, 1, 2])]
    assert len({each.key() for each in made}) == len(made)
    assert plan("aaa").key() == plan_of(PAIR, "CC", "CC", "CC").key()


def test_how_long_a_difference_is_kept():
    assert difference_kept(plan("aaddcda").canonical().steps) == (False, *[True] * 4, False, False)
    assert difference_kept(plan("aaad", replays={2: 1.0}).canonical().steps) == (False, True, True, False)
    assert not any(difference_kept(plan("acma").canonical().steps))


def test_files():
    made = plan("aadd", factors=[1.0, 0.96875, 1.0, 2], replays={3: 0.5})
    record = json.loads(made.to_json())
    assert record["festina_plan"] == 3
    assert record["steps"][1] == {"noise": made.steps[1].noise, "actions": "CC", "guidance": 0.96875}
    assert record["steps"][2]["branches"] == "difference"
    assert Plan.from_json(made.to_json()) == made
    assert Plan.from_json(made.to_json()).to_json() == made.to_json()
    # A factor of 1 is not written, and a plan without the new words is written as before.
    assert json.loads(plan("aac", factors=[1, 1, 1]).to_json())["festina_plan"] == 2
    assert json.loads(plan("aad").to_json())["festina_plan"] == 3
    older = json.loads(plan("aad").to_json()) | {"festina_plan": 2}
    with pytest.raises(FestinaError, match="step 2 has branches 'difference', which schema 2 does not know"):
        Plan.from_json(json.dumps(older))
    older = json.loads(plan("aa", factors=[1.0, 2.0]).to_json()) | {"festina_plan": 2}
    with pytest.raises(FestinaError, match=r"step 1 has unknown keys \['guidance'\]"):
        Plan.from_json(json.dumps(older))
    for wrong in (None, "1", True, [1]):
        record["steps"][1]["guidance"] = wrong
        with pytest.raises(FestinaError, match="'guidance' of step 1 is a number"):
            Plan.from_json(json.dumps(record))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "1", True, None])
def test_factors_are_numbers(factor):
    with pytest.raises(FestinaError, match="the factor on the guidance of step 0 is no finite number"):
        Plan("A", PAIR, (Step(1.0, "CC", guidance=factor),))
    with pytest.raises(FestinaError, match="a factor on guidance is"):
        guidance_table(MODEL, [1.0, factor])


def test_other_numbers_of_steps():
    made = plan("aacd", factors=[1.0, 2.0, 1.0, 0.5]).resample(8)
    assert [step.guidance for step in made.steps] == [1.0] * 2 + [2.0] * 2 + [1.0] * 2 + [0.5] * 2
    assert kinds(made) == "aaaaccdd"


def test_nothing_is_answered_ahead_of_a_difference():
    regions = ("conv_in:feature", "down_blocks.0..mid_block:feature")
    rows = [("CC", "all", 4), *[("RR", "all", 0)] * 2, ("RR", "difference", 3), ("RR", "difference", 0)]
    steps = tuple(Step(1 - n / 5, row, side, ahead=ahead) for n, (row, side, ahead) in enumerate(rows))
    made = Plan("UNet2DConditionModel", regions, steps).canonical()
    assert [step.ahead for step in made.steps] == [2, 0, 0, 0, 0]


def test_one_branch_is_half_a_step():
    prices_of = prices(MODEL, SHAPE)
    once = plan_macs(plan("a"), prices_of).total
    assert plan_macs(plan("adda"), prices_of).total == 3 * once
    assert plan_macs(plan("aa", factors=[1.0, 0.0]), prices_of).total == 2 * once
    assert plan_macs(plan("add", replays={2: 1.0}), prices_of).total == once + once // 2


@pytest.mark.parametrize("branches", [1, 2])
def test_bytes_by_hand(branches):
    value, answer = 2 * 16 * 16 * 4, 2 * 4 * 8 * 8 * 4  # rows x tokens x width, rows x channels x height x width
    # Half of a batched answer, or a whole one of two calls.
    difference = branches * answer // 2

    def held(made):
        return held_bytes(made, MODEL, traced(MODEL, SHAPE), 4, branches)

    assert held(plan("aac")) == 0
    assert held(plan("add")) == difference
    assert held(plan("ad", "CR")) == branches * 2 * value + difference
    # Its answer is replayed after that: only the branch with the caption has one.
    assert held(plan("addd", replays={2: 1.0})) == 2 * difference
    # What was stored for one branch does not go on where the other one runs.
    assert held(plan("acma", "CRCC")) == branches * 2 * value


def test_methods():
    made = guidance_interval(MODEL, 6, 1, 3)
    assert kinds(made) == "caaacc"
    assert (made.method, made.settings) == ("guidance_interval", {"first": 1, "last": 3})
    assert guidance_interval(MODEL, 4, 0, 3).key() == table(MODEL, "aaaa").key()
    made = guidance_reuse(MODEL, 7, 3)
    assert kinds(made) == "addadda"
    assert (made.method, made.settings) == ("guidance_reuse", {"interval": 3})
    assert guidance_reuse(MODEL, 4, 1).key() == table(MODEL, "aaaa").key()
    made = guidance_table(MODEL, [1, 2.5, 0, 1])
    assert kinds(made) == "aaca"
    assert [step.guidance for step in made.canonical().steps] == [1.0, 2.5, 1.0, 1.0]
    assert (made.method, made.settings) == ("guidance_table", {"factors": [1.0, 2.5, 0.0, 1.0]})
    assert guidance_table(MODEL, [1.0] * 4).key() == table(MODEL, "aaaa").key()
    for each in (guidance_interval(MODEL, 5, 2, 2), guidance_reuse(MODEL, 5, 2), guidance_table(MODEL, [0.0, 2.0])):
        assert Plan.from_json(each.to_json()) == each
        assert each.mask().all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: guidance_interval(MODEL, 6, -1, 3), "the first step that is guided is -1; wanted .* from 0 to 5"),
        (lambda: guidance_interval(MODEL, 6, 4, 3), "the last step that is guided is 3; wanted .* from 4 to 5"),
        (lambda: guidance_interval(MODEL, 6, 0, 6), "the last step that is guided is 6; wanted .* from 0 to 5"),
        (lambda: guidance_reuse(MODEL, 6, 0), "the interval is 0"),
        (lambda: guidance_reuse(MODEL, 0, 1), "the number of steps is 0"),
        (lambda: guidance_table(MODEL, []), "the number of factors is 0"),
        (lambda: guided(plan("aa"), [1.0]), "the plan has 2 steps"),
        (lambda: guided(plan("aa"), branches=["all"] * 3), "the plan has 2 steps"),
        (lambda: guided(plan("aa"), branches=["all", "none"]), "branches 'none', none of"),
    ],
)
def test_knobs_out_of_range(make, reason):
    with pytest.raises(FestinaError, match=reason):
        make()


def test_other_plans_can_be_guided():
    cached = fora(MODEL, 4, 2)
    made = guided(cached, [1.0, 2.0, 1.0, 0.5])
    assert made.table().tolist() == cached.table().tolist()
    assert [step.guidance for step in made.steps] == [1.0, 2.0, 1.0, 0.5]
    assert guided(made) == replace(made, measured=())
    assert guided(cached, [1.0] * 4, ["all"] * 4).key() == cached.key()


def test_a_mask_of_steps_cannot_say_it():
    with pytest.raises(FestinaError, match="guidance"):
        to_step_mask(plan("aa", factors=[1.0, 2.0]))
    with pytest.raises(FestinaError, match="branches"):
        to_step_mask(plan("ad"))


def test_it_is_shown(festina, tmp_path):
    plan("aadc", "CRRR", factors=[1.0, 0.96875, 1.0, 1.0]).save(tmp_path / "plan.json")
    code, out, _ = festina("plan", "show", tmp_path / "plan.json")
    assert code == 0
    assert " ## 2/2\n" in out
    assert " .. 0/2 guidance times 0.9688\n" in out
    assert " .. 0/2 difference\n" in out
    assert " .. 0/2 conditional\n" in out
