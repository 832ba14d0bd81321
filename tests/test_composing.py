"""What the rules of composition buy, on mixtures of Gaussians with exact networks."""

import math
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
