"""Site trees: what is found, what rows change, what is refused."""

import pytest
import torch
from denoisers.all_classes import CLASSES
from torch import nn

from festina import FestinaError
from festina.sites import (
    Row,
    Stack,
    block_sites,
    component_sites,
    find_denoiser,
    region_sites,
    register,
    resolve,
    site_tree,
)


def built(name):
    torch.manual_seed(0)
    return CLASSES[name].build()


def test_flux_and_its_parallel_blocks():
    flux = built("FluxTransformer2DModel")
    tree = site_tree(flux)
    assert {block.stack: [part.name for part in block.parts] for block in tree.blocks} == {
        "transformer_blocks": ["attn", "ff", "ff_context"],
        "single_transformer_blocks": ["proj_mlp", "proj_out", "attn"],
    }
    assert tree.regions == ()
    assert [site.role for site in component_sites(flux)[:3]] == ["self-attention", "feed-forward", "feed-forward"]
    assert {site.streams for site in block_sites(flux)} == {("encoder_hidden_states", "hidden_states")}


def test_a_unet_has_regions_blocks_and_lone_components():
    unet = built("UNet2DConditionModel")
    assert [site.path for site in region_sites(unet)] == [
        *(f"down_blocks.{n}" for n in range(4)),
        "mid_block",
        *(f"up_blocks.{n}" for n in range(4)),
    ]
    names = {site.name: site.role for site in component_sites(unet)}
    assert names["down_blocks.0.resnets.0"] == names["down_blocks.0.downsamplers.0"] == "convolution"
    assert names["mid_block.attentions.0.transformer_blocks.0.attn1"] == "self-attention"
    assert names["mid_block.attentions.0.transformer_blocks.0.attn2"] == "cross-attention"
    # Regions are no blocks: what they return is kept as it is.
    assert not any(site.path.startswith("down_blocks.0") and site.path.count(".") == 1 for site in block_sites(unet))


def test_runs_are_made_by_their_names():
    pixart = built("PixArtTransformer2DModel")
    (run,) = resolve(pixart, ("transformer_blocks.0..2:residual",))
    assert run.paths == ("transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2")
    unet = built("UNet2DConditionModel")
    (below,) = resolve(unet, ("down_blocks.2..up_blocks.1:feature",))
    assert below.paths == ("down_blocks.2", "down_blocks.3", "mid_block", "up_blocks.0", "up_blocks.1")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("PixArtTransformer2DModel", "transformer_blocks.7.attn1"),
        ("PixArtTransformer2DModel", "transformer_blocks.1..9:residual"),
        ("PixArtTransformer2DModel", "mid_block:feature"),
        ("UNet2DConditionModel", "down_blocks.0.resnets.0:residual"),
        ("UNet2DConditionModel", "down_blocks.0..up_blocks.9:feature"),
    ],
)
def test_sites_of_other_models_are_refused(name, wrong):
    with pytest.raises(FestinaError, match="are not in this"):
        resolve(built(name), (wrong,))


def test_runs_that_share_blocks_are_refused():
    names = ("transformer_blocks.0..1:residual", "transformer_blocks.1..2:residual")
    with pytest.raises(FestinaError, match="share blocks"):
        resolve(built("PixArtTransformer2DModel"), names)


class Odd(nn.Module):
    """A denoiser whose attention goes by a name nobody knows."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"mix": nn.Linear(4, 4), "feed": nn.Linear(4, 4)}) for _ in range(2))


def test_a_class_that_cannot_be_mapped_is_told_what_to_do(monkeypatch):
    with pytest.raises(FestinaError) as refused:
        component_sites(Odd())
    assert "layers (2 x ModuleDict of mix, feed)" in str(refused.value)
    assert "festina.sites.register(festina.sites.Row('Odd'" in str(refused.value)
    register(Row("Odd", (Stack("layers", components=("mix", "feed")),)))
    assert [site.name for site in component_sites(Odd())] == [
        "layers.0.mix",
        "layers.0.feed",
        "layers.1.mix",
        "layers.1.feed",
    ]


def test_a_row_that_does_not_fit_is_told():
    class Other(Odd):
        pass

    register(Row("Other", (Stack("blocks", components=("mix",)),)))
    with pytest.raises(FestinaError, match="names 'blocks', which this model lacks"):
        component_sites(Other())
    register(Row("Other", (Stack("layers", components=("attn",)),)))
    with pytest.raises(FestinaError, match=r"wants attn in layers.0, which has mix, feed"):
        component_sites(Other())


def test_the_denoiser_of_something_else_is_told():
    with pytest.raises(FestinaError, match="no `transformer`"):
        find_denoiser(object())


def test_every_component_lies_in_its_block():
    for name in CLASSES:
        for site in component_sites(built(name)):
            assert site.path == (f"{site.block}.{site.part}" if site.part else site.block)
            assert site.block.startswith(f"{site.stack}.")
