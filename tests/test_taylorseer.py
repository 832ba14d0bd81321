"""TaylorSeer: full steps, growth of the order, and forecasts against the published recursion and diffusers' port."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.hooks import TaylorSeerCacheConfig
from tiny import flux_pipeline, flux_transformer, generate, pixart_pipeline, pixart_transformer
from watched import steps_run

import festina
from festina import FestinaError, Plan, Step
from festina.methods import fora, step_mask, taylorseer
from festina.methods.taylorseer import full_steps, unread_components
from festina.sites import component_sites, rows, stack_runs


def column(plan, site=None):
    """The actions of one site, by default the first."""
    place = 0 if site is None else plan.sites.index(site)
    return "".join(step.actions[place] for step in plan.steps)


@pytest.mark.parametrize(
    ("steps", "interval", "warm_up", "full"),
    [
        (50, 3, 2, [0, *range(1, 50, 3)]),
        (50, 4, 2, [0, *range(1, 50, 4)]),
        (50, 5, 2, [0, *range(1, 50, 5)]),
        (50, 6, 3, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]),
        (50, 5, 1, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]),
        (50, 4, 1, list(range(0, 50, 4))),
        (3, 4, 9, [0, 1, 2]),
    ],
)
def test_full_steps_of_the_released_code(steps, interval, warm_up, full):
    assert np.flatnonzero(full_steps(steps, interval, warm_up)).tolist() == full


@pytest.mark.parametrize(
    ("before", "full"),
    [
        (3, [0, 1, 2, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49]),
        (10, [*range(10), 11, 16, 21, 26, 31, 36, 41, 46]),
    ],
)
def test_full_steps_of_diffusers(before, full):
    assert np.flatnonzero(full_steps(50, 5, before, "diffusers")).tolist() == full


@pytest.mark.parametrize(
    ("interval", "order", "warm_up", "schedule", "actions"),
    [
        (4, 2, 1, "published", "CRRRC111C222C"),
        (4, 2, 2, "published", "CC111C222C222"),
        # No difference before the last step of the warm-up, though two values are there.
        (6, 2, 3, "published", "CCC11111C2222"),
        (3, 4, 2, "published", "CC11C22C33C44"),
        (4, 0, 2, "published", "CCRRRCRRRCRRR"),
        (3, 2, 3, "diffusers", "CCC2C22C22C22"),
    ],
)
def test_the_order_grows_as_differences_are_formed(interval, order, warm_up, schedule, actions):
    plan = taylorseer(pixart_transformer(), 13, interval, order, warm_up, schedule=schedule)
    assert {column(plan, site) for site in plan.sites} == {actions}
    assert plan.canonical().steps == plan.steps


class Drawn(torch.nn.Module):
    """A component that returns one number per step, whatever it is given."""

    def __init__(self):
        super().__init__()
        self.values, self.step = [], 0

    def forward(self, x):
        return torch.tensor([self.values[self.step]], dtype=torch.float64)


class OneBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"ff": Drawn()})])

    def forward(self, x):
        return self.blocks[0]["ff"](x)


@pytest.fixture
def curve(monkeypatch):
    """Runs a plan on a denoiser whose only component draws a given curve; returns what was served or computed."""
    monkeypatch.setattr(rows, "_ROWS", dict(rows._ROWS))
    rows.register(rows.Row("OneBlock", (rows.Stack("blocks", components=("ff",)),)))
    denoiser = OneBlock()

    def run_by(values, **knobs):
        drawn = denoiser.blocks[0]["ff"]
        drawn.values = values
        plan = taylorseer(denoiser, len(values), **knobs)
        with festina.accelerate(denoiser, plan) as run:
            run.start(len(values))
            answers = []
            for drawn.step in range(len(values)):
                answers.append(denoiser(torch.zeros(1)).item())
                run.next_step()
        return answers

    return run_by


def published(values, interval, order, warm_up):
    """The recursion of the released code for one number, step by step."""
    answers, kept, counter, last = [], [], 0, 0
    for step, value in enumerate(values):
        if step < warm_up or counter == interval - 1:
            fresh = [value]
            for place in range(order):
                if place < len(kept) and step > warm_up - 2:
                    fresh.append((fresh[place] - kept[place]) / (step - last))
                else:
                    break
            kept, counter, last = fresh, 0, step
            answers.append(value)
        else:
            counter += 1
            ahead = step - last
            answers.append(sum(ahead**k / math.factorial(k) * part for k, part in enumerate(kept)))
    return answers


@pytest.mark.parametrize("warm_up", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [0, 1, 2, 4])
@pytest.mark.parametrize("interval", [1, 2, 5])
def test_forecasts_equal_the_published_recursion(curve, interval, order, warm_up):
    values = np.random.default_rng(7).normal(size=23).tolist()
    answers = curve(values, interval=interval, order=order, warm_up=warm_up)
    assert answers == pytest.approx(published(values, interval, order, warm_up), rel=1e-9, abs=1e-9)


def test_a_parabola_is_missed_by_taylor_and_met_by_newton(curve):
    """At offset 3 from gaps of 6 the published form misses (s / 50)^2 by 6 * 3 / 2500."""
    parabola = [(step / 50) ** 2 for step in range(50)]
    knobs = {"interval": 6, "order": 2, "warm_up": 1}
    settled = slice(12, 50)
    taylor, newton = (np.array(curve(parabola, basis=basis, **knobs))[settled] for basis in ("taylor", "newton"))
    missed = np.abs(taylor - parabola[settled])
    assert missed[15 - 12] == pytest.approx(7.2e-3)
    assert missed.tolist() == pytest.approx([6 * (step % 6) / 2500 for step in range(12, 50)])
    assert newton == pytest.approx(parabola[settled], abs=1e-14)


STEPS = 14


def samples(denoiser, run=None):
    """Outputs of FLUX for inputs that drift."""
    torch.manual_seed(0)
    start, drift = torch.randn(1, 4, 16), torch.randn(1, 4, 16)
    fixed = {
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "pooled_projections": torch.randn(1, 8),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
        "guidance": torch.ones(1),
        "return_dict": False,
    }
    outputs = []
    if run is not None:
        run.start(STEPS)
    for step in range(STEPS):
        with torch.no_grad(), denoiser.cache_context("cond"):
            given = {"hidden_states": start + 0.1 * step * drift, "timestep": torch.tensor([0.9 - 0.04 * step])}
            outputs.append(denoiser(**given, **fixed)[0])
        if run is not None:
            run.next_step()
    return torch.stack(outputs)


def by_plan(denoiser, plan):
    with festina.accelerate(denoiser, plan) as run:
        return samples(denoiser, run)


def test_forecasts_equal_the_port_in_diffusers():
    """The same components of FLUX, whose single blocks are kept by their last layer."""
    denoiser = flux_transformer()
    untouched = samples(denoiser)
    ours = by_plan(denoiser, taylorseer(denoiser, STEPS, 3, order=2, warm_up=3, schedule="diffusers"))
    config = TaylorSeerCacheConfig(
        cache_interval=3,
        disable_cache_before_step=3,
        max_order=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[
            r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
            r"single_transformer_blocks\.\d+\.proj_out",
        ],
    )
    denoiser.enable_cache(config)
    theirs = samples(denoiser)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, untouched, atol=1e-2)


def test_what_nothing_reads_is_held_and_changes_nothing():
    denoiser = flux_transformer()
    unread = unread_components(denoiser)
    assert unread == {
        f"single_transformer_blocks.{block}.{part}" for block in range(2) for part in ("attn", "proj_mlp")
    }
    plan = taylorseer(denoiser, STEPS, 4, order=1, warm_up=2)
    assert {column(plan, site) for site in unread} == {"CCRRRCRRRCRRRC"}
    everywhere = tuple(Step(step.noise, column(plan)[at] * len(plan.sites)) for at, step in enumerate(plan.steps))
    assert torch.equal(by_plan(denoiser, plan), by_plan(denoiser, replace(plan, steps=everywhere)))
    assert unread_components(pixart_transformer()) == frozenset()


def test_the_light_form_serves_the_stack():
    pipe = flux_pipeline()
    plan = taylorseer(pipe, 6, 2, order=1, warm_up=2, sites="last")
    assert plan.sites == stack_runs(pipe.transformer)
    paths = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.1"]
    assert steps_run(pipe, plan, paths, lambda: generate(pipe, steps=6)) == dict.fromkeys(paths, (0, 1, 3, 5))


def test_without_differences_it_is_fora_or_a_step_mask():
    denoiser = pixart_transformer()
    assert taylorseer(denoiser, 9, 4, order=0, warm_up=1).key() == fora(denoiser, 9, 4).key()
    light = taylorseer(denoiser, 9, 4, order=0, warm_up=2, sites="last")
    assert light.key() == step_mask(denoiser, [1, 1, 0, 0, 0, 1, 0, 0, 0]).key()


@pytest.mark.parametrize("sites", ["components", "last"])
def test_interval_one_is_the_untouched_run(sites):
    pipe = pixart_pipeline()
    plan = taylorseer(pipe, 4, 1, order=2, sites=sites)
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 4).key()
    untouched = generate(pipe)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe), untouched)


def test_the_plan_tells_its_knobs_and_round_trips():
    pipe = pixart_pipeline()
    plan = taylorseer(pipe, 12, 3, order=2, warm_up=1, basis="hermite")
    assert plan.settings == {
        "interval": 3,
        "order": 2,
        "warm_up": 1,
        "basis": "hermite",
        "sites": "components",
        "schedule": "published",
    }
    assert (plan.method, plan.basis, plan.sampler) == ("taylorseer", "hermite", "DPMSolverMultistepScheduler")
    assert plan.sites == tuple(site.name for site in component_sites(pipe.transformer))
    assert Plan.from_json(plan.to_json()) == plan
    assert len({taylorseer(pipe, 12, 3, 2, 1, basis).key() for basis in ("taylor", "newton", "hermite")}) == 3


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"steps": 0}, "number of steps"),
        ({"interval": 0}, "interval"),
        ({"order": 10}, "order is 10"),
        ({"order": -1}, "order is -1"),
        ({"order": 1.5}, "order is 1.5"),
        ({"warm_up": 0}, "warm-up"),
        ({"basis": "fourier"}, "fourier"),
        ({"sites": "blocks"}, "components, last"),
        ({"schedule": "paper"}, "published, diffusers"),
    ],
)
def test_refuses_what_makes_no_schedule(knobs, message):
    with pytest.raises(FestinaError, match=message):
        taylorseer(pixart_transformer(), **{"steps": 8, "interval": 3, **knobs})
