"""How a pipeline guides: what is taken for both branches, what for pictures of equal noise, and what is refused."""

import pytest
import torch
from guided import Bare, table
from lifecycle import all_compute
from pipelines import unets
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError
from festina.executor.layout import check_layout

WORDS = ["a red circle", "a blue star", "a green square"]
TWO_CALLS = {"negative_prompt": ["a black background"] * 2, "true_cfg_scale": 3.0}


def _same_noise(*shape, pictures=2):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).repeat(pictures, *[1] * len(shape))


def _pixart(pipe, pictures=2, scale=1.0):
    noise = _same_noise(4, 8, 8, pictures=pictures)
    return generate(pipe, WORDS[:pictures], steps=4, guidance_scale=scale, latents=noise)


@pytest.mark.parametrize(
    ("rows", "factors", "pictures"),
    [
        ("accc", None, 2),
        ("amcm", None, 3),
        ("adad", [1.0, 2.0, 0.5, 0.5], 2),
        ("aaaa", [1.0, 0.5, 2.0, 0.0], 2),
        ("aaaa", [1.0, 0.5, 2.0, 0.0], 3),
    ],
)
def test_pictures_of_equal_noise_without_guidance_are_left_alone(rows, factors, pictures):
    pipe = pixart_pipeline()
    plain = _pixart(pipe, pictures)
    assert not torch.allclose(plain[0], plain[1], atol=1e-3)
    with festina.accelerate(pipe, table(pipe.transformer, rows, factors=factors)) as run:
        assert torch.equal(_pixart(pipe, pictures), plain)
        assert torch.equal(_pixart(pipe, pictures), plain)
        assert len(run.store) == 0


@pytest.mark.parametrize(("rows", "factors"), [("cccc", None), ("aaaa", [0.5, 1.0, 1.0, 1.0])])
def test_where_the_first_step_is_changed_they_are_refused(rows, factors):
    """What the sampler steps on is known when that step has ended."""
    pipe = pixart_pipeline()
    with festina.accelerate(pipe, table(pipe.transformer, rows, factors=factors)) as run:
        with pytest.raises(FestinaError, match="its sampler steps on all 2 rows: they are pictures of equal noise"):
            _pixart(pipe)
        assert len(run.store) == 0
        assert _pixart(pipe, scale=5.0).isfinite().all(), "the next run is guided"


def test_a_pipeline_that_says_that_it_does_not_guide_is_left_alone_from_the_first_step_on():
    pipe = unets.build_sd2()
    call = unets.call_text(4, 1)
    size = pipe.unet.config.in_channels, call["height"] // pipe.vae_scale_factor, call["width"] // pipe.vae_scale_factor
    call |= {"prompt": WORDS[:2], "latents": _same_noise(*size), "guidance_scale": 1.0}
    plain = pipe(**call).images
    with festina.accelerate(pipe, table(pipe.unet, "cccc")):
        assert torch.equal(torch.as_tensor(pipe(**call).images), torch.as_tensor(plain))


@pytest.mark.parametrize("rows", ["cccc", "accc"])
def test_pictures_of_equal_noise_guided_in_two_calls_keep_their_captions(rows):
    pipe = flux_pipeline()
    call = {"prompts": WORDS[:2], "steps": 4, "latents": _same_noise(16, 16)}
    unguided = generate(pipe, **call)
    with festina.accelerate(pipe, table(pipe.transformer, rows)) as run:
        found = generate(pipe, **call, **TWO_CALLS)
        assert sum(run.report().shapes.values()) == (4 if rows == "cccc" else 5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    if rows == "cccc":
        torch.testing.assert_close(found, unguided, rtol=1e-4, atol=1e-4)


def test_pictures_of_equal_noise_guided_in_one_call_are_guided():
    pipe = pixart_pipeline()
    unguided = _pixart(pipe)
    with festina.accelerate(pipe, table(pipe.transformer, "cccc")):
        torch.testing.assert_close(_pixart(pipe, scale=5.0), unguided, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("calls", [1, 2])
def test_each_call_is_given_an_answer_of_its_own(calls):
    """A pipeline may change what it is given: the other branch has not been changed by that."""
    model = pixart_transformer()
    loop = Bare(model, calls)
    with festina.accelerate(model, table(model, "cc")) as run:
        wanted = loop(run, 2)
        ask = loop._ask
        loop._ask = lambda *given: _kept_and_cleared(ask(*given), loop.kept)
        loop.kept = []
        loop(run, 2)
    found = [half for answer in loop.kept for half in (answer.chunk(2)[::-1] if calls == 1 else [answer])]
    assert len(found) == 4
    assert all(
        torch.equal(one, other) for one, other in zip(found, [each for pair in wanted for each in pair], strict=True)
    )


def _kept_and_cleared(answer, kept):
    kept.append(answer.clone())
    return answer.zero_()


@pytest.mark.parametrize("rows", ["cc", "mm"])
def test_an_answer_of_another_number_of_rows_is_refused(rows):
    model = pixart_transformer()
    forward = model.forward
    model.forward = lambda *args, **kwargs: tuple(torch.cat([part] * 2) for part in forward(*args, **kwargs))
    with festina.accelerate(model, table(model, rows)) as run, pytest.raises(FestinaError, match="guidance of 1 rows"):
        Bare(model, 1)(run, 2)


def _asked(model, run, contexts, samples):
    """One step with a call for each sample, in these cache contexts."""
    run.start(2)
    for context, sample in zip(contexts, samples, strict=True):
        run.clock.context = context
        text, time = torch.ones(len(sample), 5, 16), torch.ones(len(sample))
        model(sample, encoder_hidden_states=text, timestep=time)


@pytest.mark.parametrize(
    ("contexts", "samples", "reason"),
    [
        ([None] * 3, [torch.ones(1, 4, 8, 8)] * 3, "calls its denoiser 3 times or more in a step"),
        ([None] * 2, [torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)], "not twice with the same latents"),
        (["uncond", "cond"], [torch.ones(1, 4, 8, 8)] * 2, "calls its denoiser without the caption first"),
        (["pred_uncond"], [torch.ones(1, 4, 8, 8)], "calls its denoiser without the caption first"),
        ([None], [torch.ones(3, 4, 8, 8)], "the same latents three times"),
        ([None] * 2, [torch.ones(2, 4, 8, 8)] * 2, "again in a step beside the call with both branches"),
    ],
)
@pytest.mark.parametrize("rows", ["ad", "aa"])
def test_other_layouts_are_refused(contexts, samples, reason, rows):
    model = pixart_transformer()
    with festina.accelerate(model, table(model, rows, factors=[1.0 if rows == "ad" else 2.0] * 2)) as run:
        with pytest.raises(FestinaError, match=reason):
            _asked(model, run, contexts, samples)
        assert len(run.store) == 0
    # A plan that leaves guidance alone runs there.
    with torch.no_grad(), festina.accelerate(model, all_compute(model, 2)) as run:
        _asked(model, run, contexts, samples)


@pytest.mark.parametrize(
    ("contexts", "rows", "reason"), [(["uncond"], 1, "without the caption first"), ([None], 3, "three times")]
)
def test_a_plan_that_leaves_a_branch_out_is_refused_there_too(contexts, rows, reason):
    model = pixart_transformer()
    with festina.accelerate(model, table(model, "cc")) as run, pytest.raises(FestinaError, match=reason):
        _asked(model, run, contexts, [torch.ones(rows, 4, 8, 8)])


def test_latents_twice_in_a_list_are_refused():
    ones = {"x.0": torch.ones(4), "x.1": torch.ones(4), "t": torch.zeros(2)}
    with pytest.raises(FestinaError, match="twice in a list"):
        check_layout("x", ones)
    check_layout("x", ones | {"x.1": torch.zeros(4)})
    check_layout("x", {"x.0": torch.ones(4), "t": torch.zeros(2)})
    check_layout("x", {"x": torch.arange(3.0)})
