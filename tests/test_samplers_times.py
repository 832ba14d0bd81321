"""Grids of noise levels: equality with diffusers, closed forms, and which is better on toys."""

import math
from dataclasses import replace
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from samplers_pipe import ToyPipe, error
from samplers_toy import BETAS, CENTRES, SPREAD, gaussian_end, noise, vp

from festina.errors import FestinaError
from festina.samplers import Frame, PlanScheduler, shifted
from festina.samplers.times import (
    ALIGNED,
    GRIDS,
    align_your_steps,
    arctan,
    exponential_signal,
    karras,
    table_on,
    uniform_log_snr,
    uniform_time,
)

FLOW = Frame("flow", "flow_prediction")
VP = vp().frame


def edm(largest=80.0):
    return Frame("edm", "epsilon", initial_scale=math.hypot(largest, 1))


FRAMES = {"variance_preserving": VP, "flow": FLOW, "edm": edm()}


@pytest.mark.parametrize("steps", [5, 12, 20])
def test_karras_and_even_log_snr_are_those_of_diffusers(steps):
    for setting, grid in (("use_karras_sigmas", karras), ("use_exponential_sigmas", uniform_log_snr)):
        source = diffusers.DPMSolverMultistepScheduler(**{setting: True}, **BETAS)
        source.set_timesteps(steps)
        np.testing.assert_allclose(grid(VP, steps), source.sigmas[:-1], rtol=1e-5)
    for name, grid in (("karras", karras), ("exponential", uniform_log_snr)):
        source = diffusers.EDMEulerScheduler(sigma_schedule=name, sigma_min=0.02)
        source.set_timesteps(steps)
        frame = PlanScheduler.from_scheduler(source).frame
        np.testing.assert_allclose(grid(frame, steps), source.sigmas[:-1], rtol=1e-5)


def test_even_times_are_diffusers_linspace_where_that_is_whole():
    source = diffusers.DPMSolverMultistepScheduler(timestep_spacing="linspace", **BETAS)
    source.set_timesteps(9)
    assert source.timesteps.tolist() == [999 - 111 * step for step in range(9)]
    np.testing.assert_allclose(uniform_time(VP, 9), source.sigmas[:-1], rtol=1e-5)
    assert uniform_time(FLOW, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert VP.network_time(uniform_time(VP, 7)[1]) == pytest.approx(999 * 6 / 7)


def test_grids_serve_as_levels_before_the_shift():
    levels = uniform_time(FLOW, 4)
    source = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler = PlanScheduler.from_scheduler(source, replace(table_on(FLOW, levels), before_shift=True))
    scheduler.set_timesteps(4)
    moved = [shifted(level, 3.0) for level in levels]
    np.testing.assert_allclose(scheduler.sigmas, [*moved, 0.0], atol=1e-6)
    np.testing.assert_allclose(scheduler.timesteps, [1000 * level for level in moved], atol=1e-3)


def test_align_your_steps_are_the_published_nodes():
    sdxl = align_your_steps(VP, 10, "sdxl")
    assert align_your_steps(VP, 10) == pytest.approx(AysSchedules["StableDiffusionSigmas"][:-1], rel=1e-4)
    assert sdxl == pytest.approx(AysSchedules["StableDiffusionXLSigmas"][:-1], rel=1e-4)
    assert [VP.network_time(level) for level in sdxl] == pytest.approx(
        AysSchedules["StableDiffusionXLTimesteps"], abs=1
    )
    video = align_your_steps(edm(700.0), 10, "svd")
    assert video == pytest.approx(AysSchedules["StableDiffusionVideoSigmas"][:-1])
    # A flow model's levels are sigma = sigma_hat / (1 + sigma_hat), from pure noise on.
    assert align_your_steps(FLOW, 10) == pytest.approx([1.0, *(hat / (1 + hat) for hat in ALIGNED["sd15"][1:10])])


def test_align_your_steps_are_interpolated_in_the_logarithm():
    ten, twenty = align_your_steps(VP, 10), align_your_steps(VP, 20)
    assert twenty[::2] == pytest.approx(ten)
    nodes = [*ten, ALIGNED["sd15"][-1]]
    between = [math.sqrt(first * second) for first, second in pairwise(nodes)]
    assert twenty[1::2] == pytest.approx(between)
    assert align_your_steps(VP, 5) == pytest.approx(ten[::2])


def test_the_exponential_signal_has_the_share_of_its_formula():
    # With sigma_hat^2 = 999 at most, the share begins at HIR-Diff's own 1e-3.
    frame = edm(math.sqrt(999))
    shares = [1 / (1 + level**2) for level in exponential_signal(frame, 20, sharpness=5.0)]
    wanted = [1e-3 + (1 - 1e-3) * (1 - math.exp(-5 * step / 20)) / (1 - math.exp(-5)) for step in range(20)]
    assert shares == pytest.approx(wanted)
    assert shares[10] == pytest.approx(0.92422, abs=1e-5)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("steps", [3, 7])
def test_first_order_steps_on_arctan_lose_the_cosine_of_their_angle(flow, steps):
    pipe, start = ToyPipe(flow, CENTRES[:1]), noise(0, 64, torch.float64)

    def kept(noises):
        """What a sampler keeps of the deviation from the mean that the exact flow has, per step's product."""
        table = table_on(pipe.frame, noises, order=1)
        first = pipe.frame.level(noises[0] * (1 - 1e-9) if flow else noises[0])
        exact = gaussian_end(start, first, pipe.frame.level(0.0))
        return ((pipe.drawn(table) - CENTRES[0]) / (exact - CENTRES[0])).mean().item()

    best = kept(arctan(pipe.frame, steps, SPREAD))
    most = math.inf if flow else VP.training_noise[-1]
    assert best == pytest.approx(math.cos(math.atan(most / SPREAD) / steps) ** steps, rel=1e-4)
    others = [kept(grid(pipe.frame, steps)) for grid in GRIDS.values()]
    others += [kept(arctan(pipe.frame, steps, SPREAD * factor)) for factor in (0.9, 1.1)]
    assert max(others) < best < 1


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("family", FRAMES)
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_grids_begin_at_the_noisiest_level_and_fall(family, name, steps):
    frame = FRAMES[family]
    noises = GRIDS[name](frame, steps)
    assert len(noises) == steps
    noisiest = {"variance_preserving": VP.training_noise[-1], "flow": 1.0, "edm": 80.0}
    assert noises[0] == pytest.approx(noisiest[family])
    assert (np.diff([*noises, 0.0]) < 0).all()
    table = table_on(frame, noises, order=3).checked(frame)
    assert (table.calls, table.final_noise) == (steps, 0.0)


@pytest.mark.parametrize("flow", [False, True])
def test_a_grid_known_to_be_worse_draws_worse(flow):
    pipe = ToyPipe(flow)
    exact = pipe.drawn(table_on(pipe.frame, uniform_log_snr(pipe.frame, 600), order=3))
    errors = {
        name: error(pipe.drawn(table_on(pipe.frame, grid(pipe.frame, 8), order=2)), exact)
        for name, grid in GRIDS.items()
    }
    # All calls but the first in the smallest noise.
    late = [GRIDS["karras"](pipe.frame, 2)[0], *np.geomspace(0.05, 0.01, 7)]
    assert max(errors.values()) < error(pipe.drawn(table_on(pipe.frame, late, order=2)), exact)
    twice = error(pipe.drawn(table_on(pipe.frame, karras(pipe.frame, 16), order=2)), exact)
    assert twice < errors["karras"]


def test_what_grids_refuse():
    for grid in GRIDS.values():
        with pytest.raises(FestinaError, match="0 steps"):
            grid(VP, 0)
    with pytest.raises(FestinaError, match="rho is 0"):
        karras(VP, 5, 0.0)
    with pytest.raises(FestinaError, match="sharpness is -1"):
        exponential_signal(VP, 5, -1.0)
    with pytest.raises(FestinaError, match="spread of the data is 0"):
        arctan(VP, 5, 0.0)
    with pytest.raises(FestinaError, match="no nodes are published for 'flux'"):
        align_your_steps(VP, 10, "flux")
    with pytest.raises(FestinaError, match="do not fall"):
        align_your_steps(VP, 10, "svd")


def test_nodes_of_stable_diffusion_are_the_published_timesteps():
    # Align Your Steps (2404.14507) publishes both, the levels rounded to three digits.
    published = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    found = [VP.network_time(level) for level in align_your_steps(VP, 10, "sd15")]
    assert found == pytest.approx(published, abs=1)
