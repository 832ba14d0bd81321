"""Plans that answer ahead: canonical form, file and key, what is refused; and the parts of which it is made."""

from dataclasses import replace

import pytest
import torch
from denoisers.all_classes import CLASSES
from pipelines import unets
from test_ahead import BOTH, ENCODER, plan_of, without
from tiny import pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.executor.ahead import is_entry, repeated_arguments, repeated_rows, rows_of
from festina.gates import Gate
from festina.sites import entry_site, region_sites


@pytest.fixture(scope="module")
def pipe():
    """Stable Diffusion 2 with a DDIM scheduler."""
    return unets.PIPELINES["sd2"].build()


@pytest.mark.parametrize(
    ("letters", "ahead", "left"),
    [
        ("CRRR", (9, 0, 0, 0), (3, 0, 0, 0)),
        ("CRCR", (3, 0, 3, 0), (1, 0, 1, 0)),
        ("CCRR", (3, 3, 0, 0), (0, 2, 0, 0)),
        ("CRRR", (1, 2, 2, 2), (1, 0, 1, 0)),
        ("CR1R", (3, 0, 0, 0), (3, 0, 0, 0)),
        ("CCR1", (0, 3, 0, 0), (0, 1, 0, 0)),
        ("CRRC", (0, 0, 1, 5), (0, 0, 0, 0)),
    ],
)
def test_ahead_is_cut_to_what_one_call_can_answer(letters, ahead, left):
    plan = plan_of(letters, ahead).canonical()
    assert tuple(step.ahead for step in plan.steps) == left
    assert plan.canonical() == plan


def test_ahead_ends_where_other_branches_run():
    plan = plan_of("CRRR", (3, 0, 0, 0))
    steps = (*plan.steps[:2], *(replace(step, branches="conditional") for step in plan.steps[2:]))
    assert [step.ahead for step in replace(plan, steps=steps).canonical().steps] == [1, 0, 0, 0]


def test_the_file_and_the_key():
    plan = plan_of("CRRR", (3, 0, 0, 0))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.to_json().count('"ahead": 3') == plan.to_json().count('"ahead"') == 1
    assert "ahead" not in without(plan).to_json()
    assert len({plan_of("CRRR", (many, 0, 0, 0)).key() for many in (0, 1, 2, 3, 4)}) == 4
    assert plan_of("CCCC", (3, 0, 0, 0)).key() == Plan.computing_all(plan.denoiser, BOTH, 4).key()
    assert plan.resample(4) == plan
    assert [step.ahead for step in plan.resample(8).steps] == [0] * 8
    for wrong in (-1, True, 1.0, 10_001):
        with pytest.raises(FestinaError, match="answers ahead are no whole number"):
            plan_of("CR", (wrong, 0))
    with pytest.raises(FestinaError, match="'ahead' of step 0 is a whole number"):
        Plan.from_json(plan.to_json().replace('"ahead": 3', '"ahead": 3.0'))


def test_plans_that_cannot_be_answered_ahead(pipe):
    unet, up = pipe.unet, "up_blocks.3.resnets.0"
    with pytest.raises(FestinaError, match="3 steps after step 0 ahead, but there 'conv_in' is not served"):
        festina.apply(unet, plan_of("CRRR", (3, 0, 0, 0), sites=(ENCODER,)))
    with pytest.raises(FestinaError, match="'mid_block' is not served"):
        festina.apply(unet, plan_of("CRRR", (3, 0, 0, 0), sites=(BOTH[0], "down_blocks.0..down_blocks.3:feature")))
    with pytest.raises(FestinaError, match="'conv_in:feature' neither computes nor reuses"):
        festina.apply(unet, plan_of("CC1R", (0, 1, 0, 0)))
    rows = ("CCC", "RRC", "RRR", "RRC")
    late = Plan(
        "UNet2DConditionModel",
        (*BOTH, up),
        tuple(Step(1 - n / 4, row, ahead=int(n == 0)) for n, row in enumerate(rows)),
    )
    with pytest.raises(FestinaError, match=r"'up_blocks\.3\.resnets\.0' computes what is read after them"):
        festina.apply(unet, late)
    entry = Gate("mid_block.attentions.0.transformer_blocks.0:residual", "residual", "computed", 0.1)
    gated = "up_blocks.1.attentions.0.transformer_blocks.0:residual"
    steps = (Step(1.0, "CCC", ahead=1), Step(0.5, "RRC"), Step(0.2, "CCG"))
    with pytest.raises(FestinaError, match="none can be answered ahead"):
        festina.apply(unet, Plan("UNet2DConditionModel", (*BOTH, gated), steps, gate=entry))
    blocks = plan_of("CRRR", (3, 0, 0, 0), "PixArtTransformer2DModel", ("transformer_blocks.0..2:residual",))
    with pytest.raises(FestinaError, match="PixArtTransformer2DModel is no U-Net whose latents come in through"):
        festina.apply(pixart_transformer(), blocks)
    assert "forward" not in vars(unet)


def test_the_entry_of_a_u_net_is_a_site(pipe):
    assert entry_site(pipe.unet).name == "conv_in:feature"
    assert "conv_in:feature" not in [site.name for site in region_sites(pipe.unet)]
    for name in ("UNet1DModel", "FluxTransformer2DModel"):
        with pytest.raises(FestinaError, match="is no U-Net whose latents"):
            entry_site(CLASSES[name].build())


def test_rows_of_a_picture_lie_together():
    value = torch.tensor([0, 1, 10, 11])
    # Two rows of two frames each, at three times.
    repeated = repeated_rows((value, None), 2, 3)[0]
    assert repeated.tolist() == [0, 1, 0, 1, 0, 1, 10, 11, 10, 11, 10, 11]
    assert repeated_rows(torch.tensor([5, 6]), 2, 2).tolist() == [5, 5, 6, 6]
    answers = {"sample": torch.arange(6), "other": "text"}
    assert rows_of(answers, 2, 3, 1)["sample"].tolist() == [1, 4]
    with pytest.raises(FestinaError, match=r"shape \(4,\) is not of the 3 rows"):
        repeated_rows(value, 3, 2)
    with pytest.raises(FestinaError, match="has not the 6 rows"):
        rows_of(torch.arange(5), 2, 3, 0)


def test_which_arguments_are_repeated():
    sample, times = torch.zeros(2, 4, 3, 8, 8), torch.tensor([9, 8, 9, 8])
    given = {"t": torch.zeros(2, 5), "deep": [torch.zeros(6, 7), None], "scale": 0.5, "mask": torch.zeros(1, 2)}
    args, kwargs = repeated_arguments(["sample", "timestep"], (sample, 7), given, sample, times)
    assert args[0].shape[0] == 4
    assert args[1] is times
    assert [kwargs["t"].shape[0], kwargs["deep"][0].shape[0], kwargs["mask"].shape[0]] == [4, 12, 1]
    assert kwargs["scale"] == 0.5
    assert kwargs["deep"][1] is None


def test_a_timestep_is_known_by_its_place_or_its_value():
    schedule = torch.tensor([901.3, 500.0, 500.0])
    assert is_entry(schedule, 2, schedule[2].expand(4))
    assert is_entry(schedule, 2, schedule[1])
    assert not is_entry(schedule, 0, schedule[1])
    assert is_entry(schedule, 0, torch.tensor([901.3, 901.3]).bfloat16())
    assert not is_entry(schedule, 0, torch.tensor([901.3, 500.0]))
    assert is_entry(schedule, 1, 500)
    assert not is_entry(schedule, 1, None)
