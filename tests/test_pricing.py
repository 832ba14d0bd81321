"""Prices before a run are what the run reports, for pipelines of the kinds that ship, in batches of unequal size."""

import pytest
from pipelines import unets, videos
from tiny import PROMPT, flux_pipeline, pixart_pipeline

from festina import Plan
from festina.benchmark.measuring import draw
from festina.benchmark.variants import Variant
from festina.methods import fora
from festina.search import Workload
from festina.search.pricing import holding, pricing, probe
from festina.sites import component_sites, find_denoiser

STEPS = 3
PROMPTS = (PROMPT, "a small red ring", "a large green star on a pink background")
SIZE = {"height": 16, "width": 16}
TEXT = {**SIZE, "max_sequence_length": 20}
PIPELINES = {
    "pixart": (pixart_pipeline, {**TEXT, "use_resolution_binning": False, "clean_caption": False}),
    "flux": (flux_pipeline, {**TEXT, "negative_prompt": "a black background"}),
    "unet": (unets.PIPELINES["sd2"].build, SIZE),
    "latte": (videos.PIPELINES["latte"].build, {**SIZE, "video_length": 3, "clean_caption": False}),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_price_is_what_a_run_reports_for_a_picture(name, batch):
    """Of one prompt alone the pipeline of Latte cuts the padding off, of two it does not."""
    build, call = PIPELINES[name]
    pipe = build()
    workload = Workload(PROMPTS, (0, 1, 2), STEPS, 4.5, batch, call)
    price, hold = pricing(pipe, workload), holding(pipe, workload)
    denoiser = find_denoiser(pipe)
    everything = Plan.computing_all(type(denoiser).__name__, [site.name for site in component_sites(denoiser)], STEPS)
    for plan in (everything, fora(pipe, STEPS, 2)):
        drawn = draw(pipe, Variant("it", "plan", "plans", STEPS, plan=plan), workload)
        assert (drawn.macs, drawn.held_bytes) == (price(plan), hold(plan))
    assert price(fora(pipe, STEPS, 2)) < price(everything)


def test_batches_of_one_form_are_traced_once():
    build, call = PIPELINES["latte"]
    pipe = build()
    workload = Workload((*PROMPTS, "a small blue ring"), (0, 1, 2, 3), STEPS, 4.5, 2, call)
    (both,) = probe(pipe, workload)
    assert (both.pictures, both.calls, both.batches) == (2, 1, 2)
    alone = probe(pipe, Workload(workload.prompts, workload.seeds, STEPS, 4.5, 1, call))
    # Two of the prompts have as many words.
    assert sorted(each.batches for each in alone) == [1, 1, 2]
    assert len({id(each.traced) for each in alone}) == 3
