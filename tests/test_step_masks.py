"""Step masks: what is kept, what is refused."""

from dataclasses import replace

import pytest

from festina.errors import FestinaError
from festina.formats import from_step_mask, to_step_mask
from festina.gates import Gate
from festina.plan import CONDITIONAL, Plan, Step
from festina.tokens import Tokens


def test_step_masks():
    plan = from_step_mask([1, 0, 0, 1], "D", ["a", "b"])
    assert [step.actions for step in plan.steps] == ["CC", "RR", "RR", "CC"]
    assert to_step_mask(plan) == [1, 0, 0, 1]
    # The first step computes whatever the mask says.
    assert to_step_mask(from_step_mask([0, 0, 1], "D", ["a"])) == [1, 0, 1]


def test_partial_steps_need_a_share():
    rows = ("CCCCCCCCCC", "CCCRRRRRRR", "CRRRRRRRRR", "RRRRRRRRRR")
    steps = tuple(Step(1 - 0.1 * number, row) for number, row in enumerate(rows))
    plan = Plan("D", tuple("abcdefghij"), steps)
    with pytest.raises(FestinaError, match="step 1 computes 30% of its sites"):
        to_step_mask(plan)
    assert to_step_mask(plan, share=0.3) == [1, 1, 0, 0]
    assert to_step_mask(plan, share=0.31) == [1, 0, 0, 0]
    assert to_step_mask(plan, share=0.1) == [1, 1, 1, 0]


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"actions": "S"}, r"the actions \['S'\]"),
        ({"actions": "1"}, r"the actions \['1'\]"),
        ({"actions": "T", "shares": (0.5,)}, r"the actions \['T'\]"),
        ({"injected": 0.003}, "injected"),
        ({"branches": CONDITIONAL}, "branches"),
    ],
)
def test_a_plan_that_does_more_is_no_mask(share, changed, named):
    """Neither computing nor reusing: a mask has no word for it, whatever the share."""
    steps = [Step(1 - 0.2 * number, "C") for number in range(3)]
    plan = Plan("D", ("a.0.ff",), (*steps[:2], replace(steps[2], **changed)), tokens=Tokens("random"))
    with pytest.raises(FestinaError, match=f"a mask of steps knows compute and reuse only; step 2 .* has {named}"):
        to_step_mask(plan, share)


def test_a_gated_plan_is_no_mask():
    gate = Gate("a.0:residual", "residual", "computed", 0.1)
    plan = Plan("D", ("a.1..2:residual",), (Step(1, "C"), Step(0.5, "G")), gate=gate)
    with pytest.raises(FestinaError, match=r"step 1 of this plan has the actions \['G'\] besides"):
        to_step_mask(plan)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_shares_out_of_range(share):
    with pytest.raises(FestinaError, match="a share of"):
        to_step_mask(from_step_mask([1], "D", ["a"]), share)


@pytest.mark.parametrize("mask", [[], [2], [1, -1], [0.5], ["1"], [None]])
def test_masks_of_other_values(mask):
    with pytest.raises(FestinaError, match="one 0 or 1 per step"):
        from_step_mask(mask, "D", ["a"])
