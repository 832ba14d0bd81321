"""Copies of what a plan is applied to: schedulers that pipelines copy, saved pipelines, copied models."""

import copy
import gc
import pickle

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from lifecycle import STEPS, Loop, Ran, all_compute, random_plan, reference, reusing_plan
from tiny import dit_pipeline, flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError

KINDS = [EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler]


def looping(kind=EulerDiscreteScheduler):
    loop = Loop(pixart_transformer(), kind())
    loop.scheduler.set_timesteps(STEPS)
    return loop, len(loop.scheduler.timesteps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_copy_of_the_scheduler_drives_the_run(kind):
    loop, entries = looping(kind)
    loop.drive = lambda: copy.deepcopy(loop.scheduler)
    plain, plan = loop(), random_plan(loop, 2, entries)
    with festina.accelerate(loop, all_compute(loop, entries)):
        assert torch.equal(loop(), plain)
    with reference(loop, plan):
        wanted = loop()
    with festina.accelerate(loop, plan) as run:
        before = vars(loop.scheduler).copy()
        ran = Ran(loop, run)
        assert torch.equal(loop(), wanted)
        ran.remove()
        assert run.clock.ended == entries
        # The scheduler itself has not moved.
        assert vars(loop.scheduler) == before
    for site, steps in ran.steps.items():
        assert tuple(step for step, _ in steps) == plan.computed_steps(site)


def test_a_copy_steps_by_itself_and_not_by_what_it_was_copied_from():
    loop, entries = looping()
    with festina.accelerate(loop, all_compute(loop, entries)):
        twin = copy.deepcopy(loop.scheduler)
        twin.set_timesteps(STEPS)
        twin.set_begin_index(1)
        assert twin.begin_index == 1
        assert loop.scheduler.begin_index is None
        assert twin.step.__wrapped__.__self__ is twin
        assert copy.deepcopy(twin).step.__wrapped__.__self__ is not twin


def test_of_two_copies_the_first_to_step_counts():
    """As for video and sound: both are told the steps, both step in each iteration."""
    loop, entries = looping()
    sound = []

    def drive():
        sound[:] = [copy.deepcopy(loop.scheduler)]
        sound[0].set_timesteps(STEPS)
        return loop.scheduler

    loop.drive = drive
    loop.on_step = lambda step: sound[0].step(torch.zeros(1), sound[0].timesteps[step], torch.zeros(1))
    plan = random_plan(loop, 2, entries)
    plain = loop()
    loop.on_step = lambda step: None
    with reference(loop, plan):
        wanted = loop()
    loop.on_step = lambda step: sound[0].step(torch.zeros(1), sound[0].timesteps[step], torch.zeros(1))
    with festina.accelerate(loop, plan) as run:
        for _ in range(2):
            assert torch.equal(loop(), wanted)
            assert run.clock.ended == entries
            assert len(run.store) == 0
    assert torch.equal(loop(), plain)


def modules_alive():
    # isinstance would ask a weak proxy, whose object may be gone, for its class.
    return sum(issubclass(type(thing), torch.nn.Module) for thing in gc.get_objects())


def test_a_copy_does_not_drag_the_denoiser_along():
    loop, entries = looping()
    with festina.accelerate(loop, all_compute(loop, entries)):
        before = modules_alive()
        twins = [copy.deepcopy(loop.scheduler) for _ in range(3)]
        assert modules_alive() == before
    assert len(twins) == 3


def test_copies_that_live_on_are_given_back():
    loop, entries = looping()
    plain = vars(copy.deepcopy(loop.scheduler)).keys()
    run = festina.apply(loop, all_compute(loop, entries))
    twin = copy.deepcopy(loop.scheduler)
    assert vars(twin).keys() > plain
    festina.remove(loop)
    assert vars(twin).keys() == plain
    twin.set_timesteps(7)
    assert not run.clock.running


def test_a_copy_in_another_pipeline_is_refused_as_long_as_it_listens():
    loop, entries = looping()
    other, _ = looping()
    with festina.accelerate(loop, all_compute(loop, entries)):
        other.scheduler = copy.deepcopy(loop.scheduler)
        with pytest.raises(FestinaError, match="scheduler already drives another"):
            festina.apply(other, all_compute(other, entries))
    with festina.accelerate(other, all_compute(other, entries)):
        other()


def test_a_scheduler_of_the_config_is_untouched():
    loop, entries = looping()
    with festina.accelerate(loop, all_compute(loop, entries)):
        config = loop.scheduler.config
        made = type(loop.scheduler).from_config(config)
        assert not {"step", "set_timesteps", "set_begin_index", "_festina"} & vars(made).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_scheduler_leaves_the_run_behind(kind):
    loop, entries = looping(kind)
    with festina.accelerate(loop, all_compute(loop, entries)) as run:
        twin = pickle.loads(pickle.dumps(loop.scheduler))
        twin.set_timesteps(7)
        assert not run.clock.running
        assert twin.step.__self__ is twin


def test_an_accelerated_pipeline_can_be_saved(tmp_path):
    pipe = pixart_pipeline()
    plain = generate(pipe)
    with festina.accelerate(pipe, random_plan(pipe)):
        pipe.scheduler.save_pretrained(tmp_path / "scheduler")
        pipe.transformer.save_pretrained(tmp_path / "transformer")
        generate(pipe)
        pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    pipe.scheduler = type(pipe.scheduler).from_pretrained(tmp_path / "scheduler")
    pipe.transformer = type(pipe.transformer).from_pretrained(tmp_path / "transformer")
    assert torch.equal(generate(pipe), plain)


def test_a_whole_accelerated_pipeline_can_be_saved(tmp_path):
    pipe = diffusers.DiTPipeline(**{name: part for name, part in dit_pipeline().components.items() if part is not None})
    with festina.accelerate(pipe, random_plan(pipe)):
        pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(generate(loaded), generate(dit_pipeline()))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_accelerated_model_is_a_plain_model_of_its_own(twin_of):
    """Trainers keep an averaged copy: it must not run the weights of the model it was copied from."""
    model = pixart_transformer()
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor([5]),
    }
    with torch.no_grad():
        plain = model(**inputs).sample
        with festina.accelerate(model, reusing_plan(model)) as run:
            twin = twin_of(model)
            assert torch.equal(twin(**inputs).sample, plain)
            assert run.clock.calls == 0
            for weight in twin.parameters():
                weight.mul_(1.1)
            assert not torch.equal(twin(**inputs).sample, plain)
            festina.apply(twin, all_compute(twin))
            festina.remove(twin)


def test_a_copied_pipeline_runs_by_itself():
    pipe = flux_pipeline()
    plain = generate(pipe)
    with festina.accelerate(pipe, reusing_plan(pipe)):
        fast = generate(pipe)
        twin = copy.deepcopy(pipe)
        assert torch.equal(generate(twin), plain)
        assert torch.equal(generate(pipe), fast)
    assert torch.equal(generate(twin), plain)


def test_two_steps_of_the_scheduler_from_one_timestep_are_one_step():
    """As in pipelines that step to a prediction first, and then with it."""
    loop, entries = looping()

    def predict(step):
        loop.scheduler._step_index -= 1
        loop.scheduler.step(torch.zeros(1), loop.scheduler.timesteps[step], torch.zeros(1))

    loop.on_step = predict
    plain, plan = loop(), random_plan(loop, 2, entries)
    with festina.accelerate(loop, all_compute(loop, entries)):
        assert torch.equal(loop(), plain)
    with festina.accelerate(loop, plan) as run:
        ran = Ran(loop, run)
        loop()
        ran.remove()
        assert run.clock.ended == entries
    for site, steps in ran.steps.items():
        assert tuple(step for step, _ in steps) == plan.computed_steps(site)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DDIMScheduler])
def test_a_pipeline_that_steps_for_each_part_of_a_picture_is_refused(kind):
    """It sets the scheduler's attributes back for each part, so that a step begins again after it has ended."""
    loop, entries = looping(kind)
    with festina.accelerate(loop, reusing_plan(loop, entries)) as run:
        saved, times = {}, []

        def save(step, call):
            times.append(loop.scheduler.timesteps)
            saved.update(copy.deepcopy(vars(loop.scheduler)))

        def again(step):
            vars(loop.scheduler).update(saved)
            loop.transformer(torch.zeros(1, 4, 8, 8), loop.conditioning("part"), times[0][step][None])

        loop.on_call = save
        loop.on_step = again
        with pytest.raises(FestinaError, match="called for step 0, which the scheduler has ended"):
            loop()
        assert len(run.store) == 0
        assert vars(loop.scheduler)["step"].__wrapped__.__self__ is loop.scheduler
