"""DualFast's contrast on mixtures of Gaussians: at which orders and sizes it helps. The networks are exact, so that it
has no error of theirs to cancel."""

from dataclasses import replace

import pytest
import torch
from samplers_pipe import ToyPipe, error
from samplers_toy import CENTRES

from festina.samplers.times import table_on, uniform_log_snr

MIXTURES = {
    "of_three": CENTRES,
    "of_four": torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
}


class Contrasts:
    """Errors at even steps of the log signal-to-noise ratio with a contrast that grows evenly from 0."""

    def __init__(self, centres):
        self.pipe = ToyPipe(centres=centres)
        self.exact = self.drawn(300, 3)

    def drawn(self, calls, order, most=0.0, reference="first"):
        table = table_on(self.pipe.frame, uniform_log_snr(self.pipe.frame, calls), order=order)
        steps = tuple(
            replace(step, contrast=most * place / (calls - 1), contrast_reference=reference)
            for place, step in enumerate(table.steps)
        )
        return self.pipe.drawn(replace(table, steps=steps), 1, 128)

    def error(self, *told):
        return error(self.drawn(*told), self.exact)


@pytest.fixture(params=MIXTURES)
def toy(request):
    return Contrasts(MIXTURES[request.param])


def test_with_first_order_steps_a_contrast_to_the_first_output_helps(toy):
    for calls in (5, 8):
        errors = [toy.error(calls, 1, most) for most in (0.0, 0.1, 0.2, 0.3, 0.5)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.65 * errors[0]


def test_the_more_steps_the_smaller_the_contrast_that_helps(toy):
    plain, some, much = (toy.error(20, 1, most) for most in (0.0, 0.2, 0.5))
    assert some < 0.6 * plain
    assert much > 1.3 * plain
    # Plain steps of the second order are better than the best of these.
    assert toy.error(20, 2) < 0.7 * some


def test_a_contrast_to_the_previous_output_is_a_share_of_the_second_order(toy):
    for calls in (5, 8, 12, 20):
        errors = [toy.error(calls, 1, most, "previous") for most in (0.0, 0.1, 0.2, 0.5)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] > 0.5 * errors[0]


@pytest.mark.parametrize("reference", ["first", "previous"])
def test_with_second_order_steps_a_contrast_harms(toy, reference):
    for calls in (5, 8, 12, 20):
        errors = [toy.error(calls, 2, most, reference) for most in (0.0, 0.1, 0.2, 0.5)]
        assert errors == sorted(errors)
        assert errors[2] > 1.15 * errors[0]
