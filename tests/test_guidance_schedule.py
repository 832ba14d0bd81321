"""The search over strengths of guidance by step: known optima, what is judged how often, and what its plans run."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from guided import ran
from tiny import flux_pipeline, generate, pixart_pipeline

import festina
from festina import FestinaError, Plan
from festina.methods import fora, guidance_table
from festina.methods.guidance import guided
from festina.plan import ALL, CONDITIONAL
from festina.search.guidance_schedule import GuidanceSettings, guided_steps, search_guidance

TWO_CALLS = {"negative_prompt": ["a black background"], "true_cfg_scale": 3.0}


def toy(steps):
    return Plan.computing_all("Toy", ("transformer_blocks.0.ff",), steps)


def factors_of(plan):
    return np.array([step.guidance if step.branches == ALL else 0.0 for step in plan.steps])


class Valley:
    """A loss with one factor that is best in each step, each of its own weight; counts how often it is asked."""

    def __init__(self, weights, best):
        self.weights, self.best, self.asked = np.array(weights), np.array(best), []

    def __call__(self, plan):
        factors = factors_of(plan)
        self.asked.append(tuple(factors))
        return float((self.weights * (factors - self.best) ** 2).sum())

    def front(self):
        """The least loss for each number of guided steps: the dropped ones are those where least is lost."""
        lost = np.sort(self.weights * self.best**2)
        return [lost[: len(lost) - kept].sum() for kept in range(len(lost) + 1)]


def test_the_best_steps_and_strengths_are_found():
    judge = Valley([0.9, 0.3, 0.8, 0.5, 0.2], [1.0, 2.5, 1.5, 0.75, 2.0])
    found = search_guidance(toy(5), judge)
    assert [each.guided_steps for each in found] == [0, 1, 2, 3, 4, 5]
    for each, wanted in zip(found, judge.front(), strict=True):
        assert wanted - 1e-9 <= each.loss < wanted + 0.05
        assert each.loss == judge(each.plan)
    two = factors_of(found[2].plan)
    assert two == pytest.approx([0, 2.5, 1.5, 0, 0], abs=0.15)
    assert [step.branches for step in found[2].plan.steps] == [CONDITIONAL, ALL, ALL, CONDITIONAL, CONDITIONAL]


def test_a_larger_strength_in_few_steps_makes_up_for_none_in_others():
    """The loss looks at the sum only: two steps reach it at the largest factor, one does not."""
    found = search_guidance(toy(6), lambda plan: abs(float(factors_of(plan).sum()) - 5.0))
    assert [each.guided_steps for each in found] == [0, 1, 2]
    assert [each.loss for each in found] == pytest.approx([5.0, 2.0, 0.0], abs=1e-6)


def test_each_schedule_is_judged_once_and_all_are_of_the_grid():
    judge = Valley([1.0, 0.5, 0.25], [1.0, 1.0, 1.0])
    settings = GuidanceSettings(population=8, generations=12, largest=2.0, threshold=0.5, grain=0.25)
    found = search_guidance(toy(3), judge, settings)
    assert len(set(judge.asked)) == len(judge.asked) <= 8 * 12
    grid = {0.0, *np.arange(0.5, 2.01, 0.25).tolist()}
    assert set(itertools.chain(*judge.asked)) <= grid
    assert judge.asked[:2] == [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
    assert {each.loss for each in found} <= {judge(each.plan) for each in found}
    # No schedule that was judged is better than what is returned for its number of guided steps.
    judged = {factors: judge(guided_plan(factors)) for factors in set(judge.asked)}
    for factors, loss in judged.items():
        assert any(each.guided_steps <= np.count_nonzero(factors) and each.loss <= loss for each in found)


def guided_plan(factors):
    return guided(toy(len(factors)), list(factors), [ALL if factor else CONDITIONAL for factor in factors])


def test_a_seed_decides():
    def front(seed):
        judge = Valley([1.0, 0.5, 0.25, 0.4], [1.0, 2.0, 0.5, 0.8])
        settings = GuidanceSettings(population=6, generations=5, seed=seed)
        return search_guidance(toy(4), judge, settings), judge.asked

    assert front(3) == front(3)
    assert front(3)[1] != front(4)[1]


def test_a_loss_that_is_not_finite_is_left_out():
    def judge(plan):
        factors = factors_of(plan)
        return float("nan") if factors[0] == 0 else float(factors.sum())

    found = search_guidance(toy(3), judge)
    assert found[0].guided_steps == 1
    assert factors_of(found[0].plan) == pytest.approx([0.5, 0, 0])
    assert len(found) == 1
    with pytest.raises(FestinaError, match="plans judged has a finite loss"):
        search_guidance(toy(3), lambda plan: float("inf"), GuidanceSettings(population=4, generations=1))


def test_what_the_plans_say():
    plan = replace(toy(4), method="fora", settings={"interval": 1})
    settings = GuidanceSettings(population=4, generations=2)
    found = search_guidance(plan, Valley([1.0] * 4, [1.0] * 4), settings)
    assert all(each.plan.method == "fora" and each.plan.settings["interval"] == 1 for each in found)
    assert all(each.plan.settings["guidance_search"]["generations"] == 2 for each in found)
    assert all(Plan.from_json(each.plan.to_json()) == each.plan for each in found)
    assert found[-1].guided_steps == guided_steps(found[-1].plan) == 4
    # The pipeline's own strength everywhere is the plan itself.
    assert found[-1].loss == 0
    assert found[-1].plan.key() == plan.key()
    assert guided_steps(guided_plan([1, 1, 0, 2]).replaying({1: 1.0})) == 2


def test_replayed_steps_cost_nothing():
    found = search_guidance(toy(4).replaying({1: 1.0, 3: 0.9}), Valley([1.0] * 4, [1.0] * 4))
    assert found[-1].guided_steps == 2
    assert found[-1].loss == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"population": 3},
        {"generations": 0},
        {"seed": -1},
        {"threshold": 0.0},
        {"threshold": 3.0},
        {"grain": 0.6},
        {"largest": float("inf")},
        {"population": 8.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(FestinaError, match="wanted"):
        GuidanceSettings(**wrong)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_on_a_pipeline_the_dropped_passes_do_not_run(calls, cached):
    """Judged by the pictures, over a plan that computes everything and over a cache schedule."""
    steps, call = 3, {"guidance_scale": 4.0} if calls == 1 else TWO_CALLS
    pipe = pixart_pipeline() if calls == 1 else flux_pipeline()
    base = fora(pipe, steps, 2) if cached else guidance_table(pipe, [1.0] * steps)
    wanted = generate(pipe, steps=steps, **call)

    def judge(plan):
        with festina.accelerate(pipe, plan):
            return float((generate(pipe, steps=steps, **call) - wanted).square().mean())

    found = search_guidance(base, judge, GuidanceSettings(population=5, generations=2))
    assert found[0].guided_steps == 0
    if not cached:
        assert (found[-1].guided_steps, found[-1].loss) == (steps, 0.0)
    for each in found:
        assert [step.actions for step in each.plan.steps] == [step.actions for step in base.steps]
        kinds = [step.branches for step in each.plan.steps]
        with festina.accelerate(pipe, each.plan) as run:
            seen = ran(pipe.transformer, run)
            drawn = generate(pipe, steps=steps, **call)
            computed = set(run.report().computed.values())
        rows = [sum(count for step, count in seen if step == place) for place in range(steps)]
        assert rows == [2 if kind == ALL else 1 for kind in kinds]
        assert float((drawn - wanted).square().mean()) == each.loss
        if cached:
            passes = {CONDITIONAL: 1, ALL: calls}
            table = each.plan.canonical().table()
            assert computed == {sum(passes[kinds[place]] for place in range(steps) if table[place, 0] == "C")}
