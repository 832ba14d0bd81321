"""Other denoisers in the place of the pipeline's own: which one runs in which step, and what is kept around that."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from lifecycle import Loop, Ran, all_compute, random_plan, snapshot
from tiny import generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.cost import Call, Macs, held_bytes, mac_table, plan_macs, trace
from festina.methods import fora

STEPS = 8


def small():
    """A denoiser of fewer blocks and other weights."""
    torch.manual_seed(5)
    return pixart_transformer(blocks=1)


def loop_of():
    return Loop(pixart_transformer(), DDIMScheduler())


def calling(plan, *places, model="small"):
    """The plan, with another model in some steps."""
    steps = (replace(step, model=model) if place in places else step for place, step in enumerate(plan.steps))
    return replace(plan, steps=tuple(steps))


def noted(model, run, seen):
    model.register_forward_pre_hook(lambda *_: None if run.clock.passing else seen.append(run.clock.step))


def by_hand(loop, model, places, steps=STEPS):
    """The loop with the models exchanged by whoever drives it."""
    own = loop.transformer

    def exchange(step):
        loop.transformer = model if step + 1 in places else own

    loop.on_step = exchange
    exchange(-1)
    try:
        return loop(steps)
    finally:
        loop.transformer, loop.on_step = own, lambda step: None


def test_each_step_runs_the_model_it_names():
    loop, model, seen = loop_of(), small(), []
    plan = calling(all_compute(loop, STEPS), 0, 1, 2)
    with festina.accelerate(loop, plan, models={"small": model}) as run:
        ran = Ran(loop, run)
        noted(model, run, seen)
        found = loop(STEPS)
        ran.remove()
        report = run.report()
    assert seen == [0, 1, 2]
    assert {step for steps in ran.steps.values() for step, _ in steps} == {3, 4, 5, 6, 7}
    assert report.models == {"small": 3}
    assert report.calls == STEPS
    assert sum(report.shapes.values()) == STEPS - 3
    assert "forward" not in vars(model)
    assert not hasattr(loop.transformer, "_festina")
    assert torch.equal(found, by_hand(loop, model, (0, 1, 2)))


@pytest.mark.parametrize("places", [(0,), (7,), (2, 3), (0, 1, 4, 7), tuple(range(8))])
def test_any_steps_may(places):
    loop, model = loop_of(), small()
    with festina.accelerate(loop, calling(all_compute(loop, STEPS), *places), models={"small": model}):
        found = loop(STEPS)
        again = loop(STEPS)
    assert torch.equal(found, by_hand(loop, model, places))
    assert torch.equal(found, again)


def test_nothing_is_stored_across_a_change_of_the_model():
    loop, model = loop_of(), small()
    plan = calling(fora(loop.transformer, STEPS, 3), 1, 2, 5)
    with festina.accelerate(loop, plan, models={"small": model}) as run:
        ran = Ran(loop, run)
        held = []
        loop.on_step = lambda step: held.append(len(run.store))
        loop(STEPS)
        ran.remove()
    computed = {step for steps in ran.steps.values() for step, _ in steps}
    # After the other model everything computes: in step 3, which is one of FORA's, and in step 6, which is too.
    assert computed == {0, 3, 6}
    assert [bool(count) for count in held] == [False, False, False, True, False, False, True, False]


def test_the_pipelines_own_computes_everything_after_another():
    plan = calling(Plan("D", ("a.ff",), tuple(Step(1 - place / 8, "R") for place in range(8))), 2, 3)
    assert [step.actions for step in plan.canonical().steps] == ["C", "R", "R", "R", "C", "R", "R", "R"]
    orders = Plan("D", ("a.ff",), tuple(Step(1 - place / 8, "C2"[place > 4]) for place in range(8)))
    assert [step.actions for step in calling(orders, 3).canonical().steps][4:] == ["C", "R", "R", "R"]


def test_a_replay_gives_the_other_models_answer_again():
    loop, model = loop_of(), small()
    plan = calling(all_compute(loop, STEPS), 0, 1, 2).replaying({2: 1.0, 3: 0.5})
    assert plan.canonical().steps[2].model == ""
    with festina.accelerate(loop, plan, models={"small": model}) as run:
        loop(STEPS)
        assert run.report().models == {"small": 2}
    assert torch.equal(loop.seen[2], loop.seen[1])
    assert torch.equal(loop.seen[3], 0.5 * loop.seen[1])


def test_price_and_bytes_are_those_of_the_run():
    loop, model = loop_of(), small()
    plan = calling(random_plan(loop, 3, STEPS), 0, 1, 5).replaying({2: 1.0})
    with festina.accelerate(loop, plan, models={"small": model}) as run:
        loop(STEPS)
        report = run.report()
    text = loop.conditioning("cond")
    call = Call((torch.randn(1, 4, 8, 8),), {"encoder_hidden_states": text, "timestep": torch.ones(1)})
    traced, other = trace(loop.transformer, call), trace(model, call).macs
    assert plan_macs(plan, mac_table(loop.transformer, traced), {"small": other}).total == report.macs
    assert report.macs_uncached == STEPS * traced.macs.total
    assert held_bytes(plan, loop.transformer, traced, 4) == report.peak_bytes
    with pytest.raises(FestinaError, match="the price of a call of each"):
        plan_macs(plan, mac_table(loop.transformer, traced))
    assert plan_macs(calling(plan, *range(8)), mac_table(loop.transformer, traced), {"small": Macs(2, 1)}).total == 21


def test_a_guided_pipeline_gives_each_model_both_branches():
    pipe, model = pixart_pipeline(), small()
    plan = calling(all_compute(pipe, 4), 0, 1)
    with festina.accelerate(pipe, plan, models={"small": model}):
        found = generate(pipe, steps=4)
    assert not torch.equal(found, generate(pipe, steps=4))
    pipe.transformer, own = model, pipe.transformer
    only = generate(pipe, steps=4)
    pipe.transformer = own
    with festina.accelerate(pipe, calling(plan, 0, 1, 2, 3), models={"small": model}):
        assert torch.equal(generate(pipe, steps=4), only)


def test_one_branch_of_another_model():
    loop, model, seen = loop_of(), small(), []
    loop.calls = [["cond", "uncond"]]
    plan = calling(all_compute(loop, 4), 0, 1)
    steps = tuple(
        replace(step, branches="conditional") if place == 1 else step for place, step in enumerate(plan.steps)
    )
    with festina.accelerate(loop, replace(plan, steps=steps), models={"small": model}) as run:
        noted(model, run, seen)
        loop(4)
    assert seen == [0, 0, 1]
    assert torch.equal(loop.seen[2], loop.seen[3])


def test_models_that_are_missing_or_too_many_or_of_other_latents():
    loop, model = loop_of(), small()
    before = snapshot(loop)
    plan = calling(all_compute(loop, 4), 0)
    for given, words in (
        ({}, "the plan calls small in the place of the denoiser, and none was given"),
        ({"tiny": model}, "and tiny was given"),
        ({"small": model, "tiny": model}, "small, tiny was given"),
        ({"small": "folder"}, "is a str; wanted a denoiser"),
        ({"small": torch.nn.Linear(1, 1)}, "has in_channels None, the denoiser 4"),
    ):
        with pytest.raises(FestinaError, match=words):
            festina.apply(loop, plan, models=given)
    with pytest.raises(FestinaError, match="the plan calls no model"):
        festina.apply(loop, all_compute(loop, 4), models={"small": model})
    assert snapshot(loop) == before


def test_file_key_and_resampling_have_the_model(tmp_path):
    loop = loop_of()
    plan, own = calling(all_compute(loop, 4), 0, 1), all_compute(loop, 4)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert '"festina_plan": 4' in plan.to_json()
    assert '"festina_plan": 2' in own.to_json()
    assert plan.key() != own.key() != calling(own, 0, model="b").key() != calling(own, 0, model="a").key()
    assert [step.model for step in plan.resample(8).steps] == ["small"] * 4 + [""] * 4
    with pytest.raises(FestinaError, match="unknown keys"):
        Plan.from_json(plan.to_json().replace('"festina_plan": 4', '"festina_plan": 3'))
    with pytest.raises(FestinaError, match="no text of at most"):
        Plan.from_json(plan.to_json().replace('"model": "small"', '"model": 3'))


def test_a_model_that_is_the_denoiser_or_has_a_plan_or_another_type():
    loop, model = loop_of(), small()
    plan = calling(all_compute(loop, 4), 0)
    with pytest.raises(FestinaError, match="is a denoiser of the pipeline"):
        festina.apply(loop, plan, models={"small": loop.transformer})
    with pytest.raises(FestinaError, match=r"in torch.bfloat16, the denoiser in torch.float32"):
        festina.apply(loop, plan, models={"small": small().bfloat16()})
    festina.apply(model, all_compute(model, 4))
    with pytest.raises(FestinaError, match="or has a plan of its own"):
        festina.apply(loop, plan, models={"small": model})
    festina.remove(model)
    with festina.accelerate(loop, plan, models={"small": model}):
        loop(4)


def test_a_step_that_replays_calls_no_model():
    plan = calling(all_compute(loop_of(), 4), 2).replaying({2: 1.0})
    assert plan.models == plan.canonical().models == frozenset()
    assert calling(plan, 0).models == {"small"}


def test_a_name_of_a_model_is_unicode():
    with pytest.raises(FestinaError, match="not Unicode"):
        calling(all_compute(loop_of(), 4), 0, model="\ud800")
