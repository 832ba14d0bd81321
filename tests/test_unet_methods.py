"""DeepCache and Faster Diffusion: which levels of a U-Net run when."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from denoisers.all_classes import CLASSES
from pipelines.unets import PIPELINES
from tiny import pixart_transformer
from watched import steps_run

import festina
from festina import FestinaError, Plan
from festina.methods import deepcache, faster_diffusion
from festina.methods.deepcache import dense_around
from festina.methods.faster_diffusion import scaled_keys
from festina.sites import deep_regions

DENSE = [
    (50, 5, 15, 1.4, [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]),
    (50, 3, 15, 1.4, [0, 3, 6, 8, 11, 13, 15, 17, 20, 22, 25, 28, 32, 35, 38, 42, 46]),
    (50, 5, 15, 1.2, [0, 5, 10, 14, 18, 22, 27, 32, 38, 44]),
    (50, 2, 15, 1.4, [0, 2, 4, 6, 7, 9, 11, 12, 14, 15, 17, 18, 20, 22, 24, 26, 28, 30, 32, 35, 37, 39, 42, 44, 47]),
]


@pytest.fixture(scope="module")
def pipe():
    """Stable Diffusion 2, whose U-Net has four levels."""
    return PIPELINES["sd2"].build()


def picture(pipe, steps):
    case = PIPELINES["sd2"]
    return case.output(pipe(**case.call(steps, 1)))


@pytest.mark.parametrize(("steps", "interval", "centre", "power", "full"), DENSE)
def test_dense_steps_of_the_released_code(steps, interval, centre, power, full):
    assert np.flatnonzero(dense_around(steps, interval, centre, power)).tolist() == full


def test_a_signed_real_power_is_another_schedule():
    """The trap of porting: roots of the negative end are complex."""
    ends = -(15 ** (1 / 1.4)), 35 ** (1 / 1.4)
    points = np.linspace(*ends, 11)
    signed = np.unique(np.trunc(np.sign(points) * np.abs(points) ** 1.4).astype(int))[1:-1] + 15
    assert [0, *signed] == [0, 6, 11, 14, 15, 19, 24, 29, 35, 42]
    assert np.flatnonzero(dense_around(50, 5, 15, 1.4)).tolist() != [0, *signed]


def test_dense_steps_are_as_many_as_uniform_ones():
    for steps in range(2, 40, 5):
        for interval in range(2, 9):
            for centre in range(0, steps, 4):
                marks = dense_around(steps, interval, centre, 1.4)
                assert marks[0]
                assert marks.sum() == math.ceil(steps / interval)
    assert dense_around(30, 1, 15, 1.4).all()


@pytest.mark.parametrize(
    ("name", "branch", "site"),
    [
        ("UNet2DConditionModel", 0, "down_blocks.1..up_blocks.2:feature"),
        ("UNet2DConditionModel", 1, "down_blocks.2..up_blocks.1:feature"),
        ("UNet2DConditionModel", 2, "down_blocks.3..up_blocks.0:feature"),
        ("UNet2DConditionModel", 3, "mid_block:feature"),
        ("UNet2DConditionModel-sdxl", 0, "down_blocks.1..up_blocks.1:feature"),
        ("Kandinsky3UNet", 2, "down_blocks.3..up_blocks.0:feature"),
    ],
)
def test_a_branch_is_a_cut_between_levels(name, branch, site):
    plan = deepcache(CLASSES[name].build(), 10, 5, branch)
    assert plan.sites == (site,)
    assert [step.actions for step in plan.steps] == list("CRRRRCRRRR")


def test_the_deep_regions_are_what_the_shallowest_branch_serves(pipe):
    assert deepcache(pipe, 4, 2).sites == (deep_regions(pipe.unet),)
    with pytest.raises(FestinaError, match="0 regions; wanted a U-Net of at least 3"):
        deep_regions(pixart_transformer())


def test_only_the_shallow_levels_run_in_between(pipe):
    shallow, deep = ("down_blocks.0", "up_blocks.3"), ("down_blocks.1", "down_blocks.3", "mid_block", "up_blocks.2")
    plan = deepcache(pipe, 7, 3)
    ran = steps_run(pipe, plan, (*shallow, *deep), lambda: picture(pipe, 7))
    assert ran == dict.fromkeys(shallow, tuple(range(7))) | dict.fromkeys(deep, (0, 3, 6))


def test_dense_steps_enter_the_plan():
    unet = CLASSES["UNet2DConditionModel"].build()
    plan = deepcache(unet, 50, 5, uniform=False)
    assert list(plan.computed_steps()) == DENSE[0][-1]
    assert (plan.settings["centre"], plan.settings["power"]) == (15, 1.4)
    other = deepcache(unet, 50, 5, uniform=False, power=1.2)
    assert list(other.computed_steps()) == DENSE[2][-1]


def test_default_keys_of_faster_diffusion(pipe):
    plan = faster_diffusion(pipe, 50)
    keys = plan.computed_steps()
    assert keys == (0, 1, 2, 3, 5, 10, 15, 25, 35)
    assert 50 - keys[-1] == 15
    assert plan.sites == ("down_blocks.0..mid_block:feature",)
    assert plan.settings == {"keys": list(keys), "parallel": False, "injection": 0.0}


def test_default_keys_move_in_proportion():
    assert scaled_keys(100) == (0, 2, 4, 6, 10, 20, 30, 50, 70)
    assert scaled_keys(20) == (0, 1, 2, 4, 6, 10, 14)
    assert scaled_keys(1) == (0,)


def test_keys_may_be_an_interval_or_a_list(pipe):
    assert faster_diffusion(pipe, 10, 4).computed_steps() == (0, 4, 8)
    assert faster_diffusion(pipe, 10, [0, 2, 9]).computed_steps() == (0, 2, 9)


def test_a_u_net_without_a_middle_has_an_encoder():
    plan = faster_diffusion(CLASSES["Kandinsky3UNet"].build(), 10)
    assert plan.sites == ("down_blocks.0..down_blocks.3:feature",)


def test_the_encoder_runs_at_keys_only(pipe):
    encoder = ("down_blocks.0", "down_blocks.3", "mid_block")
    decoder = ("up_blocks.0", "up_blocks.3")
    ran = steps_run(pipe, faster_diffusion(pipe, 6, [0, 1, 4]), (*encoder, *decoder), lambda: picture(pipe, 6))
    assert ran == dict.fromkeys(encoder, (0, 1, 4)) | dict.fromkeys(decoder, tuple(range(6)))


@pytest.mark.parametrize("make", [lambda pipe: deepcache(pipe, 4, 1), lambda pipe: faster_diffusion(pipe, 4, 1)])
def test_interval_one_is_the_untouched_run(pipe, make):
    plan = make(pipe)
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 4).key()
    untouched = picture(pipe, 4)
    with festina.accelerate(pipe, plan):
        assert torch.equal(picture(pipe, 4), untouched)


@pytest.mark.parametrize(
    "make", [lambda pipe: deepcache(pipe, 20, 5, uniform=False), lambda pipe: faster_diffusion(pipe, 20)]
)
def test_plans_round_trip(pipe, make):
    plan = make(pipe)
    assert plan.sampler == "DDIMScheduler"
    assert Plan.from_json(plan.to_json()) == plan
    assert make(pipe.unet).key() == plan.key()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"interval": 0}, "interval"),
        ({"branch": 4}, "from 0 to 3"),
        ({"centre": 15}, "uniform=False"),
        ({"power": 1.4}, "uniform=False"),
        ({"uniform": False, "centre": 20}, "from 0 to 19"),
        ({"uniform": False, "power": 1}, "above 1"),
        ({"uniform": False, "power": math.nan}, "above 1"),
    ],
)
def test_deepcache_refuses(pipe, knobs, message):
    with pytest.raises(FestinaError, match=message):
        deepcache(pipe, **{"steps": 20, "interval": 5, **knobs})


@pytest.mark.parametrize("keys", [0, [], [1, 2], [0, 3, 2], [0, 2, 2], [0, 20], [0, 1.5]])
def test_faster_diffusion_refuses(pipe, keys):
    with pytest.raises(FestinaError, match=r"key step|interval"):
        faster_diffusion(pipe, 20, keys)


def test_only_u_nets_have_levels():
    for make in (lambda model: deepcache(model, 8, 2), lambda model: faster_diffusion(model, 8)):
        with pytest.raises(FestinaError, match="PixArtTransformer2DModel has 0 levels"):
            make(pixart_transformer())
    with pytest.raises(FestinaError, match="nothing lies below level 3"):
        deepcache(CLASSES["Kandinsky3UNet"].build(), 8, 2, branch=3)
