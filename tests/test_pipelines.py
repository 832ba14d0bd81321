"""Every pipeline family: computing everything changes no bit, a schedule runs as scheduled, nothing is left behind."""

import numpy as np
import pytest
import torch
from pipelines import audio, images, unets, videos

import festina
from festina import Plan
from festina.cost import mac_table, plan_macs, trace
from festina.executor.attach import denoisers_of
from festina.sites import component_sites, find_denoiser

PIPELINES = {**unets.PIPELINES, **images.PIPELINES, **videos.PIPELINES, **audio.PIPELINES}
STEPS = 4


def entries(pipe, name):
    """Steps of a run: a scheduler may make more timesteps than it is asked for."""
    made(pipe, name)
    return len(pipe.scheduler.timesteps)


def made(pipe, name):
    tiny = PIPELINES[name]
    return tiny.output(pipe(**tiny.call(STEPS, 1))).clone()


def snapshot(pipe):
    owners = [pipe, pipe.scheduler, *(module for _, denoiser in denoisers_of(pipe) for module in denoiser.modules())]
    return [{name: id(value) if callable(value) else None for name, value in vars(owner).items()} for owner in owners]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_family(name):
    pipe = PIPELINES[name].build()
    steps, denoiser = entries(pipe, name), find_denoiser(pipe)
    plain, before = made(pipe, name), snapshot(pipe)
    kind, sites = type(denoiser).__name__, [site.name for site in component_sites(denoiser)]
    with festina.accelerate(pipe, Plan.computing_all(kind, sites, steps)) as run:
        assert torch.equal(made(pipe, name), plain)
        ended = run.report()
    assert snapshot(pipe) == before
    # A run that begins midway (img2img) makes fewer steps than there are entries.
    assert ended.steps <= steps
    assert ended.calls == ended.steps * PIPELINES[name].calls_per_step
    mask = np.random.default_rng(1).random((steps, len(sites))) < 0.5
    plan = Plan.from_mask(kind, sites, mask).canonical()
    with festina.accelerate(pipe, plan) as run:
        first = made(pipe, name)
        assert len(run.store) == 0
        assert torch.equal(made(pipe, name), first), "the second run differs from the first"
        report = run.report()
    assert first.isfinite().all()
    assert not torch.equal(first, plain)
    assert snapshot(pipe) == before
    assert torch.equal(made(pipe, name), plain)
    assert report.calls == ended.calls
    assert report.macs < report.macs_uncached == ended.macs_uncached
    if ended.steps == steps and len(PIPELINES[name].denoisers) == 1:
        priced = [(trace(denoiser, record.call), record.count) for record in run.calls.values()]
        tables = [(mac_table(denoiser, traced), count // steps) for traced, count in priced]
        assert report.macs == sum(plan_macs(plan, table).total * count for table, count in tables)
