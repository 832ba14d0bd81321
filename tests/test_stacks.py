"""The stack of a transformer as runs: which blocks they hold, and that serving them leaves nothing of it to compute."""

import pytest
import torch
from denoisers.all_classes import CLASSES
from tiny import flux_transformer, generate, pixart_pipeline, pixart_transformer

import festina
from festina import FestinaError, Plan, Step
from festina.sites import block_sites, first_attention, first_blocks, resolve, site_tree, stack_runs


def test_runs_go_through_all_lists_in_order():
    flux = flux_transformer(2, 3)
    assert stack_runs(pixart_transformer(4)) == ("transformer_blocks.0..3:residual",)
    assert stack_runs(flux) == ("transformer_blocks.0..1:residual", "single_transformer_blocks.0..2:residual")
    assert stack_runs(flux, 1, 1) == ("transformer_blocks.1:residual", "single_transformer_blocks.0..1:residual")
    assert stack_runs(flux, 2) == ("single_transformer_blocks.0..2:residual",)
    assert stack_runs(flux, 0, 4) == ("transformer_blocks.0:residual",)


def test_what_gates_look_at():
    flux = flux_transformer(2, 3)
    assert (first_blocks(flux), first_blocks(flux, 2)) == (
        "transformer_blocks.0:residual",
        "transformer_blocks.0..1:residual",
    )
    assert first_attention(flux) == "transformer_blocks.0.attn"
    assert first_attention(pixart_transformer()) == "transformer_blocks.0.attn1"
    with pytest.raises(FestinaError, match="lie in two lists"):
        first_blocks(flux, 3)


def test_blocks_that_take_turns_are_runs_of_their_own():
    latte = CLASSES["LatteTransformer3DModel"].fresh()
    count = len(latte.transformer_blocks)
    names = [
        f"{stack}.{n}:residual" for n in range(count) for stack in ("transformer_blocks", "temporal_transformer_blocks")
    ]
    assert stack_runs(latte) == tuple(names)
    assert stack_runs(latte, 1) == tuple(names[2:])
    assert first_blocks(latte) == "transformer_blocks.0:residual"


def test_too_much_left_out():
    for arguments in ((3,), (1, 2), (-1,)):
        with pytest.raises(FestinaError, match="blocks left out of a stack of 3"):
            stack_runs(pixart_transformer(3), *arguments)
    for count in (0, 3):
        with pytest.raises(FestinaError, match="wanted 1 to 2"):
            first_blocks(pixart_transformer(3), count)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_stack_that_resolves_or_says_that_it_has_none(name):
    denoiser = CLASSES[name].fresh()
    regions = site_tree(denoiser).regions
    if regions or name.startswith("StableCascadeUNet"):
        with pytest.raises(FestinaError, match="levels of a U-Net" if regions else "no stack of blocks"):
            stack_runs(denoiser)
        return
    runs = stack_runs(denoiser)
    spanned = {path for site in resolve(denoiser, runs) for path in site.paths}
    blocks = {site.path for site in block_sites(denoiser)}
    beside = blocks - spanned
    assert spanned
    # What is left out prepares text or control; the picture's own lists are all there.
    assert not {path.partition(".")[0] for path in beside} & {path.partition(".")[0] for path in spanned}


def test_a_served_stack_computes_no_block():
    pipe = pixart_pipeline()
    ran = []
    handle = pipe.transformer.transformer_blocks[1].attn1.to_q.register_forward_hook(lambda *_: ran.append(1))
    steps = tuple(Step(1 - n / 4, "CRRR"[n]) for n in range(4))
    with festina.accelerate(pipe, Plan("PixArtTransformer2DModel", stack_runs(pipe.transformer), steps)):
        pictures = generate(pipe)
    handle.remove()
    assert len(ran) == 1
    assert bool(torch.isfinite(pictures).all())
