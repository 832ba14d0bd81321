"""T-GATE: its table, and that it is served what was said with and without the caption on average."""

import pytest
import torch
from tiny import flux_transformer, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan
from festina.methods import tgate
from festina.sites import component_sites

CROSS, SELF = "transformer_blocks.1.attn2", "transformer_blocks.1.attn1"


def test_the_published_settings_at_25_steps():
    plan = tgate(pixart_transformer(), 25)
    assert plan.computed_steps(CROSS) == tuple(range(10))
    assert plan.computed_steps(SELF) == (0, 1, 2, 5, 9, *range(10, 25))
    assert [step.branches for step in plan.steps] == ["all"] * 10 + ["merged"] * 15
    assert plan.settings == {"gate_step": 10, "self_interval": 5, "late_interval": 1, "warm_up": 2}
    assert plan.canonical() == plan
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("knobs", "computed"),
    [
        ({"gate_step": 8, "self_interval": 3, "warm_up": 0}, (0, 3, 6, 7, 8, 9, 10, 11)),
        ({"gate_step": 4, "self_interval": 1, "late_interval": 4, "warm_up": 0}, (0, 1, 2, 3, 4, 8)),
    ],
)
def test_self_attention_computes_at_its_intervals(knobs, computed):
    assert tgate(pixart_transformer(), 12, **knobs).computed_steps(SELF) == computed


def test_a_gate_behind_the_last_step_computes_everything():
    denoiser = pixart_transformer()
    plan = tgate(denoiser, 6, gate_step=6, self_interval=1)
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 6).key()


def test_a_run():
    pipe = pixart_pipeline()
    plan = tgate(pipe, 6, gate_step=3, self_interval=2, warm_up=0)
    plain = generate(pipe, steps=6)
    with festina.accelerate(pipe, plan) as run:
        first = generate(pipe, steps=6)
        report = run.report()
        assert torch.equal(generate(pipe, steps=6), first)
    assert not torch.equal(first, plain)
    assert (report.computed[CROSS], report.served[CROSS]) == (3, 3)
    assert (report.computed[SELF], report.served[SELF]) == (5, 1)
    # Half of three steps of six is left out, and more: what cross-attention would have computed.
    assert report.macs < 0.75 * report.macs_uncached
    assert torch.equal(generate(pipe, steps=6), plain)
    assert plan.sites == tuple(s.name for s in component_sites(pipe.transformer) if s.role != "feed-forward")


def test_what_cannot_be_gated():
    with pytest.raises(FestinaError, match="FluxTransformer2DModel has none: its attention sees text and picture"):
        tgate(flux_transformer(), 10)
    for knobs in ({"gate_step": 0}, {"gate_step": 11}, {"self_interval": 0}, {"late_interval": 0}, {"warm_up": -1}):
        with pytest.raises(FestinaError, match="wanted a gate step from 1 to 10"):
            tgate(pixart_transformer(), 10, **({"gate_step": 5} | knobs))
