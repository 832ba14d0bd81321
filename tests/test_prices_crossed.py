"""Replays beside tokens, gates, forecasts and a second expert: MACs and bytes of runs are those predicted."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from guided import KINDS, Bare
from lifecycle import Loop, random_plan
from partial import AGEING, IMPORTANCE, RANDOM, partial_plan
from tiny import pixart_transformer

import festina
from festina import Plan, Step
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace, values_held
from festina.gates import Gate
from festina.methods.guidance import guided
from festina.sites import component_sites

FIRST, REST = "transformer_blocks.0:residual", "transformer_blocks.1..2:residual"
GATE = Gate(FIRST, "residual", "computed", 0.0)
SIGNAL = 16 * 16 * 4  # tokens x width x bytes


def _loop(calls):
    loop = Loop(pixart_transformer(), FlowMatchEulerDiscreteScheduler(shift=3.0))
    loop.calls = [["a", "b"][:calls]]
    return loop


def _measured_and_predicted(loop, plan, calls):
    """MACs and most bytes held: of a run, and of the plan."""
    with festina.accelerate(loop, plan) as run:
        loop(len(plan.steps))
        assert len(run.store) == 0
        report, record = run.report(), next(iter(run.calls.values()))
    traced = trace(loop.transformer, Call(record.call.args, record.call.kwargs))
    macs = calls * plan_macs(plan, mac_table(loop.transformer, traced, plan.sites)).total
    assert 0 < macs < report.macs_uncached
    return (report.macs, report.peak_bytes), (macs, held_bytes(plan, loop.transformer, traced, 4, calls))


def _of_one_site(site, letters, gate=None, basis="newton"):
    steps = tuple(Step(1 - place / len(letters), letter) for place, letter in enumerate(letters))
    return Plan("PixArtTransformer2DModel", (site,), steps, gate=gate, basis=basis)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("tokens", [RANDOM, IMPORTANCE, AGEING])
@pytest.mark.parametrize("factors", [{2: 0.9, 4: 1.1}, {1: 1.0, 2: 1.0, 6: 0.9}])
def test_tokens(calls, tokens, factors):
    loop = _loop(calls)
    plan = partial_plan(loop.transformer, "CTTCTTT", tokens).replaying(factors)
    measured, predicted = _measured_and_predicted(loop, plan, calls)
    assert measured == predicted


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("letters", ["CCC1C2C1", "CC1CC221", "CCCC3R1C"])
@pytest.mark.parametrize("factors", [{2: 0.9, 5: 1.1}, {3: 1.0, 4: 1.0}])
def test_forecasts(calls, letters, factors):
    loop = _loop(calls)
    sites = tuple(site.name for site in component_sites(loop.transformer))
    steps = tuple(Step(1 - place / 8, letter * len(sites)) for place, letter in enumerate(letters))
    plan = Plan("PixArtTransformer2DModel", sites, steps, basis="hermite").replaying(factors)
    measured, predicted = _measured_and_predicted(loop, plan, calls)
    assert measured == predicted


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("factors", [{2: 0.9, 4: 1.1}, {1: 1.0, 2: 1.0}])
def test_a_gate_that_never_serves(calls, factors):
    """Its own signal, one of each branch, is no part of what is predicted."""
    loop = _loop(calls)
    plan = _of_one_site(REST, "CGGGGG", GATE).replaying(factors)
    (macs, peak), predicted = _measured_and_predicted(loop, plan, calls)
    assert (macs, peak - calls * SIGNAL) == predicted


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_second_expert(seed):
    """It computes everything in its first step, and has an answer to replay from then on."""
    loop = _loop(1)
    loop.transformer_2, loop.boundary = pixart_transformer(), 4
    mask = random_plan(loop, seed, 8).mask()
    mask[4] = True
    plan = random_plan(loop, seed, 8)
    plan = Plan.from_mask(plan.denoiser, plan.sites, mask).replaying({1: 0.9, 3: 1.1, 6: 1.0})
    measured, predicted = _measured_and_predicted(loop, plan, 1)
    assert measured == predicted


@pytest.mark.parametrize("rows", ["aacaaa", "aamcca", "aaccaa"])
def test_values_behind_a_gate_are_counted_anew_where_the_store_is_emptied(rows):
    model = pixart_transformer()
    gate = Gate(FIRST, "output", "forecast", 0.0, order=1)
    plan = guided(_of_one_site(REST, "CGGGGG", gate, "taylor"), branches=[KINDS[letter] for letter in rows])
    loop, held = Bare(model, 1), []
    with festina.accelerate(model, plan) as run:
        ask = loop._ask

        def asked(*given):
            answer = ask(*given)
            held.append(len(run.store.get(run.clock.branch, REST)))
            return answer

        loop._ask = asked
        loop(run, 6)
    assert held == values_held(plan)[:, 0].tolist()
    assert max(held) == 2
