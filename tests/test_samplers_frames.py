"""Noise levels, times and predictions of the families of models."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from samplers_toy import noise, output, picture

from festina import FestinaError
from festina.samplers import Frame, NoiseLevel, PlanScheduler, shifted, unshifted

FRAMES = {
    "variance_preserving": PlanScheduler.from_scheduler(DDIMScheduler(clip_sample=False)).frame,
    "flow": PlanScheduler.from_scheduler(FlowMatchEulerDiscreteScheduler()).frame,
    "edm": PlanScheduler.from_scheduler(EDMEulerScheduler()).frame,
}


@pytest.mark.parametrize("family", ["variance_preserving", "flow"])
def test_predictions_give_back_picture_and_noise(family):
    for prediction in {"variance_preserving": ("epsilon", "sample", "v_prediction")}.get(
        family, ("flow_prediction", "epsilon", "sample")
    ):
        frame = Frame(family, prediction, training_noise=FRAMES[family].training_noise)
        for value in (0.02, 0.4, 0.9):
            level = frame.level(value)
            sample = noise(dtype=torch.float64)
            clean = picture(sample, level)
            x0, dirt = frame.predictions(output(sample, level, prediction), sample, level)
            torch.testing.assert_close(x0, clean, atol=1e-11, rtol=0)
            torch.testing.assert_close(level.alpha * x0 + level.sigma * dirt, sample, atol=1e-11, rtol=0)
            of_data, of_noise = frame.output_weights(level)
            said = of_data * x0 + of_noise * dirt
            torch.testing.assert_close(said, output(sample, level, prediction), atol=1e-10, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_predictions_are_those_of_diffusers(prediction):
    scheduler = EDMEulerScheduler(prediction_type=prediction)
    frame = PlanScheduler.from_scheduler(scheduler).frame
    level = frame.level(2.5)
    sample, said = noise(1, dtype=torch.float64), noise(2, dtype=torch.float64)
    x0, dirt = frame.predictions(said, sample, level)
    torch.testing.assert_close(x0, scheduler.precondition_outputs(sample, said, 2.5))
    of_data, of_noise = frame.output_weights(level)
    torch.testing.assert_close(of_data * x0 + of_noise * dirt, said)
    assert frame.input_scale(level) == pytest.approx(1 / math.sqrt(2.5**2 + 0.25))
    assert frame.network_time(2.5) == pytest.approx(0.25 * math.log(2.5))
    assert frame.noise_at(frame.network_time(2.5)) == pytest.approx(2.5)


def test_variance_is_preserved_and_flow_is_straight():
    level = FRAMES["variance_preserving"].level(3.0)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-15)
    assert level.sigma_hat == pytest.approx(3.0)
    assert level.half_log_snr == pytest.approx(-math.log(3.0))
    assert FRAMES["flow"].level(0.25) == NoiseLevel(0.75, 0.25)
    assert FRAMES["flow"].level(1.0).sigma_hat == math.inf
    assert FRAMES["flow"].level(0.0).half_log_snr == math.inf


def test_training_times_are_interpolated_and_invertible():
    frame = FRAMES["variance_preserving"]
    training = frame.training_noise
    assert frame.noise_at(500) == pytest.approx(training[500])
    assert frame.noise_at(500.25) == pytest.approx(0.75 * training[500] + 0.25 * training[501])
    for time in (0.0, 0.4, 17.5, 998.9, 999.0):
        assert frame.network_time(frame.noise_at(time)) == pytest.approx(time, abs=1e-9)
    assert frame.diffusion_time(0.0) == -1
    assert frame.noise_at(-0.5) == pytest.approx(training[0] / 2)
    expected = DPMSolverMultistepScheduler()
    expected.set_timesteps(7)
    for time, value in zip(expected.timesteps.tolist(), expected.sigmas[:-1].tolist(), strict=True):
        assert frame.noise_at(time) == pytest.approx(value, rel=1e-5)
    assert FRAMES["flow"].network_time(0.12345678) == pytest.approx(123.45678)


def test_zero_terminal_signal_stays_finite():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False, prediction_type="v_prediction")
    frame = PlanScheduler.from_scheduler(scheduler).frame
    assert frame.training_noise[-1] == pytest.approx(2.0**12, rel=1e-6)
    assert np.isfinite(frame.training_noise).all()


def test_shift_and_its_inverse():
    assert shifted(0.5, 3.0) == 0.75
    assert shifted(1.0, 3.0) == 1.0
    for value in (0.0, 0.1, 0.7, 1.0):
        assert unshifted(shifted(value, 3.0), 3.0) == pytest.approx(value, abs=1e-15)


def test_unknown_families_predictions_and_levels_raise():
    with pytest.raises(FestinaError, match="no family"):
        Frame("poisson", "epsilon")
    with pytest.raises(FestinaError, match="prediction_type"):
        Frame("flow", "v_prediction")
    with pytest.raises(FestinaError, match="in pure noise"):
        Frame("flow", "epsilon").predictions(noise(1), noise(2), NoiseLevel(0.0, 1.0))
    with pytest.raises(FestinaError, match="no noise level"):
        FRAMES["flow"].level(1.5)
    with pytest.raises(FestinaError, match="no noise level"):
        FRAMES["edm"].level(-1.0)
    with pytest.raises(FestinaError, match="no noise level"):
        FRAMES["edm"].level(math.nan)
