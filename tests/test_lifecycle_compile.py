"""torch.compile: decisions around compiled modules compile as few graphs as the untouched model, fullgraph and all."""

import pytest
import torch
import torch._dynamo
from lifecycle import all_compute, random_plan, snapshot
from tiny import flux_pipeline, generate, pixart_pipeline

import festina
from festina import FestinaError, Plan, Step
from festina.sites import block_sites

SIX = 6


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that runs what it is given and counts it."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, examples):
        self.graphs += 1
        return graph.forward


def compile_blocks(pipe, backend):
    if pipe.transformer._repeated_blocks:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    else:
        for block in pipe.transformer.transformer_blocks:
            block.compile(fullgraph=True, backend=backend)


def blocks_plan(pipe, seed=1):
    return random_plan(pipe, seed, SIX, sites=block_sites(pipe.transformer))


@pytest.mark.parametrize("kind", [pixart_pipeline, flux_pipeline])
def test_a_plan_of_blocks_compiles_no_more_than_no_plan(kind):
    uncached = Counting()
    pipe = kind()
    compile_blocks(pipe, uncached)
    generate(pipe, steps=SIX)
    torch._dynamo.reset()

    pipe, backend = kind(), Counting()
    plan, plain = blocks_plan(pipe), generate(pipe, steps=SIX)
    with festina.accelerate(pipe, plan):
        wanted = generate(pipe, steps=SIX)
    compile_blocks(pipe, backend)
    before = snapshot(pipe)
    for seed in (1, 1, 2):
        with festina.accelerate(pipe, blocks_plan(pipe, seed)):
            result = generate(pipe, steps=SIX)
        assert seed == 2 or torch.equal(result, wanted)
        assert backend.graphs == uncached.graphs > 0
    assert snapshot(pipe)[:-2] == before[:-2]
    assert torch.equal(generate(pipe, steps=SIX), plain)
    assert backend.graphs == uncached.graphs


def test_blocks_inside_a_module_of_torch_compile():
    pipe, backend = pixart_pipeline(), Counting()
    plan = blocks_plan(pipe)
    with festina.accelerate(pipe, plan):
        wanted = generate(pipe, steps=SIX)
    blocks = pipe.transformer.transformer_blocks
    for place, block in enumerate(list(blocks)):
        blocks[place] = torch.compile(block, fullgraph=True, backend=backend)
    before = snapshot(pipe)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe, steps=SIX), wanted)
    assert snapshot(pipe)[:-2] == before[:-2]
    assert backend.graphs <= len(blocks)


def test_the_line_that_the_error_offers_compiles_a_plan_of_components():
    pipe, backend = pixart_pipeline(), Counting()
    plan = random_plan(pipe, 1, SIX)
    with festina.accelerate(pipe, plan):
        wanted = generate(pipe, steps=SIX)
    compile_blocks(pipe, backend)
    before = snapshot(pipe)
    with pytest.raises(FestinaError, match=r"transformer_blocks.0 .* is compiled.*get_submodule.*compile\(\)"):
        festina.apply(pipe, plan)
    assert snapshot(pipe) == before

    pipe, denoiser = pixart_pipeline(), None
    denoiser = pipe.transformer
    for site in plan.sites:
        denoiser.get_submodule(site.partition(":")[0]).compile(backend=backend)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe, steps=SIX), wanted)
        graphs = backend.graphs
        generate(pipe, steps=SIX)
        assert backend.graphs == graphs > 0


@pytest.mark.parametrize("wrapped", [False, True], ids=["compile", "torch.compile"])
def test_a_model_compiled_as_a_whole_takes_only_the_plan_that_changes_nothing(wrapped):
    pipe, backend = pixart_pipeline(), Counting()
    plain, plan = generate(pipe), all_compute(pipe)
    other = random_plan(pipe)
    if wrapped:
        pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    else:
        pipe.transformer.compile(backend=backend)
    assert torch.equal(generate(pipe), plain)
    graphs, before = backend.graphs, snapshot(pipe)
    with pytest.raises(
        FestinaError, match=r"compiled as a whole.*for block in denoiser.transformer_blocks: block.comp"
    ):
        festina.apply(pipe, other)
    assert snapshot(pipe) == before
    with festina.accelerate(pipe, plan) as run:
        assert torch.equal(generate(pipe), plain)
        assert run.clock.calls == 4
    assert backend.graphs == graphs > 0
    assert snapshot(pipe)[:-2] == before[:-2]


@pytest.mark.parametrize("where", ["block", "whole", "wrapped"])
def test_compiling_after_applying_is_noticed(where):
    pipe, backend = flux_pipeline(), Counting()
    plan = blocks_plan(pipe)
    festina.apply(pipe, plan)
    wanted = generate(pipe, steps=SIX)
    if where == "block":
        compile_blocks(pipe, backend)
    elif where == "whole":
        pipe.transformer.compile(backend=backend)
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    with pytest.raises(FestinaError, match="compiled after the plan was applied"):
        generate(pipe, steps=SIX)
    assert backend.graphs == 0
    festina.remove(pipe)
    if where == "block":
        with festina.accelerate(pipe, plan):
            assert torch.equal(generate(pipe, steps=SIX), wanted)


def test_blocks_put_into_modules_of_torch_compile_after_applying_are_followed():
    pipe, backend = pixart_pipeline(), Counting()
    plan = blocks_plan(pipe)
    blocks = pipe.transformer.transformer_blocks
    with festina.accelerate(pipe, plan):
        wanted = generate(pipe, steps=SIX)
        inner = list(blocks)
        for place, block in enumerate(inner):
            blocks[place] = torch.compile(block, fullgraph=True, backend=backend)
        assert torch.equal(generate(pipe, steps=SIX), wanted)
        assert not any("forward" in vars(block) for block in inner)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe, steps=SIX), wanted)


def test_blocks_that_two_sites_wrap_are_followed():
    pipe, backend = pixart_pipeline(), Counting()
    sites = ("transformer_blocks.0..1:residual", "transformer_blocks.0:residual", "transformer_blocks.1:residual")
    rows = ["CCC", "CRC", "RCC", "CCR", "CRC", "CCC"]
    plan = Plan("PixArtTransformer2DModel", sites, tuple(Step(1 - i / 6, row) for i, row in enumerate(rows)))
    blocks = pipe.transformer.transformer_blocks
    with festina.accelerate(pipe, plan):
        wanted = generate(pipe, steps=SIX)
        inner = list(blocks)
        blocks[0] = torch.compile(inner[0], fullgraph=True, backend=backend)
        assert torch.equal(generate(pipe, steps=SIX), wanted)
        assert "forward" not in vars(inner[0])
    assert not any("forward" in vars(block) for block in inner)
    assert backend.graphs > 0


def test_components_inside_modules_of_torch_compile_are_noticed():
    pipe, backend = pixart_pipeline(), Counting()
    festina.apply(pipe, random_plan(pipe, 1, SIX))
    blocks = pipe.transformer.transformer_blocks
    blocks[1] = torch.compile(blocks[1], backend=backend)
    with pytest.raises(FestinaError, match=r"transformer_blocks.1 .*is compiled, and transformer_blocks.1"):
        generate(pipe, steps=SIX)
    festina.remove(pipe)
    assert backend.graphs == 0


def test_compiling_again_takes_the_plan_off_and_is_noticed():
    pipe, backend = flux_pipeline(), Counting()
    compile_blocks(pipe, backend)
    plan = blocks_plan(pipe)
    festina.apply(pipe, plan)
    wanted = generate(pipe, steps=SIX)
    compile_blocks(pipe, backend)
    with pytest.raises(FestinaError, match="compiled after the plan was applied"):
        generate(pipe, steps=SIX)
    festina.remove(pipe)
    with festina.accelerate(pipe, plan):
        assert torch.equal(generate(pipe, steps=SIX), wanted)
