"""Steps that are answered ahead: one denoiser call of more rows instead of several, and the same pictures."""

from dataclasses import replace

import pytest
import torch
from denoisers.all_classes import CLASSES
from pipelines import unets, videos_unets

import festina
from festina import FestinaError, Plan, Step
from festina.cost import held_bytes, mac_table, plan_macs, trace
from festina.plan import even_noise

PIPELINES = {**unets.PIPELINES, **videos_unets.PIPELINES}
STEPS = 6
ENCODER = "down_blocks.0..mid_block:feature"
BOTH = ("conv_in:feature", ENCODER)


def plan_of(letters, ahead, denoiser="UNet2DConditionModel", sites=BOTH, **columns):
    """A plan: an action per step for all sites, and how many steps each answers ahead."""
    rows = zip(even_noise(len(letters)), letters, ahead, strict=True)
    return Plan(denoiser, sites, tuple(Step(n, a * len(sites), ahead=many) for n, a, many in rows), **columns)


def without(plan):
    """The same plan with one call for each step."""
    return replace(plan, steps=tuple(replace(step, ahead=0) for step in plan.steps))


def made(name, pipe, batch=1, **other):
    tiny = PIPELINES[name]
    return tiny.output(pipe(**{**tiny.call(STEPS, batch), **other})).clone()


def rows_seen(pipe, run, module):
    """Rows of every call that the first convolution in a module of the U-Net really runs for, with the step."""
    seen = []
    layer = next(m for m in pipe.unet.get_submodule(module).modules() if isinstance(m, torch.nn.Conv2d))

    def look(module, args):
        if not run.clock.passing:
            seen.append((run.clock.step, len(args[0])))

    layer.register_forward_pre_hook(look)
    return seen


@pytest.fixture(scope="module")
def pipe():
    """Stable Diffusion 2 with a DDIM scheduler."""
    return PIPELINES["sd2"].build()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("sd2", {}),
        ("sd2", {"guidance_scale": 1.0}),
        # Seven entries, the first of them twice.
        ("sd15", {}),
        # The scheduler scales what the U-Net is given; an embedding of sizes.
        ("sdxl", {}),
        # It begins with step 3, in the middle of what step 2 would have answered.
        ("sdxl-img2img", {}),
        # No text, and the denoiser gives no tuple.
        ("ddim", {}),
        # Frames in the rows of all features; the first with text for every frame.
        ("animatediff", {}),
        ("svd", {}),
    ],
)
def test_the_picture_is_that_of_one_call_per_step(name, other):
    pipe = PIPELINES[name].build()
    untouched = made(name, pipe, **other)
    entries, kind = len(pipe.scheduler.timesteps), type(pipe.unet).__name__
    letters, ahead = ("CRCRRR", (1, 0, 3, 0, 0, 0)) if entries == STEPS else ("CRCRRRR", (1, 0, 4, 0, 0, 0, 0))
    plan = plan_of(letters, ahead, kind)
    with festina.accelerate(pipe, without(plan)) as run:
        wanted = made(name, pipe, **other)
        usual = run.report()
    with festina.accelerate(pipe, plan) as run:
        found = made(name, pipe, **other)
        assert len(run.store) == run.store.bytes == 0
        assert torch.equal(made(name, pipe, **other), found), "the second run differs from the first"
        report = run.report()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, untouched, rtol=1e-3, atol=1e-3)
    assert torch.equal(made(name, pipe, **other), untouched)
    assert (report.macs, report.macs_uncached) == (usual.macs, usual.macs_uncached)
    assert report.calls == usual.calls == usual.steps
    assert dict(report.computed) == dict(usual.computed)
    if name != "sdxl-img2img":
        assert sum(report.shapes.values()) == usual.calls - sum(ahead) + 2


def test_which_calls_run_with_how_many_rows(pipe):
    plan = plan_of("CRRCRR", (2, 0, 0, 2, 0, 0))
    with festina.accelerate(pipe, plan) as run:
        down, up = rows_seen(pipe, run, "down_blocks.0"), rows_seen(pipe, run, "up_blocks.3")
        made("sd2", pipe)
        assert down == [(0, 2), (3, 2)]
        # The second call of steps 0 and 3 runs as the step after it.
        assert up == [(0, 2), (1, 4), (3, 2), (4, 4)]
        report = run.report()
        record = next(record for record in run.calls.values() if record.asked)
    assert report.calls == STEPS
    assert sorted(report.shapes.values()) == [2, 2]
    assert dict(report.computed) == dict(report.served) == dict.fromkeys(BOTH, 2)
    traced = trace(pipe.unet, record.call)
    assert report.macs == plan_macs(plan, mac_table(pipe.unet, traced, BOTH)).total


def test_answers_are_held_until_they_are_given_out(pipe):
    steps = 12
    plan = plan_of("C" + "R" * (steps - 1), (steps, *[0] * (steps - 1)))
    held = []

    def after(pipe, step, time, tensors):
        held.append(run.store.bytes)
        return {}

    with festina.accelerate(pipe, plan) as run:
        pipe(**PIPELINES["sd2"].call(steps, 1), callback_on_step_end=after)
        report = run.report()
        record = next(record for record in run.calls.values() if record.asked)
    answer = 2 * 4 * 4 * 8 * 4  # rows x channels x height x width x bytes
    assert held == [(steps - 1 - step) * answer for step in range(steps)]
    traced = trace(pipe.unet, record.call)
    assert traced.answer * 4 == answer
    assert report.peak_bytes == 11 * answer == held_bytes(plan, pipe.unet, traced, 4)
    # In parts the features stay for the second half; five answers are less than they are.
    parts = plan_of("C" + "R" * (steps - 1), (5, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0))
    assert [step.ahead for step in parts.canonical().steps] == [5, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0]
    with festina.accelerate(pipe, parts) as run:
        pipe(**PIPELINES["sd2"].call(steps, 1))
        report = run.report()
    features = held_bytes(without(parts), pipe.unet, traced, 4)
    assert report.peak_bytes == features + 5 * answer == held_bytes(parts, pipe.unet, traced, 4)


def test_two_pictures_are_as_two_runs_of_one(pipe):
    words, noise = unets.prompts(2), torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    with festina.accelerate(pipe, plan_of("CRRRCR", (3, 0, 0, 0, 1, 0))):
        both = made("sd2", pipe, 2, latents=noise)
        alone = [made("sd2", pipe, prompt=[word], latents=noise[n : n + 1]) for n, word in enumerate(words)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_a_step_for_one_branch_of_guidance_answers_for_one(pipe):
    plan = plan_of("CRRCRR", (2, 0, 0, 2, 0, 0))
    late = (replace(step, branches="conditional" if n > 2 else "all") for n, step in enumerate(plan.steps))
    plan = replace(plan, steps=tuple(late))
    with festina.accelerate(pipe, without(plan)):
        wanted = made("sd2", pipe)
    with festina.accelerate(pipe, plan) as run:
        up = rows_seen(pipe, run, "up_blocks.0")
        torch.testing.assert_close(made("sd2", pipe), wanted, rtol=1e-4, atol=1e-4)
    assert up == [(0, 2), (1, 4), (3, 1), (4, 2)]


def test_guidance_that_ends_midway_ends_the_answers(pipe):
    """From then on there are other rows: what was answered fits no more, and the step computes."""

    def end_guidance(pipe, step, time, tensors):
        if step != 1:
            return {}
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}

    ending = {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    plan = plan_of("CRRCRR", (2, 0, 0, 2, 0, 0))
    with festina.accelerate(pipe, without(plan)):
        wanted = made("sd2", pipe, **ending)
    with festina.accelerate(pipe, plan) as run:
        up = rows_seen(pipe, run, "up_blocks.0")
        torch.testing.assert_close(made("sd2", pipe, **ending), wanted, rtol=1e-4, atol=1e-4)
        assert len(run.store) == 0
    assert up == [(0, 2), (1, 4), (2, 1), (3, 1), (4, 2)]


@torch.no_grad()
def by_hand(unet, run, times, schedule, texts):
    """Denoiser answers of a loop of one's own: a call for each text in each step."""
    outputs = []
    run.start(len(times), schedule=schedule)
    for step, time in enumerate(times):
        sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        outputs += [unet(sample, time, text).sample for text in texts]
        run.next_step(step)
    return torch.stack(outputs)


def test_separate_calls_keep_their_own_answers():
    torch.manual_seed(0)
    unet = CLASSES["UNet2DConditionModel"].build().eval()
    texts, times = torch.randn(2, 2, 7, 12), torch.tensor([900, 700, 500, 300, 100])
    plan = plan_of("CRRCR", (2, 0, 0, 1, 0))
    with festina.accelerate(unet, without(plan)) as run:
        wanted = by_hand(unet, run, times, times, texts)
    with festina.accelerate(unet, plan) as run:
        found = by_hand(unet, run, times, times, texts)
        assert len(run.store) == 0
        assert sum(run.report().shapes.values()) == 2 * (5 - 3 + 2)
        with pytest.raises(FestinaError, match="the timesteps of the next steps are not known"):
            by_hand(unet, run, times, None, texts)
        with pytest.raises(FestinaError, match="ahead in step 3, but there the denoiser is given another"):
            by_hand(unet, run, times / 1000, times, texts)
        numbers = by_hand(unet, run, times.tolist(), times, texts)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    # Where a step is known by its number alone the first step is known only when it has ended.
    torch.testing.assert_close(numbers, wanted, rtol=1e-4, atol=1e-4)
    first, second = wanted.unflatten(0, (5, 2)).unbind(1)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("rows", [2, 4])
def test_an_error_leaves_nothing_behind(pipe, rows):
    """In the call of the step itself, and in the one for the steps after it."""
    plan = plan_of("CRRCRR", (2, 0, 0, 2, 0, 0))
    untouched, before = made("sd2", pipe), dict(vars(pipe.unet))
    layer = pipe.unet.up_blocks[1].resnets[0].conv1

    def fail(module, args):
        if run.clock.step >= 3 and len(args[0]) == rows:
            raise RuntimeError("out of memory")

    with festina.accelerate(pipe, plan) as run:
        wanted = made("sd2", pipe)
        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            made("sd2", pipe)
        handle.remove()
        assert len(run.store) == run.store.bytes == 0
        assert not run.clock.running
        assert torch.equal(made("sd2", pipe), wanted)
    assert vars(pipe.unet) == before
    assert torch.equal(made("sd2", pipe), untouched)


def test_what_changes_from_step_to_step_cannot_be_answered_ahead():
    """A ControlNet looks at the latents of each step."""
    pipe = PIPELINES["sd15-controlnet"].build()
    plan = plan_of("CRRCRRR", (2, 0, 0, 3, 0, 0, 0))
    with (
        festina.accelerate(pipe, plan) as run,
        pytest.raises(FestinaError, match=r"step 1 ahead, but there 'down_block_additional_residuals\.0' is not"),
    ):
        made("sd15-controlnet", pipe)
    assert len(run.store) == 0


def test_sites_on_the_way_up_may_be_served_too(pipe):
    """The attention on the way up reuses what the key step computed; one that computes is read by nobody later."""
    sites = (*BOTH, "up_blocks.1.attentions.0.transformer_blocks.0.attn2", "up_blocks.2.resnets.0")
    rows = ("CCCC", "RRRC", "RRRC", "RRRC", "CCCC", "RRRC")
    steps = tuple(Step(1 - n / 6, row, ahead={0: 3, 4: 1}.get(n, 0)) for n, row in enumerate(rows))
    plan = Plan("UNet2DConditionModel", sites, steps)
    with festina.accelerate(pipe, without(plan)):
        wanted = made("sd2", pipe)
    with festina.accelerate(pipe, plan):
        torch.testing.assert_close(made("sd2", pipe), wanted, rtol=1e-4, atol=1e-4)
