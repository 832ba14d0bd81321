"""The latency model: exact recovery, refusals, and its record."""

import json

import numpy as np
import pytest
from tiny import flux_transformer, pixart_transformer

from festina.errors import FestinaError
from festina.latency import Group, LatencyModel, fit, probe_plans
from festina.plan import Plan, even_noise
from festina.sites import block_sites, component_sites

NAME = "PixArtTransformer2DModel"


@pytest.fixture(scope="module")
def sites():
    return component_sites(pixart_transformer(blocks=3))


@pytest.fixture(scope="module")
def truth(sites):
    return model_of(sites, 0.01, [0.002, 0.0, 0.005])


def model_of(sites, fixed, prices):
    names = dict.fromkeys(site.group for site in sites)
    members = [tuple(site.name for site in sites if site.group == name) for name in names]
    groups = [Group(name, price, those) for name, price, those in zip(names, prices, members, strict=True)]
    return LatencyModel(fixed, tuple(groups))


def random_plan(sites, seed, steps=7):
    mask = np.random.default_rng(seed).random((steps, len(sites))) < 0.5
    return Plan.from_mask(NAME, [site.name for site in sites], mask)


def test_seconds_by_hand(truth, sites):
    plan = Plan.from_mask(NAME, ["transformer_blocks.0.attn1"], np.array([[True], [False], [False], [True]]))
    # Four steps; the named site computes in two of them, the other eight in all.
    assert truth.seconds(plan) == pytest.approx(4 * 0.01 + (2 + 8) * 0.002 + 12 * 0.0 + 12 * 0.005)


def test_known_coefficients_come_back_exactly(truth, sites):
    samples = [(plan, truth.seconds(plan)) for plan in probe_plans(NAME, sites, 10)]
    model = fit(samples, sites)
    assert model.fixed_per_step == pytest.approx(truth.fixed_per_step)
    for found, wanted in zip(model.groups, truth.groups, strict=True):
        assert (found.name, found.sites) == (wanted.name, wanted.sites)
        assert found.seconds == pytest.approx(wanted.seconds, abs=1e-12)
    plan = random_plan(sites, 5)
    assert model.seconds(plan) == pytest.approx(truth.seconds(plan))


def test_coefficients_of_blocks_within_components_come_back():
    denoiser = flux_transformer()
    sites = (*component_sites(denoiser), *block_sites(denoiser))
    truth = model_of(sites, 0.02, [0.001 * (number + 1) for number in range(8)])
    model = fit([(plan, truth.seconds(plan)) for plan in probe_plans("FluxTransformer2DModel", sites, 6)], sites)
    assert [group.seconds for group in model.groups] == pytest.approx([group.seconds for group in truth.groups])
    assert model.fixed_per_step == pytest.approx(0.02)


def test_a_served_block_computes_none_of_its_components():
    denoiser = pixart_transformer(blocks=1)
    sites = (*component_sites(denoiser), *block_sites(denoiser))
    model = model_of(sites, 0.0, [1.0, 10.0, 100.0, 1000.0])
    plan = Plan.from_mask(NAME, ["transformer_blocks.0:residual"], np.array([[True], [False], [False]]))
    assert model.seconds(plan) == 1111


def test_costs_are_never_negative(truth, sites):
    plans = probe_plans(NAME, sites, 10)
    noise = np.random.default_rng(0).normal(0, 0.05, len(plans))
    model = fit([(plan, truth.seconds(plan) + abs(jitter)) for plan, jitter in zip(plans, noise, strict=True)], sites)
    assert model.fixed_per_step >= 0
    assert min(group.seconds for group in model.groups) >= 0


def test_runs_that_do_not_tell_costs_apart_are_refused(truth, sites):
    names = [site.name for site in sites]
    everything = Plan.computing_all(NAME, names, 5)
    with pytest.raises(FestinaError, match=r"1 timed runs do not tell apart .*attn1.*attn2.*ff"):
        fit([(everything, 1.0)], sites)
    with pytest.raises(FestinaError, match="0 timed runs"):
        fit([], sites)
    # attn2 and ff always computed together: only their sum is known.
    samples = []
    for plan in probe_plans(NAME, sites, 5):
        mask = plan.mask()
        mask[:, 2::3] = mask[:, 1::3]
        merged = Plan.from_mask(NAME, names, mask)
        samples.append((merged, truth.seconds(merged)))
    with pytest.raises(FestinaError, match="do not tell apart") as refusal:
        fit(samples, sites)
    assert "transformer_blocks.attn2, transformer_blocks.ff" in str(refusal.value)
    assert "attn1" not in str(refusal.value)
    assert "fixed cost" not in str(refusal.value)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(sites, seconds):
    with pytest.raises(FestinaError, match="times above 0"):
        fit([(plan, seconds) for plan in probe_plans(NAME, sites, 4)], sites)


def test_unknown_sites_are_refused(truth, sites):
    plan = Plan.from_mask(NAME, ["transformer_blocks.99.ff"], np.ones((2, 1), dtype=bool))
    with pytest.raises(FestinaError, match=r"transformer_blocks\.99\.ff"):
        truth.seconds(plan)


def test_probe_plans(sites):
    plans = probe_plans(NAME, sites, 4)
    rows = [[step.actions for step in plan.steps] for plan in plans]
    assert rows == [
        ["C" * 9] * 4,
        ["C" * 9] + ["RCC" * 3] * 3,
        ["C" * 9] + ["CRC" * 3] * 3,
        ["C" * 9] + ["CCR" * 3] * 3,
        ["C" * 9] + ["R" * 9] * 3,
        ["C" * 9, "R" * 9] * 2,
    ]
    assert [step.noise for step in plans[0].steps] == even_noise(4)


def test_probe_plans_are_all_different(sites):
    # With one group, "alone" and "everything" are one plan; with two steps, FORA 2 is too.
    only = [site for site in sites if site.part == "ff"]
    assert len(probe_plans(NAME, only, 4)) == 3
    assert len(probe_plans(NAME, only, 2)) == 2


def test_probe_refusals(sites):
    with pytest.raises(FestinaError, match="at least 2"):
        probe_plans(NAME, sites, 1)
    with pytest.raises(FestinaError, match="at least one site"):
        probe_plans(NAME, [], 4)


def test_the_record_round_trips(truth):
    text = json.dumps(truth.to_dict())
    assert LatencyModel.from_dict(json.loads(text)) == truth


def mutilated(record):
    yield None
    yield []
    for key in record:
        yield {name: value for name, value in record.items() if name != key}
    yield record | {"extra": 1}
    for key, values in {
        "festina_latency": [2, True, "1", None],
        "fixed_per_step": ["1", -1.0, float("nan"), float("inf"), True, None, 10**400],
        "groups": [{}, [], None, [1]],
    }.items():
        for value in values:
            yield record | {key: value}
    group = record["groups"][0]
    for key in group:
        yield record | {"groups": [{name: value for name, value in group.items() if name != key}]}
    for change in ({"name": 1}, {"seconds": "x"}, {"sites": "abc"}, {"sites": [1]}, {"sites": []}, {"extra": 1}):
        yield record | {"groups": [group | change]}
    yield record | {"groups": [group, group]}


def test_every_flaw_of_a_record_is_refused(truth):
    for record in mutilated(truth.to_dict()):
        with pytest.raises(FestinaError, match="not a valid latency model"):
            LatencyModel.from_dict(record)
