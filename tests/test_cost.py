"""Closed-form costs against recorded totals, torch's own counter and hand-worked examples."""

import functools

import numpy as np
import pytest
import torch
from calls import Shape, prices, traced
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel
from tiny import dit_transformer, flux_transformer, pixart_transformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from festina.cost import Call, Macs, plan_macs, trace
from festina.errors import FestinaError
from festina.plan import Plan, Step, even_noise
from festina.sites import block_sites, component_sites

PIXART_256, FLUX_256 = Shape(2, 256, 120), Shape(2, 256, 512)


@functools.cache
def pixart_alpha():
    with torch.device("meta"):
        return PixArtTransformer2DModel(
            sample_size=32, caption_channels=4096, cross_attention_dim=1152, use_additional_conditions=False
        )


@functools.cache
def flux_dev():
    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


def fora(denoiser, interval, steps=20):
    sites = [site.name for site in component_sites(denoiser)]
    mask = np.zeros((steps, len(sites)), dtype=bool)
    mask[::interval] = True
    return Plan.from_mask(type(denoiser).__name__, sites, mask)


def plan_of(sites, *rows, denoiser="PixArtTransformer2DModel"):
    noise = even_noise(len(rows))
    return Plan(denoiser, tuple(sites), tuple(Step(level, row) for level, row in zip(noise, rows, strict=True)))


# Totals recorded in ECAD's released schedule files.
@pytest.mark.parametrize(
    ("interval", "macs"),
    [(1, 5713796136960), (2, 2871882547200), (3, 2019308470272), (4, 1450925752320), (5, 1166734393344)],
)
def test_pixart_fora_to_the_last_mac(interval, macs):
    assert plan_macs(fora(pixart_alpha(), interval), prices(pixart_alpha(), PIXART_256)).linear == macs


@pytest.mark.parametrize(
    ("interval", "macs"),
    [(1, 198691510026240), (2, 99542189998080), (3, 69797393989632), (4, 49967529984000), (5, 40052597981184)],
)
def test_flux_fora_to_the_last_mac(interval, macs):
    assert plan_macs(fora(flux_dev(), interval), prices(flux_dev(), FLUX_256)).linear == macs


def test_pixart_single_steps():
    table = prices(pixart_alpha(), PIXART_256)
    assert table.fixed == Macs(1498447872, 0)
    assert table.full.linear == 285689806848
    # 28 blocks, two attentions each of 2 rows x 256 queries x (256 | 120) keys x 1152 wide, twice.
    assert table.full.attention == 28 * 2 * 2 * 256 * (256 + 120) * 1152
    assert table.sites["transformer_blocks.0.attn1"].linear == 2717908992
    assert table.sites["transformer_blocks.27.attn2"].linear == 1995964416
    assert table.sites["transformer_blocks.13.ff"] == Macs(5435817984, 0)


def test_flux_components():
    table, d, image, text = prices(flux_dev(), FLUX_256), 3072, 256, 512
    weights = {
        "transformer_blocks.0.attn": 4 * (image + text),
        "transformer_blocks.18.ff": 8 * image,
        "transformer_blocks.18.ff_context": 8 * text,
        "single_transformer_blocks.0.attn": 3 * (image + text),
        "single_transformer_blocks.37.proj_mlp": 4 * (image + text),
        "single_transformer_blocks.37.proj_out": 5 * (image + text),
    }
    assert {site: table.sites[site].linear for site in weights} == {
        site: 2 * d * d * count for site, count in weights.items()
    }
    assert table.sites["transformer_blocks.3.attn"].attention == 2 * 2 * (image + text) ** 2 * d
    assert table.full.attention == 57 * 2 * 2 * (image + text) ** 2 * d


@pytest.mark.parametrize("same", [(5, 6), (7, 8, 9)])
def test_fora_intervals_that_cost_the_same(same):
    for denoiser, shape in ((pixart_alpha(), PIXART_256), (flux_dev(), FLUX_256)):
        table = prices(denoiser, shape)
        assert len({plan_macs(fora(denoiser, interval), table) for interval in same}) == 1
        assert plan_macs(fora(denoiser, same[0] - 1), table).linear > plan_macs(fora(denoiser, same[0]), table).linear


def counted_macs(denoiser, **inputs):
    # The counter knows matrix products but not the fused attention kernel of the CPU.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        denoiser(**inputs)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def pixart_inputs(batch=3, tokens=5):
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, tokens, 16),
        "timestep": torch.full((batch,), 7),
    }


def test_pixart_matches_the_flop_counter():
    model = pixart_transformer()
    none = {"resolution": None, "aspect_ratio": None}
    counted = counted_macs(model, **pixart_inputs(), added_cond_kwargs=none)
    assert prices(model, Shape(3, 16, 5)).full.total == counted


def test_pixart_with_size_conditions_matches_the_flop_counter():
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        use_additional_conditions=True,
    )
    sizes = {"resolution": torch.full((3, 2), 16.0), "aspect_ratio": torch.ones(3, 1)}
    inputs = {**pixart_inputs(), "added_cond_kwargs": sizes}
    assert trace(model, Call((), inputs)).macs.total == counted_macs(model, **inputs)


def test_dit_matches_the_flop_counter():
    model = dit_transformer()
    counted = counted_macs(
        model,
        hidden_states=torch.randn(3, 4, 8, 8),
        timestep=torch.full((3,), 7),
        class_labels=torch.tensor([1, 2, 3]),
    )
    assert prices(model, Shape(3, 16, 0)).full.total == counted


def flux_inputs(batch=3, image=6, text=5):
    return {
        "hidden_states": torch.randn(batch, image, 16),
        "encoder_hidden_states": torch.randn(batch, text, 16),
        "pooled_projections": torch.randn(batch, 8),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.zeros(image, 3),
        "txt_ids": torch.zeros(text, 3),
        "guidance": torch.full((batch,), 3.5),
    }


def test_flux_matches_the_flop_counter():
    model = flux_transformer(doubles=2, singles=3)
    assert prices(model, Shape(3, 6, 5)).full.total == counted_macs(model, **flux_inputs())


def test_fused_projections_cost_the_same():
    model = flux_transformer()
    table = prices(model, Shape(3, 6, 5))
    model.fuse_qkv_projections()
    traced.cache_clear()
    assert prices(model, Shape(3, 6, 5)) == table
    assert table.full.total == counted_macs(model, **flux_inputs())


@pytest.mark.parametrize("build", [pixart_transformer, dit_transformer, flux_transformer])
def test_parts_add_up(build):
    model = build()
    table = prices(model, Shape(2, 16, 5))
    assert table.full == sum((table.sites[site.name] for site in component_sites(model)), table.fixed)
    assert set(table.sites) == {site.name for site in (*component_sites(model), *block_sites(model))}


def test_residual_saves_the_fixed_modules_of_its_block():
    model = dit_transformer()
    table = prices(model, Shape(2, 16, 0))
    block = table.sites["transformer_blocks.1.attn1"] + table.sites["transformer_blocks.1.ff"]
    modulation = sum(m.weight.numel() for m in model.transformer_blocks[1].norm1.modules() if isinstance(m, nn.Linear))
    residual = table.sites["transformer_blocks.1:residual"]
    assert residual == block + Macs(2 * modulation, 0)
    # The embedding of the first block runs once more for the last projection, whatever the block does.
    assert table.sites["transformer_blocks.0:residual"] == residual


def test_serving_every_block_leaves_the_modules_outside():
    model = flux_transformer()
    sites = [site.name for site in block_sites(model)]
    table = prices(model, Shape(2, 6, 5))
    once = plan_of(sites, "CCCC", "RRSR", denoiser="FluxTransformer2DModel")
    outside = sum(
        module.weight.numel() * {"x_embedder": 6, "proj_out": 6, "context_embedder": 5}.get(path.split(".")[0], 1) * 2
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks" not in path
    )
    assert plan_macs(once, table) == table.full + Macs(outside, 0)


def test_nested_sites_are_not_saved_twice():
    model = pixart_transformer()
    table = prices(model, Shape(2, 16, 5))
    names = ("transformer_blocks.0:residual", "transformer_blocks.0.attn1")
    saved = table.sites["transformer_blocks.0:residual"] + table.sites["transformer_blocks.0.attn1"]
    run = plan_macs(plan_of(names, "CC", "RR", "CR"), table)
    assert run + saved == table.full * 3


def test_sites_a_plan_does_not_name_compute():
    model = pixart_transformer()
    table = prices(model, Shape(2, 16, 5))
    run = plan_macs(plan_of(["transformer_blocks.1.ff"], "C", "R", "R", "C"), table)
    assert run + table.sites["transformer_blocks.1.ff"] * 2 == table.full * 4


def test_pricing_uses_the_canonical_form():
    model = pixart_transformer()
    table = prices(model, Shape(2, 16, 5))
    names = [site.name for site in component_sites(model)]
    late = plan_of(names, "R" * 9, "C" * 9)
    assert plan_macs(late, table) == table.full * 2


def test_a_foreign_site_has_no_price():
    with pytest.raises(FestinaError, match="elsewhere"):
        plan_macs(plan_of(["elsewhere"], "C"), prices(pixart_transformer(), Shape(1, 16, 5)))


def test_macs_arithmetic():
    assert Macs(1, 2) + Macs(3, 4) == Macs(4, 6)
    assert Macs(1, 2) * 3 == Macs(3, 6)
    assert Macs(1, 2).total == 3


def test_real_dit_block_counts():
    with torch.device("meta"):
        dit = DiTTransformer2DModel(num_layers=2)
    table = prices(dit, Shape(1, 256, 0))
    assert table.sites["transformer_blocks.1.attn1"] == Macs(4 * 256 * 1152**2, 2 * 256 * 256 * 1152)
    assert table.sites["transformer_blocks.1.ff"] == Macs(8 * 256 * 1152**2, 0)
