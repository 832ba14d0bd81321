"""Forecasts: weights in closed form, and what a plan of forecasts serves on real denoisers."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_executor import random_plan
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.cost import held_bytes, trace
from festina.executor.blending import blend, prolonged, read
from festina.executor.store import Entry
from festina.forecasts import BASES, weights
from festina.sites import find_denoiser

STEPS = st.lists(st.integers(0, 60), min_size=1, max_size=5, unique=True).map(lambda each: tuple(sorted(each)[::-1]))


@given(STEPS, st.integers(1, 20), st.lists(st.floats(-2, 2), min_size=5, max_size=5))
def test_newton_is_exact_on_polynomials_of_its_order(computed, ahead, coefficients):
    def polynomial(step):
        return sum(c * (step / 10) ** power for power, c in enumerate(coefficients[: len(computed)]))

    step = computed[0] + ahead
    shares = weights("newton", computed, step)
    found = math.fsum(share * polynomial(node) for share, node in zip(shares, computed, strict=True))
    scale = sum(abs(share * polynomial(node)) for share, node in zip(shares, computed, strict=True))
    assert found == pytest.approx(polynomial(step), abs=1e-9 * (1 + scale))


@given(st.sampled_from(BASES), STEPS, st.integers(1, 20))
def test_a_constant_is_forecast_as_itself(basis, computed, ahead):
    assert math.fsum(weights(basis, computed, computed[0] + ahead)) == pytest.approx(1, abs=1e-6 * 20 ** len(computed))


@pytest.mark.parametrize("basis", BASES)
def test_a_single_value_is_held(basis):
    assert weights(basis, (7,), 12) == (1.0,)


def test_a_line_is_a_line_in_newton_and_taylor():
    assert weights("taylor", (8, 2), 11) == pytest.approx(weights("newton", (8, 2), 11))
    assert weights("newton", (8, 2), 11) == pytest.approx((1.5, -0.5))


def test_the_published_form_misses_quadratics_as_the_research_says():
    # f(s) = (s / 50)^2 with gaps of 6 and 3 steps ahead: Taylor misses by 7.2e-3, Newton by nothing.
    computed, step = (12, 6, 0), 15
    values = [(node / 50) ** 2 for node in computed]
    missed = {
        basis: abs(sum(w * v for w, v in zip(weights(basis, computed, step), values, strict=True)) - (step / 50) ** 2)
        for basis in ("taylor", "newton")
    }
    assert missed["taylor"] == pytest.approx(7.2e-3, rel=1e-6)
    assert missed["newton"] < 1e-15


def test_taylor_divides_each_difference_by_the_gap_of_its_time():
    # D1 = (f8 - f2) / 6 now and (f2 - f1) / 1 before; D2 = (D1 - D1_before) / 6 (released code).
    f = {8: 3.0, 2: 1.0, 1: 0.5}
    first, before = (f[8] - f[2]) / 6, (f[2] - f[1]) / 1
    wanted = f[8] + 2 * first + 2**2 / 2 * (first - before) / 6
    assert sum(w * f[s] for w, s in zip(weights("taylor", (8, 2, 1), 10), (8, 2, 1), strict=True)) == pytest.approx(
        wanted
    )


def test_hermite_at_half_scale_goes_half_as_far():
    # sigma H_1(sigma x) = 2 sigma^2 x = x / 2; sigma^2 H_2(sigma x) = sigma^2 (4 sigma^2 x^2 - 2) = x^2 / 4 - 1 / 2.
    assert weights("hermite", (4, 0), 6) == pytest.approx((1 + 1 / 4, -1 / 4))
    x, second = 2, (2**2 / 4 - 0.5) / 2 / 16
    wanted = (1 + x / 2 / 4 + second, -x / 2 / 4 - 2 * second, second)
    assert weights("hermite", (8, 4, 0), 10) == pytest.approx(wanted)


def test_an_unknown_basis():
    with pytest.raises(FestinaError, match="unknown basis of forecasts 'x'; wanted one of newton, taylor, hermite"):
        weights("x", (1, 0), 2)
    with pytest.raises(FestinaError, match="unknown basis"):
        Plan("D", ("a",), (Step(1.0, "C"),), basis="x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_blending_is_the_weighted_sum_in_the_values_own_type(dtype, count):
    values = [torch.randn(3, 5, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(count)]
    shares = weights("newton", tuple(range(0, -3 * count, -3)), 2)
    found = blend([(value, None) for value in values], shares)
    wanted = sum(share * value.double() for share, value in zip(shares, values, strict=True)).to(dtype)
    assert found[1] is None
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0], wanted)
    if count == 1:
        assert found[0] is values[0]


def test_integers_and_what_is_no_tensor_are_the_latest_ones():
    one, other = (torch.tensor([1, 2]), "a"), (torch.tensor([5, 6]), "b")
    assert blend([one, other], (2.0, -1.0))[1] == "a"
    assert blend([one, other], (2.0, -1.0))[0] is one[0]


def test_a_stretched_value():
    latest, before = torch.tensor([4.0]), torch.tensor([1.0])
    assert prolonged((latest,), (before,), torch.tensor(1.5))[0].item() == pytest.approx(5.5)


def test_reading_with_fewer_values_than_the_order_wants():
    entries = [Entry(6, torch.tensor([6.0]), 4), Entry(3, torch.tensor([3.0]), 4)]
    assert read([], "2", 8, "newton") is None
    assert read(entries, "R", 8, "newton") is entries[0].value
    assert read(entries[:1], "2", 8, "newton") is entries[0].value
    assert read(entries, "2", 8, "newton").item() == pytest.approx(8)


def forecasting(denoiser, sites, rows, basis="newton"):
    steps = tuple(Step(1 - index / len(rows), row * len(sites)) for index, row in enumerate(rows))
    return Plan(type(denoiser).__name__, tuple(sites), steps, basis=basis)


@pytest.mark.parametrize(
    "sites",
    [("transformer_blocks.1.ff",), ("transformer_blocks.1:residual",), ("transformer_blocks.0..2:residual",)],
)
@pytest.mark.parametrize("basis", BASES)
def test_a_forecast_on_a_denoiser_is_the_weighted_sum_of_what_it_computed(sites, basis):
    """The same forecast by hand: hooks that remember what the site gave, with a value that moves from step to step."""
    denoiser, rows = pixart_transformer(), "CCRC21"
    plan = forecasting(denoiser, sites, rows, basis)
    inputs = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step)) for step in range(len(rows))]
    text = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(9))

    def outputs(run=None):
        found = []
        for step, sample in enumerate(inputs):
            time = torch.tensor([900 - 100 * step])
            size = {"resolution": None, "aspect_ratio": None}
            found.append(denoiser(sample, text, timestep=time, added_cond_kwargs=size, return_dict=False)[0])
            if run is not None:
                run.next_step()
        return found

    with torch.no_grad(), festina.accelerate(denoiser, plan) as run:
        run.start(len(rows))
        served = outputs(run)
    # By hand: the same modules, whose change is replaced by the weighted sum of their changes.
    blocks = denoiser.transformer_blocks
    component = sites[0].endswith(".ff")
    first, last = (blocks[1].ff, blocks[1].ff) if component else (blocks[1], blocks[1])
    if ".." in sites[0]:
        first, last = blocks[0], blocks[2]
    seen, entered, step_now, handles = {}, {}, [0], []

    def entering(module, args):
        entered["x"] = args[0]

    def leaving(module, args, output):
        step, base = step_now[0], 0 if component else entered["x"]
        computed = tuple(s for s in sorted(seen, reverse=True))
        if rows[step] == "C":
            seen[step] = output - base
            return output
        used = computed[: (0 if rows[step] == "R" else int(rows[step])) + 1]
        return base + sum(w * seen[s] for w, s in zip(weights(basis, used, step), used, strict=True))

    handles.append(first.register_forward_pre_hook(entering))
    handles.append(last.register_forward_hook(leaving))
    handles.append(denoiser.register_forward_hook(lambda *_: step_now.__setitem__(0, step_now[0] + 1)))
    with torch.no_grad():
        by_hand = outputs()
    for handle in handles:
        handle.remove()
    for one, other in zip(served, by_hand, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_order_zero_is_reuse():
    """With one computed value every order holds it: bit for bit what reuse gives."""
    pipe = pixart_pipeline()
    held = random_plan(pipe, seed=2)
    once = replace(held, steps=(held.steps[0], *(replace(s, actions="R" * len(held.sites)) for s in held.steps[1:])))
    forecast = replace(once, steps=(once.steps[0], *(replace(s, actions="3" * len(s.actions)) for s in once.steps[1:])))
    assert forecast.key() == once.key()
    with festina.accelerate(pipe, once):
        wanted = generate(pipe)
    with festina.accelerate(pipe, forecast):
        assert torch.equal(generate(pipe), wanted)


@pytest.mark.parametrize("make", [pixart_pipeline, flux_pipeline])
def test_a_plan_of_forecasts_runs_and_holds_what_was_predicted(make):
    pipe = make()
    plan = random_plan(pipe, seed=1, steps=6)
    rows = "CC2C12"
    steps = tuple(
        replace(step, actions="".join(letter if row == "C" else row for letter in "C" * len(plan.sites)))
        for step, row in zip(plan.steps, rows, strict=True)
    )
    plan = replace(plan, steps=steps)
    with festina.accelerate(pipe, plan) as run:
        first = generate(pipe, steps=6)
        again = generate(pipe, steps=6)
        report, (record,) = run.report(), run.calls.values()
    denoiser = find_denoiser(pipe)
    wanted = held_bytes(plan, denoiser, trace(denoiser, record.call), 4)
    assert torch.equal(first, again)
    assert report.peak_bytes == wanted > 0
    assert set(report.computed.values()) == {3}
    assert set(report.served.values()) == {3}
