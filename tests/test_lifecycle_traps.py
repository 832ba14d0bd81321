"""What other accelerators stumble over, as tests: state that outlives its run, its pipeline or its removal."""

import gc

import pytest
import torch
from diffusers import DDIMScheduler, FirstBlockCacheConfig, FluxImg2ImgPipeline
from lifecycle import STEPS, all_compute, random_plan, reference, reusing_plan, snapshot
from tiny import PROMPT, flux_pipeline, generate, pixart_pipeline

import festina
from festina import FestinaError

OTHER = "a large green star on a pink background"


def test_baseline_first_then_accelerated_then_baseline(pipe):
    plan = random_plan(pipe, 1)
    with reference(pipe, plan):
        wanted = generate(pipe)
    plain = generate(pipe)
    for _ in range(2):
        with festina.accelerate(pipe, plan):
            assert torch.equal(generate(pipe), wanted)
        assert torch.equal(generate(pipe), plain)


def test_two_pipelines_of_one_class_and_the_first_removed():
    one, two = pixart_pipeline(), pixart_pipeline()
    plain, plan = generate(one), random_plan(one, 1)
    with reference(two, plan):
        wanted = generate(two)
    festina.apply(one, plan)
    run = festina.apply(two, plan)
    festina.remove(one)
    assert torch.equal(generate(one), plain)
    assert torch.equal(generate(two), wanted)
    assert run.clock.ended == STEPS
    festina.remove(two)
    assert torch.equal(generate(two), plain)


def test_runs_of_two_pipelines_interleaved():
    one, two = pixart_pipeline(), pixart_pipeline()
    plans = [random_plan(one, 1), random_plan(two, 2)]
    wanted = []
    for pipe, plan, prompt in zip((one, two), plans, (PROMPT, OTHER), strict=True):
        with reference(pipe, plan):
            wanted.append(generate(pipe, [prompt]))
    found = []

    def meanwhile(step, timestep, latents):
        if step == 1:
            found.append(generate(two, [OTHER]))

    with festina.accelerate(one, plans[0]), festina.accelerate(two, plans[1]):
        assert torch.equal(generate(one, callback=meanwhile, callback_steps=1), wanted[0])
    assert torch.equal(found[0], wanted[1])


def test_two_pipelines_that_share_denoiser_and_scheduler():
    text = flux_pipeline()
    parts = {name: part for name, part in text.components.items() if name not in ("image_encoder", "feature_extractor")}
    image = FluxImg2ImgPipeline(**parts)
    image.set_progress_bar_config(disable=True)
    call = {"height": 16, "width": 16, "max_sequence_length": 20, "output_type": "pt", "strength": 0.5}
    call |= {"image": torch.zeros(1, 3, 16, 16), "num_inference_steps": STEPS}

    def change():
        return image(PROMPT, generator=torch.Generator().manual_seed(0), **call).images

    plan = random_plan(text, 2)
    with reference(image, plan, 2):
        changed = change()
    with reference(text, plan):
        made = generate(text)
    before = snapshot(text)  # the first run of an untouched pipeline leaves attributes behind
    with festina.accelerate(text, plan) as run:
        for _ in range(2):
            assert torch.equal(generate(text), made)
            assert torch.equal(change(), changed)
            assert run.clock.first == 2
        with pytest.raises(FestinaError, match="already applied"):
            festina.apply(image, plan)
    assert snapshot(text)[:-2] == before[:-2]


def test_a_pipeline_that_shares_the_denoiser_but_not_the_scheduler_is_told():
    one, two = pixart_pipeline(), pixart_pipeline()
    two.transformer = one.transformer
    with festina.accelerate(one, all_compute(one)):
        generate(one)
        with pytest.raises(FestinaError, match="outside a sampling run"):
            generate(two)
    assert torch.equal(generate(one), generate(two))


def test_shared_encoders_are_none_of_its_business():
    one, two = pixart_pipeline(), pixart_pipeline()
    two.text_encoder, two.vae = one.text_encoder, one.vae
    plain, plan = generate(two), random_plan(one, 1)
    with festina.accelerate(one, plan):
        first = generate(one)
        assert torch.equal(generate(two), plain)
        assert torch.equal(generate(one), first)


@pytest.mark.parametrize("kind", [pixart_pipeline, flux_pipeline])
def test_a_picture_does_not_depend_on_its_place_in_the_batch(kind):
    pipe = kind()

    def batch(prompts, seeds):
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        return _drawn(pipe, prompts, generator)

    with festina.accelerate(pipe, random_plan(pipe, 4)):
        one = batch([PROMPT, OTHER, OTHER], [1, 2, 3])
        two = batch([OTHER, PROMPT, OTHER], [3, 1, 2])
    for here, there in [(0, 1), (1, 2), (2, 0)]:
        torch.testing.assert_close(one[here], two[there], atol=1e-5, rtol=1e-4)


def _drawn(pipe, prompts, generator):
    call = {"height": 16, "width": 16, "max_sequence_length": 20, "output_type": "pt", "num_inference_steps": STEPS}
    if "Alpha" in type(pipe).__name__:
        call |= {"use_resolution_binning": False, "clean_caption": False}
    return pipe(prompts, generator=generator, **call).images


def test_batch_resolution_and_prompt_change_between_runs(pipe):
    plan = random_plan(pipe, 2)
    calls = [{}, {"prompts": [PROMPT, OTHER]}, {"prompts": [OTHER]}, {"seed": 3}, {}]
    if type(pipe).__name__ != "DiTPipeline":
        calls.insert(2, {"height": 32, "width": 16})
    wanted = []
    for call in calls:
        with reference(pipe, plan):
            wanted.append(generate(pipe, **call))
    with festina.accelerate(pipe, plan) as run:
        for call, picture in zip(calls, wanted, strict=True):
            assert torch.equal(generate(pipe, **call), picture)
            assert len(run.store) == 0


def test_applied_and_removed_fifty_times_leaves_nothing():
    pipe = pixart_pipeline()
    plain = generate(pipe)
    plan, before = random_plan(pipe, 1), snapshot(pipe)
    wanted = None
    objects = []
    for turn in range(50):
        with festina.accelerate(pipe, plan):
            if turn % 10 == 0:
                picture = generate(pipe)
                assert wanted is None or torch.equal(picture, wanted)
                wanted = picture
        assert snapshot(pipe)[:-2] == before[:-2]
        assert [set(owner) for owner in snapshot(pipe)[-2:]] == [set(owner) for owner in before[-2:]]
        if turn in (9, 49):
            gc.collect()
            objects.append(len(gc.get_objects()))
    assert torch.equal(generate(pipe), plain)
    assert objects[1] - objects[0] < 1000


def test_nothing_is_left_of_a_run_that_was_cut_off_and_removed():
    pipe = pixart_pipeline()
    plain = generate(pipe)

    def stop(step, timestep, latents):
        raise RuntimeError("stop")

    run = festina.apply(pipe, reusing_plan(pipe))
    with pytest.raises(RuntimeError, match="stop"):
        generate(pipe, callback=stop, callback_steps=1)
    assert len(run.store) > 0
    festina.remove(pipe)
    assert len(run.store) == 0
    assert torch.equal(generate(pipe), plain)


def test_diffusers_own_cache_put_on_afterwards_is_noticed():
    pipe = flux_pipeline()
    with festina.accelerate(pipe, random_plan(pipe)):
        wanted = generate(pipe)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(FestinaError, match="disable_cache"):
            generate(pipe)
        pipe.transformer.disable_cache()
        assert torch.equal(generate(pipe), wanted)


def test_a_site_that_has_gone_is_noticed():
    pipe = pixart_pipeline()
    festina.apply(pipe, reusing_plan(pipe))
    block = pipe.transformer.transformer_blocks[1]
    ff = block.ff
    block.ff = None
    with pytest.raises(FestinaError, match=r"no module 'transformer_blocks.1.ff' any more"):
        generate(pipe)
    block.ff = ff
    festina.remove(pipe)


def test_a_scheduler_put_in_afterwards_is_noticed():
    pipe = pixart_pipeline()
    with festina.accelerate(pipe, reusing_plan(pipe)):
        first = pipe.scheduler
        pipe.scheduler = DDIMScheduler()
        with pytest.raises(FestinaError, match="after replacing its scheduler"):
            generate(pipe)
        pipe.scheduler = first
        generate(pipe)
