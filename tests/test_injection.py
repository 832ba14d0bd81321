"""Initial noise that is added to the latents after a step."""

import inspect

import pytest
import torch
from tiny import dit_pipeline, flux_pipeline, generate, pixart_pipeline

import festina
from festina import FestinaError, Plan, Step
from festina.sites import component_sites, find_denoiser

STEPS = 5


def injecting(pipe, shares):
    denoiser = find_denoiser(pipe)
    sites = tuple(site.name for site in component_sites(denoiser))
    steps = [Step(1 - n / len(shares), "C" * len(sites), injected=share) for n, share in enumerate(shares)]
    return Plan(type(denoiser).__name__, sites, tuple(steps))


@pytest.mark.parametrize("make", [pixart_pipeline, dit_pipeline, flux_pipeline])
def test_the_latents_gain_a_share_of_those_the_run_began_with(make):
    pipe = make()
    shares = [0.0, 0.25, 0.0, -0.5, 0.125]
    seen = []
    original = pipe.scheduler.step

    def step(output, timestep, sample, *args, **kwargs):
        result = original(output, timestep, sample, *args, **kwargs)
        seen.append((sample, result[0] if isinstance(result, tuple) else result.prev_sample))
        return result

    plan = injecting(pipe, shares)
    step.__signature__ = inspect.signature(original)
    pipe.scheduler.step = step
    try:
        with festina.accelerate(pipe, plan) as run:
            first = generate(pipe, steps=STEPS)
            assert torch.equal(generate(pipe, steps=STEPS), first)
            assert run.injection._initial is None
    finally:
        del pipe.scheduler.step
    initial = seen[0][0]
    for number in range(STEPS - 1):
        after, entering = seen[number][1], seen[number + 1][0]
        torch.testing.assert_close(entering, after + shares[number] * initial)
        assert torch.equal(entering, after) == (shares[number] == 0)
    assert not torch.equal(first, generate(pipe, steps=STEPS))


def test_nothing_injected_is_the_plan_without_it():
    pipe = pixart_pipeline()
    plan = injecting(pipe, [0.0] * STEPS)
    assert plan.key() == Plan.computing_all(plan.denoiser, plan.sites, STEPS).key()
    assert "injected" not in plan.to_json()
    other = injecting(pipe, [0.0, 0.003, 0.0])
    assert Plan.from_json(other.to_json()) == other
    assert other.key() != injecting(pipe, [0.0] * 3).key()
    with pytest.raises(FestinaError, match="injected after step 1 is no finite number"):
        injecting(pipe, [0.0, float("inf")])
