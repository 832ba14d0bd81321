"""ToCa and DuCa: full steps, shares and steps between them as worked out by hand or in the released code."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_value_kinds import STEPS, built, inputs, sample
from tiny import (
    dit_pipeline,
    dit_transformer,
    flux_pipeline,
    flux_transformer,
    generate,
    pixart_pipeline,
    pixart_transformer,
)

import festina
from festina import FestinaError, Plan
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace
from festina.methods import duca, fora, toca
from festina.methods.toca import DIT, DIT_250, FLUX, PIXART, Rules, full_steps, share_of
from festina.sites import component_sites, stack_runs

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "toca.md"


def full(steps, interval, rules):
    return [step for step, remainder in enumerate(full_steps(steps, interval, rules)) if not remainder]


def column(plan, site):
    index = plan.sites.index(site)
    return "".join(step.actions[index] for step in plan.steps)


@pytest.mark.parametrize(
    ("steps", "interval", "rules", "wanted"),
    [
        (50, 3, DIT, [0, 4, 5, 9, 13, 17, 19, 22, 25, 28, 31, *range(33, 50, 2)]),
        (50, 4, DIT, [0, 1, 7, 9, 14, 19, 21, 25, 29, 33, 35, 37, 39, 41, 43, 46, 49]),
        # Counted up: 3 / 0.8 = 3.75, 3 / 0.88 = 3.4, 3 / 0.92 = 3.3, ... rounded; step 4 is followed by 6.
        (20, 3, PIXART, [0, 4, 6, 9, 12, 15, 18]),
        (50, 4, FLUX, [0, 1, 2, *range(6, 50, 4)]),
        (50, 6, FLUX, [0, 1, 2, *range(8, 50, 6)]),
        (10, 3, Rules(), [0, 3, 6, 9]),
    ],
    ids=["DiT 3", "DiT 4", "PixArt 3", "FLUX 4", "FLUX 6", "other"],
)
def test_full_steps(steps, interval, rules, wanted):
    assert full(steps, interval, rules) == wanted


def test_which_tokens_compute_and_which_sites_reuse():
    plan = toca(pixart_transformer(), 7, 3, 0.5, rules=Rules())
    assert column(plan, "transformer_blocks.0.attn1") == "CRRCRRC"
    assert column(plan, "transformer_blocks.0.attn2") == column(plan, "transformer_blocks.2.ff") == "CTTCTTC"
    assert {share for step in plan.steps for share in step.shares} == {0.0, 0.5}
    assert plan.tokens.to_record() == {"choice": "importance", "age": 0.25 / 3, "bonus": 0.0, "cell": 2, "seed": 0}


@pytest.mark.parametrize(
    ("rules", "layer", "step", "share"),
    [
        # 0.07 x 2.5 x (1 + 2 - 4 x 29/50) x (1 - 0.2 + 0.4 x 9/27), the last block in the last step, and an early step.
        (DIT, 9, 20, 0.07 * 2.5 * (3 - 4 * 29 / 50) * (0.8 + 0.4 * 9 / 27)),
        (DIT, 27, 49, 0.07 * 2.5 * 3 * 1.2),
        (DIT, 0, 5, 0.0),
        (DIT_250, 27, 0, 0.07 * 2.5 * (1.4 - 0.8 * 49 / 50) * 0.2),
        (PIXART, 0, 0, 0.07 * 1.6 * 1.9 * 1.6),
        (PIXART, 27, 25, 0.07 * 1.6 * 1.0 * 0.4),
    ],
)
def test_shares_of_a_feed_forward_of_28_blocks(rules, layer, step, share):
    site = component_sites(dit_transformer())[1]
    site = replace(site, block=f"transformer_blocks.{layer}")
    assert share_of(site, 28, step, 50, 0.07, rules) == pytest.approx(share, abs=1e-12)


def test_shares_of_other_parts():
    cross, ff = component_sites(pixart_transformer())[1:3]
    assert share_of(cross, 3, 10, 20, 0.1, PIXART) == pytest.approx(0.1 * 0.6 * 1.0 * 1.6)
    assert share_of(ff, 3, 0, 20, 1.0, PIXART) == 1.0
    sites = {site.name: site for site in component_sites(flux_transformer())}
    double, single = sites["transformer_blocks.1.ff"], sites["single_transformer_blocks.1.proj_out"]
    assert share_of(double, 19, 9, 50, 0.1, FLUX) == pytest.approx(0.1 * 0.4 * (1.5 - 1 / 27))
    assert share_of(single, 38, 9, 50, 0.1, FLUX) == pytest.approx(0.1 * 1.6 * (1.5 - 1 / 27))


@pytest.mark.parametrize("make", [dit_transformer, pixart_transformer, flux_transformer])
def test_interval_one_is_the_uncached_plan(make):
    denoiser = make()
    for method in (toca, duca):
        plan = method(denoiser, 6, 1, 0.2)
        assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 6).key()


def test_without_tokens_it_is_fora():
    denoiser = dit_transformer()
    assert toca(denoiser, 50, 3, 0.0).key() == fora(denoiser, 50, 3, countdown=True).key()
    assert toca(pixart_transformer(), 20, 3, 0.0).key() == fora(pixart_transformer(), 20, 3).key()


def test_duca_takes_turns():
    denoiser = pixart_transformer()
    plan = duca(denoiser, 9, 4, 0.5)
    (run,) = stack_runs(denoiser)
    assert column(plan, run) == "CCRCCCRCC"
    assert column(plan, "transformer_blocks.0.ff") == "CTRTCTRTC"
    assert column(plan, "transformer_blocks.0.attn1") == "CRRRCRRRC"
    assert plan.tokens.choice == "random"
    # DiT counts down: of the two steps before a full one the first reuses the stack.
    down = duca(dit_transformer(), 10, 3, 0.5, rules=replace(DIT, early=0.0, sensitive=False))
    assert column(down, "transformer_blocks.0.ff") == "CRTCRTCRTC"
    flux = duca(flux_transformer(), 8, 4, 0.2)
    assert [column(flux, run) for run in stack_runs(flux_transformer())] == ["CCCCRCCC"] * 2


@pytest.mark.parametrize("make", [dit_pipeline, pixart_pipeline, flux_pipeline])
@pytest.mark.parametrize("method", [toca, duca])
def test_they_run_and_round_trip(method, make):
    pipe = make()
    plan = method(pipe, 8, 3, 0.4)
    assert plan.method == method.__name__
    assert plan.sampler == type(pipe.scheduler).__name__
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.settings["rules"]["counts"] in ("up", "down", "since")
    with festina.accelerate(pipe, plan) as run:
        generate(pipe, steps=8)
        report = run.report()
    ran = [site for site in plan.sites if "T" in column(plan.canonical(), site)]
    assert ran
    assert {site: report.partial[site] for site in ran} == {
        site: column(plan.canonical(), site).count("T") for site in ran
    }
    assert sum(report.tokens.values()) > 0
    assert report.macs < report.macs_uncached


@pytest.mark.parametrize(
    "name",
    ["CogView4Transformer2DModel", "LatteTransformer3DModel", "OmniGenTransformer2DModel", "SD3Transformer2DModel"],
)
@pytest.mark.parametrize(("method", "choice"), [(toca, "importance"), (duca, "random")])
def test_other_classes(name, method, choice):
    """One feed-forward for two streams; rows that are frames; heads that share keys; streams the other way round."""
    model = built(name)
    plan = method(model, STEPS, 3, 0.5, choice=choice)
    with festina.accelerate(model, plan) as run:
        first = sample(name, model, run)
        assert torch.equal(sample(name, model, run), first)
        report = run.report()
    assert not any(report.computed[site] != column(plan, site).count("C") for site in plan.sites if "ff" not in site)
    assert sum(report.tokens.values()) > 0
    traced = trace(model, Call((), inputs(name, model, 0)))
    assert report.macs == plan_macs(plan, mac_table(model, traced, plan.sites)).total
    assert report.peak_bytes == held_bytes(plan, model, traced, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ErnieImageTransformer2DModel", r"returned a tensor \(11, 2, 16\) in a call of 2 rows"),
        ("HunyuanDiT2DModel", "fails on 3 of 6 tokens"),
        ("LuminaNextDiT2DModel", r"returned a tensor \(2, 12, 2, 8\), so that it cannot"),
        ("ConsisIDTransformer3DModel", r"is given a tensor \(2, 3, 21\) and returned a tensor \(2, 12, 32\)"),
    ],
)
def test_classes_whose_parts_cannot_be_computed_by_token(name, message):
    """Rows last; positions by token; heads apart; what is asked first is no token."""
    model = built(name)
    with festina.accelerate(model, toca(model, STEPS, 3, 0.5, choice="random")) as run:
        with pytest.raises(FestinaError, match=message):
            sample(name, model, run)
        assert not len(run.store)


def test_u_nets():
    """Their blocks compute by token too, but there is no stack to reuse."""
    model = built("UNet2DConditionModel")
    plan = toca(model, 4, 2, 0.5, choice="random")
    assert any("T" in step.actions for step in plan.steps)
    with pytest.raises(FestinaError, match="no stack of blocks"):
        duca(model, 4, 2, 0.5)


@pytest.mark.parametrize(
    "knobs",
    [
        {"steps": 0},
        {"interval": 0},
        {"ratio": 1.5},
        {"ratio": "0.1"},
        {"choice": "best"},
        {"age_weight": -1},
        {"age_weight": None},
        {"seed": -1},
    ],
)
@pytest.mark.parametrize("method", [toca, duca])
def test_knobs_out_of_range(method, knobs):
    with pytest.raises(FestinaError):
        method(pixart_transformer(), **({"steps": 6, "interval": 3, "ratio": 0.1} | knobs))


@pytest.mark.parametrize("values", [{"counts": "sideways"}, {"warm_up": 0}, {"layers": -1}, {"early": 1.0}])
def test_rules_out_of_range(values):
    with pytest.raises(FestinaError, match="wanted"):
        Rules(**values)


def test_the_code_of_the_page_runs():
    names = {"pipe": pixart_pipeline()}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(block, names)
    assert (names["plan"].method, names["other"].method) == ("toca", "duca")
