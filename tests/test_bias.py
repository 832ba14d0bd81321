"""The bias on all factors of a plan that replays: the search, and what it finds on whole pictures."""

import pytest
from tiny import PROMPT, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError
from festina.calibration.bias import biased, highest, search_bias
from festina.calibration.coherence import measure_coherence
from festina.methods import fora, ltc_accel
from festina.metrics.distances import psnr

CALL = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20, "height": 16, "width": 16}


def test_a_golden_section():
    asked = []

    def peak(place):
        asked.append(place)
        return -((place - 0.037) ** 2)

    place, height = highest(peak, -0.1, 0.1, 12)
    assert len(asked) == 12
    assert height == max(-((each - 0.037) ** 2) for each in asked) == -((place - 0.037) ** 2)
    # Two probes leave 0.618 of the range, each further one 0.618 of what is left.
    assert abs(place - 0.037) <= 0.2 * 0.6180339887**11
    assert highest(lambda place: place, 0.0, 1.0, 2)[0] == pytest.approx(0.6180339887)


def test_a_bias_moves_every_factor():
    plan = fora(pixart_transformer(), 6, 2).replaying({3: 0.9, 5: 1.0})
    assert [step.replay for step in biased(plan, 0.05).steps] == [None, None, None, pytest.approx(0.95), None, 1.05]


def test_a_bias_is_found_on_whole_pictures():
    pipe = pixart_pipeline()
    factor = measure_coherence(pipe, [PROMPT], 6, (3,), call=CALL).mean_factors()[3]
    wrong = factor - 0.08
    plan = ltc_accel(pipe, 6, (3, 4)).replaying({3: wrong})
    before = snapshot(pipe)
    found = search_bias(pipe, plan, [PROMPT], call=CALL, probes=4)
    assert snapshot(pipe) == before
    assert 0 < found.bias <= 0.1
    assert found.psnr > found.psnr_before
    assert found.plan.settings["bias"] == found.bias
    assert found.plan.steps[3].replay == pytest.approx(wrong + found.bias)
    untouched = generate(pipe, steps=6)
    for each, told in ((plan, found.psnr_before), (found.plan, found.psnr)):
        with festina.accelerate(pipe, each):
            assert float(psnr(generate(pipe, steps=6), untouched)) == pytest.approx(told, abs=1e-3)
    with pytest.raises(FestinaError, match="the plan replays nothing"):
        search_bias(pipe, plan.computing_all(plan.denoiser, plan.sites, 6), [PROMPT])
    with pytest.raises(FestinaError, match="wanted one seed for each prompt"):
        search_bias(pipe, plan, [PROMPT], seeds=[1, 2])
    for knobs in ({"probes": 4.0}, {"probes": 1}, {"probes": True}, {"widest": "0.1"}, {"widest": 0.0}):
        with pytest.raises(FestinaError, match="wanted a whole number of at least 2, and a range above 0"):
            search_bias(pipe, plan, [PROMPT], **knobs)


def snapshot(pipe):
    return [sorted(vars(part)) for part in (pipe, pipe.transformer, pipe.scheduler)]
