"""Exactness of the executor: what runs at which step, bit-equality, and giving back what was there."""

import copy
import gc
import weakref
from collections import defaultdict

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, HeunDiscreteScheduler
from tiny import PROMPT, flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace
from festina.sites import block_sites, component_sites, find_denoiser, site_modules

STEPS = 4


def random_plan(pipe, seed=0, steps=STEPS, density=0.5, sites=None):
    denoiser = find_denoiser(pipe)
    names = [site.name for site in sites or component_sites(denoiser)]
    mask = np.random.default_rng(seed).random((steps, len(names))) < density
    return Plan.from_mask(type(denoiser).__name__, names, mask).canonical()


def all_compute(pipe, steps=STEPS):
    denoiser = find_denoiser(pipe)
    return Plan.computing_all(type(denoiser).__name__, [s.name for s in component_sites(denoiser)], steps)


def watch(pipe, run):
    """Record (step, branch) of every time a site's module really runs: by hooks on the first layer inside it."""
    ran, handles = defaultdict(list), []
    denoiser = find_denoiser(pipe)
    for site in component_sites(denoiser):
        module = site_modules(denoiser, site)[0]
        leaf = next(child for child in module.modules() if isinstance(child, torch.nn.Linear))
        # A single linear layer (FLUX proj_mlp) is its own first layer; its hooks see calls, so watch the arithmetic.
        if leaf is module:
            continue
        handles.append(
            leaf.register_forward_hook(lambda *_, name=site.name: ran[name].append((run.clock.step, run.clock.branch)))
        )
    return ran, handles


def snapshot(pipe):
    """Every attribute of every object Festina may touch, by identity."""
    denoiser = find_denoiser(pipe)
    owners = [*denoiser.modules(), pipe.scheduler, pipe]
    return [{name: id(value) for name, value in vars(owner).items()} for owner in owners]


def reference(pipe, plan, **call):
    """The same schedule by another route: hooks that compute everything and then swap in the remembered output."""
    denoiser = find_denoiser(pipe)
    memory, state, handles = {}, {"step": 0, "calls": 0}, []

    def hook(site, column):
        def swap(module, args, output):
            slot = (site, state["calls"])
            if plan.steps[state["step"]].actions[column] == "C":
                memory[slot] = output
            return memory[slot]

        return swap

    for column, site in enumerate(component_sites(denoiser)):
        handles.append(site_modules(denoiser, site)[0].register_forward_hook(hook(site.name, column)))

    def count_call(*_):
        state["calls"] += 1

    handles.append(denoiser.register_forward_hook(count_call))
    original = pipe.scheduler.step

    def step(*args, **kwargs):
        state["step"] += 1
        state["calls"] = 0
        return original(*args, **kwargs)

    step.__wrapped__ = original
    pipe.scheduler.step = step
    try:
        return generate(pipe, steps=len(plan.steps), **call)
    finally:
        del pipe.scheduler.step
        for handle in handles:
            handle.remove()


def test_all_compute_is_bit_identical(pipe):
    plain = generate(pipe)
    with festina.accelerate(pipe, all_compute(pipe)) as run:
        assert torch.equal(generate(pipe), plain)
    assert run.report().steps == STEPS
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("call", [{"guidance_scale": 4.5}, {"guidance_scale": 1.0}])
def test_all_compute_is_bit_identical_with_and_without_guidance(pixart, call):
    plain = generate(pixart, **call)
    with festina.accelerate(pixart, all_compute(pixart)):
        assert torch.equal(generate(pixart, **call), plain)


def test_all_compute_is_bit_identical_with_separate_guidance_calls():
    pipe, call = flux_pipeline(), {"negative_prompt": ["a black background"], "true_cfg_scale": 3.0}
    plain = generate(pipe, **call)
    assert not torch.equal(plain, generate(pipe))
    with festina.accelerate(pipe, all_compute(pipe)) as run:
        assert torch.equal(generate(pipe, **call), plain)
    assert run.report().calls == 2 * STEPS


@pytest.mark.parametrize("seed", range(3))
def test_a_schedule_equals_the_hooked_reference(pipe, seed):
    plan = random_plan(pipe, seed)
    wanted = reference(pipe, plan)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe), wanted)
    assert not torch.equal(generate(pipe), wanted)


def test_branches_do_not_share_values():
    pipe, call = flux_pipeline(), {"negative_prompt": ["a black background"], "true_cfg_scale": 3.0}
    plan = random_plan(pipe, 5)
    wanted = reference(pipe, plan, **call)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe, **call), wanted)


def test_exactly_the_scheduled_modules_run(pipe):
    plan = random_plan(pipe, 7)
    with festina.accelerate(pipe, plan) as run:
        ran, handles = watch(pipe, run)
        generate(pipe)
        for handle in handles:
            handle.remove()
        report = run.report()
    for site in plan.sites:
        assert report.computed[site] == len(plan.computed_steps(site))
        assert report.served[site] == STEPS - len(plan.computed_steps(site))
        if site in ran:
            assert tuple(step for step, _ in ran[site]) == plan.computed_steps(site)
    assert len(ran) >= len(plan.sites) // 2


def test_bare_linear_sites_are_not_called_when_served():
    pipe = flux_pipeline()
    plan = random_plan(pipe, 7)
    with festina.accelerate(pipe, plan) as run:
        name = "single_transformer_blocks.0.proj_mlp"
        module, products = pipe.transformer.get_submodule(name), []
        weight = module.weight

        class Counting(torch.nn.Parameter):
            """A weight that notes each product it takes part in."""

            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                if function is torch.nn.functional.linear:
                    products.append(run.clock.step)
                return super().__torch_function__(function, types, args, kwargs or {})

        module.weight = Counting(weight.detach(), requires_grad=False)
        generate(pipe)
    assert tuple(products) == plan.computed_steps(name)


def test_remove_gives_back_the_same_objects(pipe):
    generate(pipe)  # the first run of an untouched pipeline leaves attributes behind, too
    before = snapshot(pipe)
    run = festina.apply(pipe, random_plan(pipe))
    assert snapshot(pipe) != before
    generate(pipe)
    festina.remove(pipe)
    after = snapshot(pipe)
    # The state of scheduler and pipeline (step index, last outputs, last arguments) moved on, as in every run.
    assert after[:-2] == before[:-2]
    assert [set(owner) for owner in after[-2:]] == [set(owner) for owner in before[-2:]]
    assert len(run.store) == 0


def test_remove_after_an_exception_in_the_middle_of_a_run(pixart):
    before = snapshot(pixart)
    plain = generate(pixart)

    def interrupt(step, timestep, latents):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), festina.accelerate(pixart, random_plan(pixart)) as run:
        generate(pixart, callback=interrupt, callback_steps=1)
    assert len(run.store) == 0
    assert snapshot(pixart)[:-2] == before[:-2]
    assert torch.equal(generate(pixart), plain)


def test_an_exception_in_a_block_empties_the_store(pixart):
    plan = Plan.from_mask(
        "PixArtTransformer2DModel",
        [s.name for s in component_sites(pixart.transformer)],
        np.array([[True], [False], [True], [False]]).repeat(9, axis=1),
    )
    wanted = reference(pixart, plan)
    run = festina.apply(pixart, plan)
    held = []

    def fail(module, args):
        if run.clock.step == 1:
            held.append(len(run.store))
            raise RuntimeError("out of memory")

    handle = pixart.transformer.proj_out.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(pixart)
    handle.remove()
    assert held == [0]  # every value was read for the last time in step 1
    assert len(run.store) == 0
    assert not run.clock.running
    assert torch.equal(generate(pixart), wanted)


def test_a_run_cut_off_between_steps_does_not_touch_the_next(pixart):
    plan = random_plan(pixart, 3)
    wanted = reference(pixart, plan)
    run = festina.apply(pixart, plan)

    def interrupt(step, timestep, latents):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        generate(pixart, seed=9, callback=interrupt, callback_steps=1)
    assert torch.equal(generate(pixart), wanted)
    assert len(run.store) == 0


def test_second_run_equals_the_first(pipe):
    with festina.accelerate(pipe, random_plan(pipe, 1)) as run:
        first = generate(pipe)
        report = run.report()
        assert torch.equal(generate(pipe), first)
        assert run.report().computed == report.computed
        assert len(run.store) == 0


def test_two_pipelines_of_one_class_do_not_touch_each_other():
    one, two = pixart_pipeline(), pixart_pipeline()
    plain, plan = generate(two), random_plan(one)
    wanted = reference(one, plan)
    festina.apply(one, plan)
    assert torch.equal(generate(two), plain)
    festina.apply(two, all_compute(two))
    assert torch.equal(generate(one), wanted)
    assert torch.equal(generate(two), plain)
    festina.remove(one)
    assert torch.equal(generate(one), plain)
    assert torch.equal(generate(two), plain)
    festina.remove(two)
    assert torch.equal(generate(two), plain)


def test_batch_resolution_and_prompts_may_change_between_runs(pixart):
    plan = random_plan(pixart, 2)
    other = "a large green star on a pink background"
    calls = [
        {"prompts": [PROMPT]},
        {"prompts": [PROMPT, other]},
        {"prompts": [other], "height": 32, "width": 16},
        {"prompts": [PROMPT], "guidance_scale": 1.0},
        {"prompts": [PROMPT]},
    ]
    fresh = [reference(pixart_pipeline(), plan, **call) for call in calls]
    with festina.accelerate(pixart, plan):
        for call, wanted in zip(calls, fresh, strict=True):
            assert torch.equal(generate(pixart, **call), wanted)


def test_a_batch_of_two_equals_two_batches_of_one(pipe):
    prompts = [PROMPT, "a large green star on a pink background"]
    if type(pipe).__name__ == "DiTPipeline":
        pytest.skip("the DiT pipeline takes one generator for the whole batch")
    with festina.accelerate(pipe, random_plan(pipe, 4)):
        both = generate(pipe, prompts, seed=5)
        alone = [generate(pipe, [prompt], seed=5 + place) for place, prompt in enumerate(prompts)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_measured_peak_bytes_equal_the_predicted(pipe, seed):
    plan = random_plan(pipe, seed)
    seen = []
    denoiser = find_denoiser(pipe)
    handle = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(Call(args, kwargs)), with_kwargs=True
    )
    with festina.accelerate(pipe, plan) as run:
        generate(pipe)
    handle.remove()
    assert run.report().peak_bytes == held_bytes(plan, denoiser, trace(denoiser, seen[0]), itemsize=4)


def test_nothing_is_held_beyond_its_last_use(pixart):
    sites = [s.name for s in component_sites(pixart.transformer)]
    mask = np.ones((6, len(sites)), dtype=bool)
    mask[2, 0] = mask[3, 0] = False
    held = []
    with festina.accelerate(pixart, Plan.from_mask("PixArtTransformer2DModel", sites, mask)) as run:
        generate(pixart, steps=6, callback=lambda *_: held.append(len(run.store)), callback_steps=1)
    assert held == [0, 1, 1, 0, 0, 0]


def test_residual_sites(pipe):
    denoiser = find_denoiser(pipe)
    sites = block_sites(denoiser)
    mask = np.ones((STEPS, len(sites)), dtype=bool)
    mask[2, 1] = False
    plan = Plan.from_mask(type(denoiser).__name__, [s.name for s in sites], mask)
    block, seen = site_modules(denoiser, sites[1])[0], []

    def note(module, args, kwargs, output):
        names = sites[1].streams or ("hidden_states",)
        streams = [kwargs[name] if name in kwargs else args[0 if name == "hidden_states" else 1] for name in names]
        outputs = output if isinstance(output, tuple) else (output,)
        seen.append([out - into for out, into in zip(outputs, streams, strict=True)])

    with festina.accelerate(pipe, plan) as run:
        handle = block.register_forward_hook(note, with_kwargs=True)
        generate(pipe)
        handle.remove()
    report = run.report()
    assert report.served[sites[1].name] == 1
    ((shapes, record),) = run.calls.items()
    assert report.macs == plan_macs(plan, mac_table(denoiser, trace(denoiser, record.call))).total
    assert report.shapes == {shapes: STEPS}
    # in step 2 the block added what it had added in step 1
    for old, new in zip(seen[1], seen[2], strict=True):
        torch.testing.assert_close(old, new, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-3)


def test_a_skipped_block_is_the_identity(pixart):
    sites = [s.name for s in block_sites(pixart.transformer)]
    plan = Plan.computing_all("PixArtTransformer2DModel", sites, STEPS)
    actions = "C" + "S" + "C"
    plan = Plan(plan.denoiser, plan.sites, (plan.steps[0], *(type(s)(s.noise, actions) for s in plan.steps[1:])))
    seen = []
    with festina.accelerate(pixart, plan):
        handle = pixart.transformer.transformer_blocks[1].register_forward_hook(
            lambda _, args, output: seen.append(torch.equal(args[0], output))
        )
        generate(pixart)
        handle.remove()
    assert seen == [False, True, True, True]


def test_a_skip_between_two_reuses_does_not_lose_the_value(pixart):
    sites = [s.name for s in block_sites(pixart.transformer)]
    rows = ["CCC", "CRC", "CSC", "CRC"]
    plan = Plan("PixArtTransformer2DModel", tuple(sites), tuple(Step(1 - i / 4, row) for i, row in enumerate(rows)))
    with festina.accelerate(pixart, plan) as run:
        generate(pixart)
    assert run.report().computed[sites[1]] == 1
    assert run.report().served[sites[1]] == 3


def test_sites_within_a_served_block_keep_nothing_for_nobody(pixart):
    sites = ("transformer_blocks.0:residual", "transformer_blocks.0.attn1")
    rows = ["CC", "RR", "CC", "CR"]
    plan = Plan("PixArtTransformer2DModel", sites, tuple(Step(1 - i / 4, row) for i, row in enumerate(rows)))
    held = []
    with festina.accelerate(pixart, plan) as run:
        generate(pixart, callback=lambda *_: held.append(len(run.store)), callback_steps=1)
    assert held == [1, 0, 1, 0]
    ((_, record),) = run.calls.items()
    traced = trace(pixart.transformer, record.call)
    assert run.report().peak_bytes == held_bytes(plan, pixart.transformer, traced, itemsize=4)


def test_another_number_of_steps_is_refused(pixart):
    with (
        festina.accelerate(pixart, all_compute(pixart, 4)),
        pytest.raises(FestinaError, match=r"plan has 4 steps, this run 6.*resample\(6\)"),
    ):
        generate(pixart, steps=6)


def test_a_plan_for_another_model_is_refused_and_leaves_nothing(pixart):
    before = snapshot(pixart)
    with pytest.raises(FestinaError, match="plan is for FluxTransformer2DModel"):
        festina.apply(pixart, all_compute(flux_pipeline()))
    bigger = Plan.computing_all(
        "PixArtTransformer2DModel", [s.name for s in component_sites(pixart_transformer(5))], STEPS
    )
    with pytest.raises(FestinaError, match="3 transformer_blocks of attn1/attn2/ff"):
        festina.apply(pixart, bigger)
    skipping = Plan(
        "PixArtTransformer2DModel",
        bigger.sites[:1],
        tuple(festina.Step(1 - index / 4, action) for index, action in enumerate("CCSC")),
    )
    with pytest.raises(FestinaError, match="kind 'output' cannot run the actions"):
        festina.apply(pixart, skipping)
    assert snapshot(pixart) == before


def test_a_failure_while_attaching_leaves_nothing(pixart, monkeypatch):
    before = snapshot(pixart)

    def broken(*args):
        raise RuntimeError("no")

    monkeypatch.setattr("festina.executor.attached.ending_step", broken)
    with pytest.raises(RuntimeError):
        festina.apply(pixart, random_plan(pixart))
    assert snapshot(pixart) == before


def test_applying_twice_and_removing_nothing_are_refused(pixart):
    with pytest.raises(FestinaError, match="nothing to remove"):
        festina.remove(pixart)
    festina.apply(pixart, all_compute(pixart))
    with pytest.raises(FestinaError, match="already applied"):
        festina.apply(pixart, all_compute(pixart))
    festina.remove(pixart)


def test_a_shared_scheduler_is_refused():
    one, two = pixart_pipeline(), pixart_pipeline()
    two.scheduler = one.scheduler
    festina.apply(one, all_compute(one))
    with pytest.raises(FestinaError, match="scheduler already drives another"):
        festina.apply(two, all_compute(two))
    festina.remove(one)


def test_diffusers_own_cache_is_refused():
    pipe = flux_pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(FestinaError, match="disable_cache"):
        festina.apply(pipe, all_compute(pipe))
    pipe.transformer.disable_cache()
    with festina.accelerate(pipe, all_compute(pipe)):
        generate(pipe)


def test_schedulers_of_order_two_are_refused(pixart):
    pixart.scheduler = HeunDiscreteScheduler()
    with festina.accelerate(pixart, all_compute(pixart)), pytest.raises(FestinaError, match="2 times a step"):
        generate(pixart)


def test_a_wrapper_put_on_top_is_not_thrown_away(pixart):
    festina.apply(pixart, random_plan(pixart))
    module = pixart.transformer
    ours = module.__dict__["forward"]
    module.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(FestinaError, match="replaced again"):
        festina.remove(pixart)
    module.__dict__["forward"] = ours
    festina.remove(pixart)


def test_an_instance_forward_that_was_there_is_given_back(pixart):
    module = pixart.transformer.transformer_blocks[0].ff
    original = module.forward
    mine = lambda *args, **kwargs: original(*args, **kwargs)  # noqa: E731
    module.forward = mine
    with festina.accelerate(pixart, random_plan(pixart)):
        assert module.__dict__["forward"] is not mine
        generate(pixart)
    assert module.__dict__["forward"] is mine


def test_a_bare_denoiser_has_an_explicit_clock():
    model = pixart_transformer()
    plan = random_plan(model, 6)
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor([5, 5]),
    }
    with torch.no_grad(), festina.accelerate(model, plan) as run:
        with pytest.raises(FestinaError, match="outside a sampling run"):
            model(**inputs)
        run.start(STEPS)
        for _ in range(STEPS):
            model(**inputs)
            run.next_step()
        report = run.report()
    assert sum(report.computed.values()) == int(plan.mask().sum())
    traced = trace(model, Call((), inputs))
    table = mac_table(model, traced)
    assert report.shapes == {((2, 4, 8, 8), (2, 5, 16), (2,)): STEPS}
    assert report.macs == plan_macs(plan, table).total
    assert report.macs_uncached == plan_macs(all_compute(model), table).total
    assert report.peak_bytes == held_bytes(plan, model, traced, 4)


def test_the_first_call_of_a_branch_computes(pixart):
    """A branch that appears in the middle of a run finds no value, and must not read another branch's."""
    model = pixart.transformer
    plan = random_plan(model, 0, density=0.0)
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor([5]),
    }
    with torch.no_grad():
        plain = model(**inputs).sample
        with festina.accelerate(model, plan) as run:
            run.start(STEPS)
            model(**{**inputs, "hidden_states": -inputs["hidden_states"]})
            run.next_step()
            model(**{**inputs, "hidden_states": -inputs["hidden_states"]})
            late = model(**inputs).sample
    assert torch.equal(late, plain)


def test_a_change_of_batch_in_the_middle_of_a_run_computes_anew():
    model = pixart_transformer()
    plan = random_plan(model, 0, density=0.0)
    text = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(latents[:1], text[:1], torch.tensor([5])).sample
        with festina.accelerate(model, plan) as run:
            run.start(STEPS)
            model(latents, text, torch.tensor([7, 7]))
            run.next_step()
            assert torch.equal(model(latents[:1], text[:1], torch.tensor([5])).sample, plain)


def test_the_pipeline_is_collected_after_removal():
    pipe = pixart_pipeline()
    with festina.accelerate(pipe, random_plan(pipe)) as run:
        generate(pipe)
    assert copy.copy(run.report()).steps == STEPS
    kept = weakref.ref(pipe.transformer)
    del pipe, run
    gc.collect()
    assert kept() is None
