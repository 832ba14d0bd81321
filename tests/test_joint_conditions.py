"""Guidance by two conditions at once: which rows run, what the pipeline is given, what goes on with stored values."""

from dataclasses import replace

import diffusers
import pytest
import torch
from denoisers.unets_image import STABLE_DIFFUSION
from lifecycle import random_plan, snapshot
from pipelines import unets
from pipelines.parts_images import HEIGHT, WIDTH, denoiser, images_of, pictures, prompts, quiet, run, vae
from pipelines.parts_images_text import clip_text

import festina
from festina import FestinaError, Plan, Step
from festina.cost import Call, held_bytes, mac_table, plan_macs, trace
from festina.executor.conditions import thirds_of
from festina.executor.layout import Layout
from festina.methods import fora
from festina.methods.guidance import guided, joint_conditions
from festina.zoo.components import build_clip_tokenizer

KINDS = {"a": "all", "j": "joint"}
TEXT, IMAGE = 5.0, 1.5
"""Strengths of the two conditions."""


def edit_unet():
    """A U-Net that is given latents and those of the picture to change."""
    return denoiser(
        lambda: diffusers.UNet2DConditionModel(
            **STABLE_DIFFUSION | {"in_channels": 8},
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            attention_head_dim=2,
        )
    )


def edit_pipeline():
    return quiet(
        diffusers.StableDiffusionInstructPix2PixPipeline(
            vae=vae(),
            text_encoder=clip_text(12),
            tokenizer=build_clip_tokenizer(),
            unet=edit_unet(),
            scheduler=diffusers.DDIMScheduler(clip_sample=False, **unets.NOISE_SCHEDULE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def edit_xl_pipeline():
    unet = denoiser(
        lambda: diffusers.UNet2DConditionModel(
            **STABLE_DIFFUSION | {"in_channels": 8},
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            attention_head_dim=2,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=10 + 6 * 4,
        )
    )
    parts = {name: part for name, part in unets.build_sdxl().components.items() if name not in UNUSED}
    return quiet(diffusers.StableDiffusionXLInstructPix2PixPipeline(**parts | {"unet": unet}))


UNUSED = ("image_encoder", "feature_extractor")
"""Parts of Stable Diffusion XL that its pipeline for changing pictures does not take."""


def draw(pipe, steps=4, batch=1, text=TEXT, image=IMAGE, first=0):
    given = {"prompt": prompts(batch)[first:], "image": pictures(batch)[first:], "output_type": "latent"}
    noise = torch.randn(batch, 4, HEIGHT // 2, WIDTH // 2, generator=torch.Generator().manual_seed(1))
    strengths = {"guidance_scale": text, "image_guidance_scale": image}
    return images_of(pipe(**run(steps, **given, **strengths), latents=noise[first:]))


def table(model, branches, letters="", factors=None):
    """A plan of all components: letters of KINDS and an action for each step."""
    plan = fora(model, len(branches), 1)
    if letters:
        rows = [replace(step, actions=each * len(plan.sites)) for step, each in zip(plan.steps, letters, strict=True)]
        plan = replace(plan, steps=tuple(rows))
    return guided(plan, factors, [KINDS[letter] for letter in branches])


def rows_run(pipe, applied):
    """Step and rows of every call that the U-Net's first layer sees."""
    seen = []
    pipe.unet.conv_in.register_forward_pre_hook(
        lambda _, given: None if applied.clock.passing else seen.append((applied.clock.step, len(given[0])))
    )
    return seen


@torch.no_grad()
def by_hand(pipe, branches):
    """The latents of the pipeline's loop, where steps with a "j" run two rows and guide by one strength."""
    given = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args, named: given.append((args, named)), with_kwargs=True)
    draw(pipe, len(branches))
    hook.remove()
    (sample, _), named = given[0]
    latents, beside, text = sample[:1, :4], sample[:, 4:], named["encoder_hidden_states"]
    pipe.scheduler.set_timesteps(len(branches))
    for kind, time in zip(branches, pipe.scheduler.timesteps, strict=True):
        rows = [0, 2] if kind == "j" else [0, 1, 2]
        inputs = torch.cat([torch.cat([latents] * len(rows)), beside[rows]], dim=1)
        answers = pipe.unet(inputs, time, encoder_hidden_states=text[rows], return_dict=False)[0].chunk(len(rows))
        both, bare = answers[0], answers[-1]
        if kind == "j":
            guided_answer = bare + TEXT * (both - bare)
        else:
            guided_answer = bare + TEXT * (both - answers[1]) + IMAGE * (answers[1] - bare)
        latents = pipe.scheduler.step(guided_answer, time, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("branches", ["jjjj", "ajjj", "jaja", "aajj"])
def test_two_rows_run_and_the_pictures_are_those_by_hand(branches):
    pipe = edit_pipeline()
    plain, wanted, before = draw(pipe), by_hand(pipe, branches), snapshot(pipe)
    assert not torch.allclose(plain, wanted, atol=1e-3)
    with festina.accelerate(pipe, table(pipe.unet, branches)) as applied:
        seen = rows_run(pipe, applied)
        assert torch.equal(draw(pipe), wanted)
        assert torch.equal(draw(pipe), wanted)
        report = applied.report()
        assert len(applied.store) == applied.store.bytes == 0
    rows = [2 if kind == "j" else 3 for kind in branches]
    assert seen == list(enumerate(rows)) * 2
    assert report.macs * 3 * len(branches) == report.macs_uncached * sum(rows)
    assert [sorted(each) for each in snapshot(pipe)] == [sorted(each) for each in before]
    assert torch.equal(draw(pipe), plain)


def test_plans_without_joint_steps_change_nothing():
    pipe = edit_pipeline()
    plain = draw(pipe)
    with festina.accelerate(pipe, table(pipe.unet, "aaaa")) as applied:
        seen = rows_run(pipe, applied)
        assert torch.equal(draw(pipe), plain)
    assert seen == [(step, 3) for step in range(4)]


def test_the_strength_of_the_picture_does_not_enter():
    pipe = edit_pipeline()
    with festina.accelerate(pipe, joint_conditions(pipe, 4, 0, 3)):
        assert torch.equal(draw(pipe, image=1.0), draw(pipe, image=2.5))
        assert not torch.allclose(draw(pipe, text=3.0), draw(pipe, text=5.0), atol=1e-3)


def test_a_factor_is_another_strength():
    pipe = edit_pipeline()
    with festina.accelerate(pipe, table(pipe.unet, "jjjj")):
        weaker = draw(pipe, text=3.0)
    with festina.accelerate(pipe, table(pipe.unet, "jjjj", factors=[0.5] * 4)):
        torch.testing.assert_close(draw(pipe, text=5.0), weaker, rtol=1e-4, atol=1e-4)


def test_two_pictures_are_as_two_runs_of_one():
    pipe = edit_pipeline()
    with festina.accelerate(pipe, table(pipe.unet, "ajja", "CRCR")):
        both = draw(pipe, batch=2)
        alone = draw(pipe, batch=1), draw(pipe, batch=2, first=1)
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_a_run_without_guidance_is_left_alone():
    pipe = edit_pipeline()
    plain = draw(pipe, batch=2, text=1.0)
    with festina.accelerate(pipe, table(pipe.unet, "jjaj", "CRCR")) as applied:
        seen = rows_run(pipe, applied)
        cached = draw(pipe, batch=2, text=1.0)
    assert seen == [(step, 2) for step in range(4)]
    with festina.accelerate(pipe, table(pipe.unet, "jjaj")):
        assert torch.equal(draw(pipe, batch=2, text=1.0), plain)
    assert not torch.equal(cached, plain)


def test_pipelines_are_told_by_what_they_give_and_not_by_their_class():
    """Stable Diffusion XL has more that differs between the rows: pooled texts."""
    pipe = edit_xl_pipeline()

    def drawn(image, text=TEXT):
        given = {"prompt": prompts(2), "image": pictures(2), "height": HEIGHT, "width": WIDTH, "output_type": "latent"}
        return images_of(pipe(**run(4, **given), guidance_scale=text, image_guidance_scale=image))

    plain, other = drawn(1.5), drawn(2.5)
    assert not torch.allclose(plain, other, atol=1e-3)
    with festina.accelerate(pipe, table(pipe.unet, "jjjj")) as applied:
        seen = rows_run(pipe, applied)
        assert torch.equal(drawn(1.5), drawn(2.5))
        # It does not say that it does not guide.
        with pytest.raises(FestinaError, match="is not three rows for each picture"):
            drawn(1.5, text=1.0)
    assert seen == [(step, 4) for step in range(4)] * 2
    with festina.accelerate(pipe, table(pipe.unet, "aaaa")):
        assert torch.equal(drawn(1.5), plain)


class Bare:
    """Calls of the U-Net with three rows per picture, or with the outer two, each step at latents of its own.

    Attributes:
        model: the U-Net.
        outer: whether the rows with one condition are left out of the call.
        turned: whether the rows without conditions come first.
        on_step: called after each step.
    """

    def __init__(self, model, outer=False, turned=False):
        self.model, self.outer, self.turned, self.on_step = model, outer, turned, lambda: None
        random = torch.Generator().manual_seed(2)
        text, empty = torch.randn(2, 1, 7, 12, generator=random)
        image = torch.randn(1, 4, 8, 8, generator=random)
        self.text, self.beside = torch.cat([text, empty, empty]), torch.cat([image, image, 0 * image])

    @torch.no_grad()
    def __call__(self, applied, steps):
        """For each step the answers that the pipeline is given: with both conditions first, with none last."""
        order = [0, 2] if self.outer else [0, 1, 2]
        order = order[::-1] if self.turned else order
        applied.start(steps)
        found = []
        for step in range(steps):
            latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step))
            inputs = torch.cat([torch.cat([latents] * len(order)), self.beside[order]], dim=1)
            answer = self.model(inputs, 900 - 100 * step, encoder_hidden_states=self.text[order], return_dict=False)[0]
            found.append(answer.flip(0) if self.turned else answer)
            applied.next_step()
            self.on_step()
        return found


def bare_run(model, plan, steps, **how):
    loop = Bare(model, **how)
    with festina.accelerate(model, plan) as applied:
        return loop(applied, steps)


@pytest.mark.parametrize("turned", [False, True])
def test_with_a_cache_the_outer_rows_are_as_of_two_rows_alone(turned):
    """Bit by bit where all steps are joint; and as in a run of all rows, up to kernels for three rows and for two."""
    model, steps = edit_unet(), 5
    letters = "CRCRR"
    joint = bare_run(model, table(model, "jjjjj", letters), steps, turned=turned)
    two = bare_run(model, table(model, "aaaaa", letters), steps, turned=turned, outer=True)
    for mine, wanted in zip(joint, two, strict=True):
        assert torch.equal(mine[[0, 2]], wanted)
        assert torch.equal(mine[1], mine[2])
    everything = bare_run(model, table(model, "aaaaa", letters), steps, turned=turned)
    later = bare_run(model, table(model, "aajjj", letters), steps, turned=turned)
    uncached = bare_run(model, table(model, "aaaaa"), steps, turned=turned)
    for place, (mine, wanted) in enumerate(zip(later, everything, strict=True)):
        torch.testing.assert_close(mine[[0, 2]], wanted[[0, 2]], rtol=1e-4, atol=1e-5)
        assert torch.equal(mine[1], (wanted if place < 2 else mine)[1 if place < 2 else 2])
    assert not torch.allclose(later[3], uncached[3], atol=1e-3)


def test_what_was_stored_of_three_rows_goes_on_with_the_outer_two():
    model = edit_unet()
    plan, loop = table(model, "aajj", "CRRR"), Bare(model)
    site, stored = plan.sites[0], []
    with festina.accelerate(model, plan) as applied:
        loop.on_step = lambda: stored.extend(
            entry.value for name in applied._branches.names() for entry in applied.store.get(name, site)
        )
        loop(applied, 4)
    assert [len(value) for value in stored] == [3, 3, 2]
    assert torch.equal(stored[2], stored[1][[0, 2]])


def test_a_step_for_all_rows_after_one_for_two_computes_anew():
    model = edit_unet()
    plan = table(model, "ajja", "CRRR")
    assert [step.actions[0] for step in plan.canonical().steps] == list("CRRC")
    found = bare_run(model, plan, 4)
    assert torch.equal(found[3], bare_run(model, table(model, "aaaa"), 4)[3])


def test_replays_give_the_two_answers_again():
    model = edit_unet()
    plan = table(model, "ajja").replaying({2: 0.5})
    assert [step.branches for step in plan.canonical().steps] == ["all", "joint", "joint", "all"]
    loop = Bare(model)
    with festina.accelerate(model, plan) as applied:
        found = loop(applied, 4)
        assert sum(applied.report().shapes.values()) == 3
    assert torch.equal(found[2], 0.5 * found[1])
    plain = bare_run(model, table(model, "aaaa"), 4)
    assert torch.equal(found[3], plain[3])


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("branches", ["aajja", "jjajj"])
def test_price_and_bytes_are_those_predicted(seed, branches):
    model, steps = edit_unet(), len(branches)
    plan = table(model, branches) if seed is None else random_plan(model, seed, steps)
    plan = guided(plan, branches=[KINDS[letter] for letter in branches]).replaying({3: 1.0})
    loop = Bare(model)
    with festina.accelerate(model, plan) as applied:
        loop(applied, steps)
        report, record = applied.report(), next(each for each in applied.calls.values() if each.asked)
    traced = trace(model, Call(record.call.args, record.call.kwargs))
    assert report.macs == plan_macs(plan, mac_table(model, traced)).total
    assert report.peak_bytes == held_bytes(plan, model, traced, 4)


def test_the_file_and_the_key():
    model = edit_unet()
    plan = joint_conditions(model, 4, 1, 2)
    assert [step.branches for step in plan.steps] == ["all", "joint", "joint", "all"]
    text = plan.to_json()
    assert '"festina_plan": 4' in text
    assert Plan.from_json(text) == plan
    with pytest.raises(FestinaError, match="'joint', which schema 3 does not know"):
        Plan.from_json(text.replace('"festina_plan": 4', '"festina_plan": 3'))
    assert len({plan.key(), table(model, "aaaa").key(), guided(plan, branches=["conditional"] * 4).key()}) == 3
    assert guided(plan, [1.0, 0.5, 1.0, 1.0]).key() != plan.key()
    step = Step(1.0, "C", "joint", ahead=2)
    ahead = Plan("UNet2DConditionModel", plan.sites[:1], (step, *(Step(0.5 - n / 10, "R", "joint") for n in range(3))))
    assert [each.ahead for each in ahead.canonical().steps] == [0, 0, 0, 0]


@pytest.mark.parametrize(("steps", "first", "last"), [(0, 0, 0), (4, -1, 2), (4, 3, 2), (4, 0, 4)])
def test_knobs_out_of_range(steps, first, last):
    with pytest.raises(FestinaError, match="wanted"):
        joint_conditions(edit_unet(), steps, first, last)


def test_a_pipeline_that_guides_by_one_condition_is_refused():
    pipe = unets.build_sd2()
    call = unets.call_text(4, 1)
    with festina.accelerate(pipe, table(pipe.unet, "jjjj")) as applied:
        with pytest.raises(FestinaError, match="is not three rows for each picture"):
            pipe(**call)
        assert len(applied.store) == 0
        # Where it says that it does not guide there is nothing to leave out.
        assert pipe(**call | {"guidance_scale": 1.0}).images is not None


@pytest.mark.parametrize("kind", ["conditional", "merged"])
def test_other_branches_are_refused_where_there_are_three(kind):
    pipe = edit_pipeline()
    plan = guided(fora(pipe, 4, 1), branches=["all", *[kind] * 3])
    with festina.accelerate(pipe, plan), pytest.raises(FestinaError, match="the same latents three times"):
        draw(pipe)


def leaves(latents, beside, text, others=()):
    sample = torch.cat([torch.cat([latents] * 3), torch.cat(beside)], dim=1)
    return {"sample": sample, "t": torch.tensor(3), "text": torch.cat(text), **dict(others)}


def test_which_rows_have_which_conditions():
    latents, image = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    nothing, text, empty = 0 * image, torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    first, last = (image, image, nothing), (nothing, image, image)
    assert thirds_of("sample", leaves(latents, first, (text, empty, empty))).bare == 2
    assert thirds_of("sample", leaves(latents, last, (empty, empty, text))).bare == 0
    # Beside the latents, and along their width.
    wide = leaves(latents, last, (empty, empty, text))
    wide["sample"] = torch.cat([torch.cat([latents] * 3), torch.cat(last)], dim=3)
    assert thirds_of("sample", wide).bare == 0
    # The second condition may be an argument of its own.
    apart = {"sample": torch.cat([latents] * 3), "text": torch.cat([text, empty, empty]), "image": torch.cat(first)}
    assert thirds_of("sample", apart).bare == 2
    odd = {
        "one condition": leaves(latents, first, (text, text, text)),
        "perturbed": {"sample": torch.cat([latents] * 3), "text": torch.cat([empty, text, text])},
        "three texts": leaves(latents, first, (text, empty, torch.randn(2, 5, 6))),
        "nothing empty": leaves(latents, (image, image, text.new_ones(image.shape)), (text, empty, empty)),
        "both empty": leaves(latents, first, (0 * text, empty, empty)),
        "other latents": {"sample": torch.randn(6, 4, 4, 4), "text": torch.cat([text, empty, empty])},
        "two rows": {"sample": torch.cat([latents] * 2), "text": torch.cat([text, empty])},
        "a list": {"sample.0": latents},
    }
    assert [name for name, given in odd.items() if thirds_of("sample", given) is not None] == []


def test_latents_of_which_the_sampler_steps_on_all_are_pictures():
    """Of equal noise, and given just such conditions."""
    image, text, empty = torch.randn(1, 2, 4, 4), torch.randn(1, 5, 6), torch.randn(1, 5, 6)
    given = leaves(torch.randn(1, 2, 4, 4), (image, image, 0 * image), (text, empty, empty))
    layout = Layout(None, "sample")
    assert layout.thirds(given).bare == 2
    assert not layout.taken_back(torch.randn(1, 2, 4, 4))
    layout.restart()
    assert layout.thirds(given).bare == 2
    assert layout.taken_back(torch.randn(3, 2, 4, 4))
    layout.restart()
    layout.taken_back(torch.randn(3, 2, 4, 4))
    with pytest.raises(FestinaError, match="is not three rows"):
        layout.thirds(given)
