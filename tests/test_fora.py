import numpy as np
import pytest
from tiny import flux_transformer, pixart_pipeline, pixart_transformer

from festina.errors import FestinaError
from festina.methods import fora
from festina.plan import Plan
from festina.sites import component_sites


@pytest.mark.parametrize(("interval", "computed"), [(1, 20), (2, 10), (3, 7), (4, 5), (5, 4), (6, 4), (7, 3), (20, 1)])
def test_computes_every_interval_th_step(interval: int, computed: int) -> None:
    plan = fora(pixart_transformer(), 20, interval)
    assert plan.computed_steps() == tuple(range(0, 20, interval))
    assert len(plan.computed_steps()) == computed
    assert (plan.mask() == plan.mask()[:, :1]).all()


def test_covers_every_component_of_both_stacks_of_flux() -> None:
    denoiser = flux_transformer()
    plan = fora(denoiser, 6, 3)
    assert plan.sites == tuple(site.name for site in component_sites(denoiser))
    assert plan.denoiser == "FluxTransformer2DModel"
    assert np.array_equal(plan.mask().sum(axis=1), [12, 0, 0, 12, 0, 0])


def test_takes_a_pipeline_and_round_trips() -> None:
    pipe = pixart_pipeline()
    plan = fora(pipe, 4, 2)
    assert plan.key() == fora(pipe.transformer, 4, 2).key()
    assert (plan.sampler, fora(pipe.transformer, 4, 2).sampler) == ("DPMSolverMultistepScheduler", "")
    assert plan.settings == {"interval": 2, "countdown": False}
    assert Plan.from_json(plan.to_json()) == plan


def test_interval_one_is_the_uncached_plan() -> None:
    denoiser = pixart_transformer()
    plan = fora(denoiser, 5, 1)
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, 5).key()


@pytest.mark.parametrize(
    ("interval", "computed"),
    [
        (1, list(range(50))),
        (2, [0, *range(1, 50, 2)]),
        (3, [0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40, 43, 46, 49]),
        (7, [0, 7, 14, 21, 28, 35, 42, 49]),
    ],
)
def test_counts_down_as_the_released_code_does(interval: int, computed: list[int]) -> None:
    plan = fora(pixart_transformer(), 50, interval, countdown=True)
    assert list(plan.computed_steps()) == computed
    assert plan.settings == {"interval": interval, "countdown": True}


@pytest.mark.parametrize(("steps", "interval"), [(0, 2), (4, 0), (4, -1)])
def test_refuses_what_makes_no_schedule(steps: int, interval: int) -> None:
    with pytest.raises(FestinaError, match="wanted a whole number"):
        fora(pixart_transformer(), steps, interval)
