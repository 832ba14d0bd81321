"""Pyramid Attention Broadcast: its table against hand-worked rows and diffusers' hook; training times of schedulers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from denoisers.all_classes import CLASSES
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from lifecycle import Ran
from pipelines.videos import PIPELINES
from tiny import flux_transformer, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan
from festina.methods import pab
from festina.methods.pab import LATTE_FEED_FORWARDS, FeedForwards, kind_of
from festina.methods.training_times import training_times
from festina.sites import component_sites


def columns(plan):
    """Actions of each site as one text."""
    return {site: "".join(step.actions[place] for step in plan.steps) for place, site in enumerate(plan.sites)}


def by_kind(model, plan):
    kinds = {site.name: kind_of(site) for site in component_sites(model)}
    found = {}
    for site, actions in columns(plan).items():
        found.setdefault(kinds[site], set()).add(actions)
    return found


def test_within_the_window_each_kind_has_its_range():
    """Ten steps lie at 999, 899.1, ..., 99.9: the window of 100 to 800 holds those from 2 to 8."""
    model = pixart_transformer()
    plan = pab(model, 10)
    assert by_kind(model, plan) == {"spatial": {"CCCRCRCRCC"}, "cross": {"CCRRRRCRRC"}}
    assert plan.settings == {
        "ranges": {"spatial": 2, "cross": 6},
        "window": [100, 800],
        "feed_forwards": None,
        "times": None,
    }


def test_what_is_published_for_a_model():
    latte = CLASSES["LatteTransformer3DModel"].build()
    plan = pab(latte, 10)
    assert by_kind(latte, plan) == {"spatial": {"CCCRCRCRCC"}, "temporal": {"CCRCRRCRRC"}, "cross": {"CCRRRRCRRC"}}
    cogvideox = CLASSES["CogVideoXTransformer3DModel"].build()
    plan = pab(cogvideox, 20)
    assert (plan.settings["ranges"], plan.settings["window"]) == ({"spatial": 2}, [100, 850])
    # 999 - 50 s lies within 100 to 850 from step 3 to step 17.
    assert by_kind(cogvideox, plan) == {"spatial": {"CCC" + "RC" * 7 + "R" + "CC"}}
    assert pab(flux_transformer(), 10).settings["ranges"] == {"spatial": 2}


def test_lists_along_time_are_told_by_their_names():
    kinds = {site.name: kind_of(site) for site in component_sites(CLASSES["UNetMotionModel"].build())}
    assert kinds["down_blocks.0.motion_modules.0.transformer_blocks.0.attn1"] == "temporal"
    assert kinds["down_blocks.0.attentions.0.transformer_blocks.0.attn1"] == "spatial"
    assert kinds["down_blocks.0.attentions.0.transformer_blocks.0.attn2"] == "cross"
    assert kinds["down_blocks.0.attentions.0.transformer_blocks.0.ff"] == ""


def test_pictures_are_those_of_the_hook_in_diffusers():
    case = PIPELINES["latte"]
    pipe, steps = case.build(), 9

    def video():
        return case.output(pipe(**case.call(steps, 1)))

    untouched = video()
    with festina.accelerate(pipe, pab(pipe, steps)):
        ours = video()
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        temporal_attention_block_skip_range=3,
        cross_attention_block_skip_range=6,
        # By default the list along time counts as spatial.
        spatial_attention_block_identifiers=("^transformer_blocks",),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    apply_pyramid_attention_broadcast(pipe.transformer, config)
    assert torch.equal(ours, video())
    assert not torch.equal(ours, untouched)


def test_sites_run_when_the_plan_says():
    pipe = pixart_pipeline()
    plan = pab(pipe, 8, {"spatial": 3, "cross": 4}, window=(0, 900))
    with festina.accelerate(pipe, plan) as run:
        ran = Ran(pipe, run)
        try:
            generate(pipe, steps=8)
        finally:
            ran.remove()
    # 999, 874, 749, ...: all but the first step lie within.
    wanted = {"attn1": [0, 3, 6], "attn2": [0, 4], "ff": list(range(8))}
    assert {site: [step for step, _ in steps] for site, steps in ran.steps.items()} == {
        site: wanted[site.rpartition(".")[2]] for site in ran.steps
    }


def test_feed_forwards_are_held_after_their_times():
    """Fifty steps of Latte lie at 980, 960, ..., 0: 720 is step 13, and each further 80 are four steps."""
    pipe = PIPELINES["latte"].build()
    told = FeedForwards((0, 2), LATTE_FEED_FORWARDS.times, LATTE_FEED_FORWARDS.held)
    plan = pab(pipe, 50, feed_forwards=told)
    held = [14, 15, 18, 19, 22, 23, 26, 27, 30, 31]
    actions = "".join("R" if step in held else "C" for step in range(50))
    assert {site: text for site, text in columns(plan).items() if site.endswith("ff")} == {
        f"{stack}.{block}.ff": actions
        for stack in ("transformer_blocks", "temporal_transformer_blocks")
        for block in told.blocks
    }
    assert plan.settings["feed_forwards"] == {"blocks": [0, 2], "times": [720, 640, 560, 480, 400], "held": 2}
    with pytest.raises(FestinaError, match="blocks from 0 to 2"):
        pab(pipe, 50, feed_forwards=LATTE_FEED_FORWARDS)


def test_feed_forwards_compute_at_each_of_their_times():
    """Steps a hundred apart: a time within what is held after another one computes; the end cuts off what is held."""
    times = [1000 - 100 * step for step in range(10)]
    plan = pab(pixart_transformer(), 10, feed_forwards=FeedForwards((1,), (690, 510, 140), 3), times=times)
    assert columns(plan)["transformer_blocks.1.ff"] == "CCCCRCRRRC"
    # 140 lies next to 100, which is the last step.
    assert "transformer_blocks.0.ff" not in plan.sites


def test_times_may_be_given():
    model = pixart_transformer()
    plan = pab(model, 4, {"cross": 4}, times=[900, 800, 799, 100])
    assert by_kind(model, plan) == {"cross": {"CCRC"}}
    assert plan.settings["times"] == [900, 800, 799, 100]


def test_ranges_of_one_are_the_untouched_run():
    pipe = pixart_pipeline()
    plan = pab(pipe, 4, {"spatial": 1, "cross": 1})
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 4).key()
    untouched = generate(pipe)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe), untouched)


def test_the_plan_round_trips():
    plan = pab(pixart_pipeline(), 6, feed_forwards=FeedForwards((0,), (500.0,), 1))
    assert (plan.method, plan.sampler) == ("pab", "DPMSolverMultistepScheduler")
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"steps": 0}, "number of steps"),
        ({"ranges": {}}, "no kind of attention"),
        ({"ranges": {"temporal": 2}}, "ranges for temporal; PixArtTransformer2DModel has spatial, cross"),
        ({"ranges": {"cross": 0}}, "interval is 0"),
        ({"window": (800, 100)}, "low < high"),
        ({"window": (100, 1001)}, "low < high"),
        ({"times": [1, 2]}, "2 times for 8 steps"),
        ({"times": [2000] * 8}, "from 1000 to 0"),
        ({"feed_forwards": FeedForwards((3,), (500,), 1)}, "blocks from 0 to 2"),
        ({"feed_forwards": FeedForwards((0,), (), 1)}, "at 0 times"),
        ({"feed_forwards": FeedForwards((0,), (500,), 0)}, "held for"),
    ],
)
def test_refuses_what_makes_no_schedule(knobs, message):
    with pytest.raises(FestinaError, match=message):
        pab(pixart_transformer(), **{"steps": 8, **knobs})


class Holding:
    """Something with a scheduler."""

    def __init__(self, scheduler):
        self.scheduler = scheduler


def test_training_times_are_those_that_the_scheduler_will_set():
    pipe = pixart_pipeline()
    times = training_times(pipe, 7)
    assert pipe.scheduler.num_inference_steps is None
    pipe.scheduler.set_timesteps(7)
    assert times == tuple(pipe.scheduler.timesteps.tolist())


def test_a_step_is_an_entry_of_the_schedule():
    assert training_times(Holding(HeunDiscreteScheduler()), 5) == (999.0, 499.5, 499.5, 0.0, 0.0)
    assert training_times(Holding(PNDMScheduler(skip_prk_steps=True)), 5) == (750.0, 500.0, 500.0, 250.0, 0.0)
    with pytest.raises(FestinaError, match="never 4"):
        training_times(Holding(HeunDiscreteScheduler()), 4)


def test_training_time_is_from_a_thousand_whatever_was_trained():
    assert training_times(Holding(DDIMScheduler(num_train_timesteps=200)), 4) == (750.0, 500.0, 250.0, 0.0)
    mochi = training_times(PIPELINES["mochi"].build(), 5)
    assert mochi[0] == 1000
    assert mochi == tuple(sorted(mochi, reverse=True))


def test_a_bare_denoiser_has_even_times():
    assert training_times(pixart_transformer(), 4) == (999.0, 749.25, 499.5, 249.75)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(), "no training time from 1000 to 0"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "from a number of steps alone"),
    ],
)
def test_a_scheduler_that_does_not_tell_is_refused(scheduler, message):
    with pytest.raises(FestinaError, match=message):
        training_times(Holding(scheduler), 4)
    plan = pab(pixart_transformer(), 4, times=np.linspace(999, 0, 4).tolist())
    assert columns(plan)["transformer_blocks.0.attn1"] == "CRCC"
