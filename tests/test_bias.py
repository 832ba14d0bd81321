"""The bias on all factors of a plan that replays: the search, and what it finds on whole pictures."""

from dataclasses import replace

import pytest
import torch
from tiny import PROMPT, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError
from festina.calibration.bias import biased, highest, search_bias
from festina.calibration.coherence import measure_coherence
from festina.methods import fora, ltc_accel
from festina.metrics.distances import psnr
from festina.samplers import PlanScheduler
from festina.samplers.teleportation import statistics_of
from festina.samplers.times import table_on, uniform_log_snr

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


def test_a_plan_that_calls_another_model_or_starts_by_statistics_has_a_bias_too():
    pipe, small, steps = pixart_pipeline(), pixart_transformer(blocks=1), 6
    plan = ltc_accel(pipe, steps, (3, 4)).replaying({3: 0.8})
    called = [replace(step, model="small") if place < 2 else step for place, step in enumerate(plan.steps)]
    ran = []
    small.register_forward_pre_hook(lambda *_: ran.append(1))
    found = search_bias(
        pipe, replace(plan, steps=tuple(called)), [PROMPT], call=CALL, probes=2, models={"small": small}
    )
    # The plan as it is and two probes, each with two steps of the model.
    assert len(ran) == 3 * 2
    assert [step.model for step in found.plan.steps[:3]] == ["small", "small", ""]
    untouched = generate(pipe, steps=steps)
    with festina.accelerate(pipe, found.plan, models={"small": small}):
        assert float(psnr(generate(pipe, steps=steps), untouched)) == pytest.approx(found.psnr, abs=1e-3)
    with pytest.raises(FestinaError, match="small"):
        search_bias(pipe, replace(plan, steps=tuple(called)), [PROMPT], call=CALL, probes=2)

    frame = PlanScheduler.from_scheduler(pipe.scheduler).frame
    table = replace(table_on(frame, uniform_log_snr(frame, steps + 2)[2:], order=1), start="gaussian")
    shape = (pipe.transformer.config.in_channels, *[pipe.transformer.config.sample_size] * 2)
    statistics = statistics_of(torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)), 2)
    carried = replace(plan, solver=table)
    found = search_bias(pipe, carried, [PROMPT], call=CALL, probes=2, statistics=statistics)
    with festina.accelerate(pipe, found.plan, statistics=statistics):
        assert float(psnr(generate(pipe, steps=steps), untouched)) == pytest.approx(found.psnr, abs=1e-3)
    with pytest.raises(FestinaError, match="statistics"):
        search_bias(pipe, carried, [PROMPT], call=CALL, probes=2)


def snapshot(pipe):
    return [sorted(vars(part)) for part in (pipe, pipe.transformer, pipe.scheduler)]
