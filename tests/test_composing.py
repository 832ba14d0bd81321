"""What the rules of composition buy, on mixtures of Gaussians with exact networks."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from samplers_pipe import error
from samplers_toy import CENTRES, levels_of, noise, output, vp

from festina import Step
from festina.samplers.composing import composed
from festina.samplers.times import table_on, uniform_log_snr

CALLS, FINER = 20, 30
GRID = uniform_log_snr(vp().frame, CALLS)


def fine():
    """First-order steps on a grid in which each step is many."""
    ends = [(math.log(begin), math.log(end)) for begin, end in pairwise(GRID)]
    levels = [math.exp(begin + (end - begin) * part / FINER) for begin, end in ends for part in range(FINER)]
    return table_on(vp().frame, [*levels, GRID[-1]], order=1)


def drawn(table, said):
    """Samples drawn by a table from what `said` says of a sample at a level in a call."""
    scheduler = vp(table=table)
    scheduler.set_timesteps(table.calls)
    sample = noise(samples=256, dtype=torch.float64)
    for call, (timestep, level) in enumerate(zip(scheduler.timesteps, levels_of(scheduler), strict=True)):
        sample = scheduler.step(said(sample, level, call), timestep, sample, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("switch", "less"), [(8, 1.0), (14, 0.6)])
def test_beginning_anew_helps_where_another_model_differs_clearly(order, switch, less):
    plain = table_on(vp().frame, GRID, order=order)

    def said(switch):
        return lambda sample, level, call: output(sample, level, "epsilon", CENTRES + 0.4 * (call < switch))

    wanted = drawn(fine(), said(switch * FINER))
    steps = [Step(1 - place / CALLS, "C", model="small" if place < switch else "") for place in range(CALLS)]
    anew, kept = (error(drawn(table, said(switch)), wanted) for table in (composed(plain, steps), plain))
    assert anew < less * kept


def test_guidance_that_comes_and_goes_wants_the_first_order():
    plain = table_on(vp().frame, GRID, order=2)

    def said(every):
        def guided(sample, level, call):
            with_caption = output(sample, level, "epsilon", CENTRES[:1])
            if call % every:
                return with_caption
            without = output(sample, level, "epsilon")
            return without + 3 * (with_caption - without)

        return guided

    wanted = drawn(fine(), said(1))
    steps = [Step(1 - place / CALLS, "C", branches="conditional" if place % 2 else "all") for place in range(CALLS)]
    lowered, kept = (error(drawn(table, said(2)), wanted) for table in (composed(plain, steps), plain))
    assert lowered < 0.95 * kept


def guided(factors, strength, parts=1):
    """What a network with guidance says whose strength has a factor for each call, or for each so many calls."""

    def said(sample, level, call):
        with_caption, without = (output(sample, level, "epsilon", centres) for centres in (CENTRES[:1], CENTRES))
        return without + (1 + factors[call // parts] * (strength - 1)) * (with_caption - without)

    return said


def guided_steps(factors):
    return [Step(1 - place / len(factors), "C", guidance=factor) for place, factor in enumerate(factors)]


def by_orders(factors, wanted, strength, corrector=False):
    """Errors by the order 1, 2 and 3 in all steps, and by the third one as the rules compose it."""
    plain = [table_on(vp().frame, GRID, order=order, corrector=corrector) for order in (1, 2, 3)]
    tables = [*plain, composed(plain[2], guided_steps(factors))]
    return [error(drawn(table, guided(factors, strength)), wanted) for table in tables]


def test_guidance_whose_strength_alternates_wants_the_second_order():
    constant = drawn(fine(), guided([1.0] * CALLS, 3.0, FINER))
    first, second, third, rules = by_orders([1.0] * CALLS, constant, 3.0)
    assert rules == third < 0.4 * second < 0.4 * first
    for swing in (0.5, 0.8):
        factors = [1 - swing * (-1) ** call for call in range(CALLS)]
        first, second, third, rules = by_orders(factors, constant, 3.0)
        assert rules == second < 0.4 * first
        assert rules < 0.3 * third


@pytest.mark.parametrize("strength", [3.0, 7.5])
def test_strengths_that_change_smoothly_or_once_keep_the_third_order(strength):
    def along(factors):
        """The exact end where factors go evenly from one call's to the next one's."""
        ends = [*pairwise(factors), (factors[-1], factors[-1])]
        between = [begin + (end - begin) * part / FINER for begin, end in ends for part in range(FINER)]
        return drawn(fine(), guided(between, strength))

    ramp = [1 + 0.05 * (9.5 - call) for call in range(CALLS)]
    wave = [1 + 0.8 * math.cos(2 * math.pi * call / CALLS) for call in range(CALLS)]
    for factors in (ramp, wave):
        _, second, third, rules = by_orders(factors, along(factors), strength)
        assert rules == third < 0.6 * second
    # Lowering the order in the two steps around a jump alone draws worse than to leave it.
    jump = [1.0 + (call >= 4) for call in range(CALLS)]
    wanted = drawn(fine(), guided(jump, strength, FINER))
    *_, third, rules = by_orders(jump, wanted, strength)
    plain = table_on(vp().frame, GRID, order=3)
    lowered = replace(
        plain,
        steps=tuple(
            replace(step, order=min(step.order, 2)) if place in (4, 5) else step
            for place, step in enumerate(plain.steps)
        ),
    )
    assert rules == third < 0.75 * error(drawn(lowered, guided(jump, strength)), wanted)


@pytest.mark.parametrize("strength", [3.0, 7.5])
def test_where_strength_swings_no_sample_of_the_second_order_is_corrected(strength):
    factors = [1 - 0.5 * (-1) ** call for call in range(CALLS)]
    wanted = drawn(fine(), guided(factors, strength, FINER))
    _, second, third, rules = by_orders(factors, wanted, strength, corrector=True)
    assert rules < 0.4 * second < 0.4 * third
    first_order = table_on(vp().frame, GRID, order=1, corrector=True)
    assert composed(first_order, guided_steps(factors)) == first_order
