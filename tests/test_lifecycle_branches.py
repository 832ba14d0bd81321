"""Branches and experts: the values of one denoiser call of a step are never served to another."""

from contextlib import contextmanager

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FluxImg2ImgPipeline, PixArtTransformer2DModel
from lifecycle import STEPS, Loop, all_compute, random_plan, reference, reusing_plan, snapshot
from tiny import PROMPT, flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import Plan
from festina.sites import component_sites

SIX = 6


def looping(calls, fresh=False):
    loop = Loop(pixart_transformer(), EulerDiscreteScheduler())
    loop.calls, loop.fresh = calls, fresh
    return loop


def wanted_of(loop, plan, **call):
    """The outputs of each denoiser call, each branch served with its own values: branches are prompts here."""

    def name(place):
        return loop.calls[min(serving.row, len(loop.calls) - 1)][place]

    with reference(loop, plan, name=name) as serving:
        loop(SIX, **call)
    return loop.seen


GUIDANCE = {
    "always": [["uncond", "cond"]],
    "ends": [["uncond", "cond"]] * 3 + [["cond"]],
    "ends-other-order": [["cond", "uncond"]] * 3 + [["cond"]],
    "begins": [["cond"]] * 2 + [["uncond", "cond"]],
    "begins-at-once": [["cond"], ["uncond", "cond"]],
    "pauses": [["uncond", "cond"]] * 2 + [["cond"]] * 2 + [["uncond", "cond"]],
    "changes-order": [["uncond", "cond"], ["cond", "uncond"], ["uncond", "cond"], ["cond"], ["uncond"], ["cond"]],
    "third-call-in-the-middle": [["uncond", "cond"]] * 2 + [["uncond", "cond", "weak"]] * 2 + [["uncond", "cond"]],
}


@pytest.mark.parametrize("fresh", [False, True], ids=["made-once", "made-anew"])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_each_call_is_served_its_own_values(guidance, fresh):
    loop = looping(GUIDANCE[guidance], fresh)
    for plan in (reusing_plan(loop, SIX), random_plan(loop, 3, SIX)):
        wanted = wanted_of(loop, plan)
        with festina.accelerate(loop, plan) as run:
            loop(SIX)
            assert len(run.store) == 0
        assert len(loop.seen) == len(wanted)
        for ours, theirs in zip(loop.seen, wanted, strict=True):
            assert torch.equal(ours, theirs)


def test_conditioning_that_is_made_once_is_never_read(monkeypatch):
    loop = looping(GUIDANCE["pauses"])
    read = []
    original = torch.equal
    monkeypatch.setattr(torch, "equal", lambda one, other: read.append(1) or original(one, other))
    with festina.accelerate(loop, random_plan(loop, 3, SIX)):
        loop(SIX)
        assert not read
        loop.fresh = True
        loop(SIX)
        assert read


def test_calls_that_nothing_tells_apart_compute_once_their_number_has_fallen():
    loop = looping([["cond", "cond"]] * 2 + [["cond"]])
    with festina.accelerate(loop, reusing_plan(loop, SIX)) as run:
        computed = []
        loop.on_step = lambda step: computed.append(run.columns[0].computed.total())
        loop(SIX)
    # One call each of the two in step 0; the third step shows that one has gone; from then on nothing is served.
    assert computed == [2, 2, 2, 3, 4, 5]


def test_conditioning_that_differs_in_each_step_is_never_served():
    names = [f"prompt {step}" for step in range(SIX)]
    loop = looping([[name] for name in names])
    loop(SIX)
    plain = loop.seen[0]
    with festina.accelerate(loop, reusing_plan(loop, SIX)) as run:
        loop(SIX)
        assert torch.equal(loop.seen[0], plain)
        assert run.columns[0].served.total() == 0
        assert run.store.peak_bytes < 3 * len(run.columns) * 4 * 16 * 16 * 4


def test_batched_guidance_that_ends_computes_anew():
    model = pixart_transformer()
    text = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(latents[1:], text[1:], torch.tensor([5])).sample
        with festina.accelerate(model, reusing_plan(model)) as run:
            run.start(STEPS)
            model(latents, text, torch.tensor([7, 7]))
            run.next_step()
            assert torch.equal(model(latents[1:], text[1:], torch.tensor([5])).sample, plain)
            run.next_step()
            # The branch goes on with its one row.
            model(latents[1:] * 2, text[1:], torch.tensor([3]))
            assert run.columns[0].served.total() == 1


def test_a_cache_context_names_the_branch(monkeypatch):
    loop = looping(GUIDANCE["changes-order"], fresh=True)
    contexts = []

    @contextmanager
    def cache_context(name):
        contexts.append(name)
        yield
        contexts.append("")

    loop.transformer.cache_context = cache_context
    loop.named = True
    plan = random_plan(loop, 3, SIX)
    wanted = wanted_of(loop, plan)
    called = contexts.copy()
    monkeypatch.setattr(torch, "equal", lambda *_: pytest.fail("a named call was compared"))
    with festina.accelerate(loop, plan) as run:
        loop(SIX)
        assert run.clock.context is None
    monkeypatch.undo()
    assert contexts == called * 2
    assert loop.transformer.cache_context is cache_context
    for ours, theirs in zip(loop.seen, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_separate_calls_of_a_real_pipeline_without_contexts():
    parts = flux_pipeline().components
    pipe = FluxImg2ImgPipeline(
        **{name: parts[name] for name in parts if name not in ("image_encoder", "feature_extractor")}
    )
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 16, "width": 16, "max_sequence_length": 20, "output_type": "pt", "strength": 1.0}
    call |= {"negative_prompt": ["black"], "true_cfg_scale": 2.0, "image": torch.zeros(1, 3, 16, 16)}

    def run_it():
        return pipe(PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), **call).images

    plan = random_plan(pipe, 6)
    with reference(pipe, plan):
        wanted = run_it()
    with festina.accelerate(pipe, plan) as run:
        assert torch.equal(run_it(), wanted)
        assert run.clock.calls == 2 * STEPS


# -- Two experts --------------------------------------------------------------------------------------------------


def experts(boundary=3):
    other = pixart_transformer()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.05)
    loop = Loop(pixart_transformer(), EulerDiscreteScheduler(), other)
    loop.calls, loop.boundary = [["uncond", "cond"]], boundary
    return loop


@pytest.mark.parametrize("boundary", [0, 1, 3, 5])
def test_two_experts_run_by_one_plan(boundary):
    loop = experts(boundary)
    plain, before = loop(SIX), snapshot(loop)
    with festina.accelerate(loop, all_compute(loop, SIX)):
        assert torch.equal(loop(SIX), plain)
    for seed in range(3):
        plan = random_plan(loop, seed, SIX)
        with reference(loop, plan):
            wanted = loop(SIX)
        with festina.accelerate(loop, plan) as run:
            assert torch.equal(loop(SIX), wanted)
            assert run.clock.ended == SIX
            assert len(run.store) == 0
    # The state of the scheduler moved on, as in every run.
    assert snapshot(loop)[:-2] == before[:-2]


def test_the_store_is_emptied_when_the_experts_change():
    loop = experts()
    plan = reusing_plan(loop, SIX)
    with festina.accelerate(loop, plan) as run:
        held = []
        loop.transformer_2.transformer_blocks[0].attn1.to_q.register_forward_hook(
            lambda *_: held.append(len(run.store))
        )
        loop(SIX)
        assert held == [0, len(plan.sites)]


def test_a_second_model_that_guides_in_each_step_keeps_its_own_values():
    loop = experts()
    plan = random_plan(loop, 1, SIX)

    def both(models, run=None):
        scheduler, latents, seen = (
            loop.scheduler,
            torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
            [],
        )
        scheduler.set_timesteps(SIX)
        for timestep in scheduler.timesteps:
            given = scheduler.scale_model_input(latents, timestep)
            outs = [model(given, loop.conditioning("cond"), timestep[None]).sample for model in models]
            seen += outs
            latents = scheduler.step(sum(outs) / len(outs), timestep, latents).prev_sample
        return seen

    models = [loop.transformer, loop.transformer_2]
    with torch.no_grad():
        with reference(loop, plan):
            wanted = both(models)
        with festina.accelerate(loop, plan):
            ours = both(models)
    assert all(torch.equal(one, other) for one, other in zip(ours, wanted, strict=True))


def test_another_module_of_the_class_with_other_blocks_is_left_alone():
    loop = experts()
    loop.transformer_2 = pixart_transformer(5)
    before = snapshot(loop)
    sites = [site.name for site in component_sites(loop.transformer_2)]
    with festina.accelerate(loop, Plan.from_mask(PixArtTransformer2DModel.__name__, sites[:9], _mask())):
        assert all("forward" not in vars(module) for module in loop.transformer_2.modules()) or len(sites) > 9
    assert snapshot(loop)[:-2] == before[:-2]


def _mask():
    return reusing_plan(pixart_transformer(), SIX).mask()


def test_the_second_expert_alone_is_found():
    loop = experts(0)
    del loop.transformer
    parts = {"transformer_2": loop.transformer_2, "scheduler": loop.scheduler}
    pipe = type("Pipe", (), {"components": parts, "scheduler": loop.scheduler})()
    with festina.accelerate(pipe, all_compute(loop.transformer_2)) as run:
        assert run is not None
        assert "forward" in vars(loop.transformer_2)


# -- What a call was given ----------------------------------------------------------------------------------------


def test_calls_are_kept_by_the_shapes_of_all_their_tensors():
    pipe = pixart_pipeline()
    with festina.accelerate(pipe, all_compute(pipe)) as run:
        generate(pipe)
        ((shapes, record),) = run.calls.items()
        assert record.count == STEPS
        assert shapes[0] == tuple(record.call.args[0].shape) == (2, 4, 8, 8)
        assert (2, 20, 16) in shapes
        generate(pipe, guidance_scale=1.0)
        assert next(iter(run.calls))[0] == (1, 4, 8, 8)
    report = run.report()
    assert report.macs == report.macs_uncached > 0


def test_a_run_that_is_over_holds_no_large_tensor():
    model, text = pixart_transformer(), torch.ones(400, 5, 16)
    with torch.no_grad(), festina.accelerate(model, all_compute(model)) as run:
        run.start(STEPS)
        model(torch.zeros(400, 4, 8, 8), text, torch.zeros(400).long())
        before = run.report()
    ((_, record),) = run.calls.items()
    sample, kept, _ = record.call.args
    assert sample.shape == (400, 4, 8, 8)
    assert sample.untyped_storage().nbytes() == kept.untyped_storage().nbytes() == 4
    assert run.report() == before


@pytest.mark.parametrize("by_name", [False, True])
def test_arguments_pass_through_unchanged(by_name):
    model, seen = pixart_transformer(), []
    sample, text, time = torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 16), torch.tensor([5])
    nested = {"resolution": None, "aspect_ratio": None}
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad(), festina.accelerate(model, all_compute(model)) as run:
        inner = run.clock
        run.start(STEPS)
        if by_name:
            model(hidden_states=sample, encoder_hidden_states=text, timestep=time, added_cond_kwargs=nested)
        else:
            model(sample, text, time, nested)
        assert inner.calls == 1
        ((_, record),) = run.calls.items()
    ((args, kwargs),) = seen
    assert record.call.kwargs == kwargs
    assert len(record.call.args) == len(args)
    assert all(one is other for one, other in zip(record.call.args, args, strict=True) if torch.is_tensor(one))
