"""Methods with a gate: their plans, and what these do on a transformer, against a plain loop over its blocks."""

import math

import pytest
import torch
from block_loops import (
    BLOCKS,
    STEPS,
    Loop,
    by_plan,
    loop_confident,
    loop_dicache,
    loop_first_block,
    loop_teacache,
    samples,
    through,
    words,
)
from pipelines import unets
from tiny import flux_pipeline, flux_transformer, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan
from festina.gates import DECIDERS
from festina.methods import confident_taylor, dbcache, dicache, first_block_cache, teacache

FIRST, REST = "transformer_blocks.0:residual", f"transformer_blocks.1..{BLOCKS - 1}:residual"
CURVE = (2.0, 0.5, 0.01)

METHODS = {
    "first_block_cache": lambda pipe, steps, threshold, **knobs: first_block_cache(pipe, steps, threshold, **knobs),
    "dbcache": lambda pipe, steps, threshold, **knobs: dbcache(pipe, steps, threshold, 1, warm_up=2, **knobs),
    "teacache": lambda pipe, steps, threshold, **knobs: teacache(pipe, steps, threshold, CURVE, **knobs),
    "dicache": lambda pipe, steps, threshold, **knobs: dicache(pipe, steps, threshold, **knobs),
    "confident_taylor": lambda pipe, steps, threshold, **knobs: confident_taylor(
        pipe, steps, threshold, warm_up=2, **knobs
    ),
}


@pytest.fixture(scope="module")
def denoiser():
    return pixart_transformer(BLOCKS)


def letters(plan):
    (column,) = {"".join(row) for row in plan.table().T}
    return column


class TestPlans:
    def test_first_block_cache(self, denoiser):
        plan = first_block_cache(denoiser, 6, 0.08, warm_up=2)
        assert (plan.sites, letters(plan)) == ((REST,), "CCGGGG")
        assert (plan.gate.probe, plan.gate.signal, plan.gate.reference) == (FIRST, "residual", "computed")
        assert (plan.gate.threshold, plan.gate.summed, plan.gate.longest, plan.gate.depth) == (0.08, False, 0, 1)
        assert letters(first_block_cache(denoiser, 3, 0.08)) == "GGG"
        assert plan.settings == {"threshold": 0.08, "warm_up": 2, "decider": "call"}

    def test_dbcache(self):
        flux = flux_transformer(9, 3)
        plan = dbcache(flux, 12, 0.08)
        assert plan.sites == ("transformer_blocks.8:residual", "single_transformer_blocks.0..2:residual")
        assert plan.gate.probe == "transformer_blocks.0..7:residual"
        assert letters(plan) == "C" * 8 + "G" * 4
        plan = dbcache(flux, 12, 0.12, first=4, last=2, warm_up=4, longest=3, order=2)
        assert plan.sites == ("transformer_blocks.4..8:residual", "single_transformer_blocks.0:residual")
        assert (plan.gate.longest, plan.gate.order, plan.gate.depth, plan.basis) == (3, 2, 3, "taylor")
        assert letters(plan) == "CCCC" + "G" * 8
        with pytest.raises(FestinaError, match="the first 8 blocks of a stack of 4"):
            dbcache(pixart_transformer(BLOCKS), 12, 0.08)
        with pytest.raises(FestinaError, match="8 first and 4 last blocks left out of a stack of 12"):
            dbcache(flux, 12, 0.08, last=4)

    def test_dbcache_of_one_block_is_first_block_cache(self, denoiser):
        assert dbcache(denoiser, 6, 0.1, first=1, warm_up=3).key() == first_block_cache(denoiser, 6, 0.1, 3).key()

    def test_teacache(self, denoiser):
        plan = teacache(denoiser, 6, 0.3, CURVE, longest=4)
        assert (plan.sites, letters(plan)) == (("transformer_blocks.0..3:residual",), "CGGGGC")
        gate = plan.gate
        assert (gate.probe, gate.signal, gate.reference) == ("transformer_blocks.0.attn1", "input", "previous")
        assert (gate.summed, gate.curve, gate.longest) == (True, CURVE, 4)
        assert teacache(flux_transformer(), 6, 0.3).gate.probe == "transformer_blocks.0.attn"

    def test_dicache(self, denoiser):
        plan = dicache(denoiser, 30, 0.4)
        # FLUX with 30 steps: s <= floor(0.2 * 30) and the last one compute.
        assert (plan.sites, letters(plan)) == ((REST,), "C" * 7 + "G" * 22 + "C")
        gate = plan.gate
        assert (gate.signal, gate.reference, gate.summed, gate.beyond_input) == ("output", "previous", True, False)
        assert (gate.stretch, gate.probe) == ((1.0, 1.5), FIRST)
        plan = dicache(denoiser, 6, 0.08, depth=2, retention=0.0, beyond_input=True, stretch=(1.0, 2.0))
        assert (plan.sites, letters(plan)) == (("transformer_blocks.2..3:residual",), "CGGGGC")
        assert (plan.gate.beyond_input, plan.gate.stretch) == (True, (1.0, 2.0))

    def test_confident_taylor(self, denoiser):
        plan = confident_taylor(denoiser, 9, 0.13)
        assert (plan.sites, letters(plan)) == ((REST,), "CCCCCGGGC")
        gate = plan.gate
        assert (gate.signal, gate.reference, gate.order, gate.summed) == ("output", "forecast", 1, False)
        assert letters(confident_taylor(denoiser, 5, 0.1, order=3, warm_up=0)) == "GGGGC"


@pytest.mark.parametrize("name", METHODS)
class TestAll:
    def test_a_plan_has_its_settings_and_round_trips(self, name):
        pipe = pixart_pipeline()
        plan = METHODS[name](pipe, 6, 0.25)
        assert plan.method == name
        assert plan.settings["threshold"] == plan.gate.threshold == 0.25
        assert plan.sampler == "DPMSolverMultistepScheduler"
        assert Plan.from_json(plan.to_json()) == plan
        assert METHODS[name](pipe.transformer, 6, 0.25).key() == plan.key()

    @pytest.mark.parametrize("decider", DECIDERS)
    def test_deciders(self, name, denoiser, decider):
        if decider == "row" and name in ("dicache", "confident_taylor"):
            with pytest.raises(FestinaError, match="only where the last value is held"):
                METHODS[name](denoiser, 6, 0.25, decider=decider)
        else:
            assert METHODS[name](denoiser, 6, 0.25, decider=decider).gate.decider == decider

    @pytest.mark.parametrize("make", [pixart_pipeline, lambda: flux_pipeline(guidance=False)], ids=["pixart", "flux"])
    def test_at_threshold_zero_a_pipeline_is_bit_for_bit_uncached(self, name, make):
        pipe = make()
        call = {"negative_prompt": "black", "true_cfg_scale": 3.0} if hasattr(pipe, "text_encoder_2") else {}
        plain = generate(pipe, steps=6, **call)
        with festina.accelerate(pipe, METHODS[name](pipe, 6, 0.0)) as run:
            assert torch.equal(generate(pipe, steps=6, **call), plain)
            assert not sum(run.report().served.values())
        plan = METHODS[name](pipe, 6, 1e9)
        with festina.accelerate(pipe, plan) as run:
            assert not torch.equal(generate(pipe, steps=6, **call), plain)
            gated = plan.canonical().table()[:, 0].tolist().count("G")
            branches = 2 if call else 1
            assert run.report().served == dict.fromkeys(plan.sites, branches * gated)
        assert torch.equal(generate(pipe, steps=6, **call), plain)

    def test_a_unet_is_refused(self, name):
        with pytest.raises(FestinaError, match="UNet2DConditionModel has no stack of blocks, but levels of a U-Net"):
            METHODS[name](unets.build_sd2(), 6, 0.1)

    @pytest.mark.parametrize("threshold", [-0.1, math.nan, "much"])
    def test_knobs(self, name, denoiser, threshold):
        with pytest.raises(FestinaError, match="threshold is a number of at least 0"):
            METHODS[name](denoiser, 6, threshold)
        with pytest.raises(FestinaError, match="the number of steps is 0"):
            METHODS[name](denoiser, 0, 0.1)


def test_other_knobs(denoiser):
    for warm_up in (-1, 1.5):
        for make in (first_block_cache, dbcache, confident_taylor):
            first = {"first": 1} if make is dbcache else {}
            with pytest.raises(FestinaError, match="the warm-up is"):
                make(denoiser, 6, 0.1, warm_up=warm_up, **first)
    for retention in (-0.1, 1.1, math.nan):
        with pytest.raises(FestinaError, match="the retention is"):
            dicache(denoiser, 6, 0.1, retention=retention)
    with pytest.raises(FestinaError, match="stretch is a least and a largest"):
        dicache(denoiser, 6, 0.1, stretch=(2.0, 1.0))
    with pytest.raises(FestinaError, match="the order is a whole number"):
        confident_taylor(denoiser, 6, 0.1, order=10)
    with pytest.raises(FestinaError, match="longest run of serves"):
        teacache(denoiser, 6, 0.1, CURVE, longest=-1)


CASES = {
    "first block, 3 warm": (
        lambda m: first_block_cache(m, STEPS, 0.6, warm_up=3),
        lambda m, done: loop_first_block(0.6, {0, 1, 2}, done),
    ),
    "dbcache 2 and 1": (
        lambda m: dbcache(m, STEPS, 0.6, first=2, last=1, warm_up=2, longest=2),
        lambda m, done: loop_first_block(0.6, {0, 1}, done, first=2, last=1, longest=2),
    ),
    "teacache": (
        lambda m: teacache(m, STEPS, 0.4, CURVE),
        lambda m, done: loop_teacache(m, 0.4, CURVE, {0, STEPS - 1}, done),
    ),
    "dicache": (
        lambda m: dicache(m, STEPS, 0.25),
        lambda m, done: loop_dicache(0.25, {0, 1, 2, STEPS - 1}, done),
    ),
    "dicache, deeper and minus": (
        lambda m: dicache(m, STEPS, 0.2, depth=2, retention=0.0, beyond_input=True, stretch=(1.0, 2.0)),
        lambda m, done: loop_dicache(0.2, {0, STEPS - 1}, done, (1, 2), depth=2, minus=True),
    ),
    "confident": (
        lambda m: confident_taylor(m, STEPS, 0.2, warm_up=3),
        lambda m, done: loop_confident(0.2, 1, {0, 1, 2, STEPS - 1}, done),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_does_what_a_plain_loop_does(denoiser, name):
    make, loop = CASES[name]
    computed, inputs, text = [], samples(), words()
    wanted = Loop(denoiser).run(loop(denoiser, computed), inputs, text)
    found, ran = by_plan(denoiser, observed(make(denoiser)), inputs, text)
    if name.startswith("dbcache"):
        # Its last block always runs, so the outputs alone tell.
        assert ran == list(range(STEPS))
    else:
        assert ran == computed
    assert 1 < len(computed) < STEPS - 1, "this threshold decides nothing"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def observed(plan):
    """The plan as it is written and read again."""
    return Plan.from_json(plan.to_json())


def test_dbcache_forecasts_the_residual_as_taylorseer(denoiser):
    """Served in the last step: the line through the residuals of the two before it."""
    inputs, text = samples()[:4], words()
    residuals, heads = [], []

    def plain(blocks, h0, step):
        h1 = blocks[0](h0)
        out = through(blocks[1:], h1)
        heads.append(h1)
        residuals.append(out - h1)
        if step < 3:
            return out
        return h1 + 2 * residuals[2] - residuals[1]

    wanted = Loop(denoiser).run(plain, inputs, text)
    found, ran = by_plan(denoiser, dbcache(denoiser, 4, 1e9, first=1, warm_up=3, order=1), inputs, text)
    assert ran == [0, 1, 2]
    torch.testing.assert_close(found[3], wanted[3], rtol=1e-4, atol=1e-5)
