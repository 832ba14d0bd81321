"""The choice of tokens in a plan and its file, and what cannot be computed for some tokens."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from partial import AGEING, FF, IMPORTANCE, RANDOM, by_hand, drifting, partial_plan
from tiny import flux_pipeline, generate, pixart_pipeline, pixart_transformer
from torch import nn
from typer.testing import CliRunner

import festina
from festina import FestinaError, Plan, Step
from festina.cli.main import app
from festina.gates import Gate
from festina.tokens import Tokens, computed_tokens

SITES = (FF, "transformer_blocks.1.attn1", "transformer_blocks.1:residual")


def plan_of(*steps, tokens=RANDOM, sites=SITES, gate=None):
    records = []
    for index, (row, shares) in enumerate(steps):
        records.append(Step(1 - index / len(steps), row, shares=shares))
    return Plan("PixArtTransformer2DModel", sites, tuple(records), tokens=tokens, gate=gate)


def test_the_canonical_form():
    plan = plan_of(
        ("TCC", (0.5, 0.0, 0.0)), ("TRC", (0.5, 0.0, 0.0)), ("TRC", (0, 0, 0)), ("TCR", (0.5, 0.0, 0.0)), ("RRC", ())
    )
    once = plan.canonical()
    assert [step.actions for step in once.steps] == ["CCC", "TRC", "RRC", "RRR", "RRC"]
    assert [step.shares for step in once.steps] == [(), (0.5, 0.0, 0.0), (), (), ()]
    assert once.canonical() == once
    assert once.tokens == RANDOM
    none = replace(plan, steps=(*plan.steps[:1], *plan.steps[2:]))
    assert none.canonical().tokens is None
    assert none.key() == replace(none, tokens=AGEING).key()


def test_the_file_and_the_key_tell_shares_and_choices_apart():
    plan = plan_of(("CCC", ()), ("TRC", (0.25, 0.0, 0.0)), ("RRC", ()))
    other = plan_of(("CCC", ()), ("TRC", (0.5, 0.0, 0.0)), ("RRC", ()))
    keys = {each.key() for each in (plan, other, replace(plan, tokens=IMPORTANCE), replace(plan, tokens=AGEING))}
    assert len(keys) == 4
    assert Plan.from_json(plan.to_json()) == plan
    assert '"shares": [0.25, 0.0, 0.0]' in plan.to_json()
    record = json.loads(plan.to_json())
    assert record["tokens"] == {"choice": "random", "age": 0.0, "bonus": 0.0, "cell": 2, "seed": 0}
    assert [step.shares for step in plan.resample(6).steps] == [(), (), *[(0.25, 0.0, 0.0)] * 2, (), ()]
    plain = plan_of(("CCC", ()), ("RRC", ()), tokens=None)
    assert "tokens" not in plain.to_json()
    assert Plan.from_json(json.dumps({**json.loads(plain.to_json()), "tokens": None})) == plain


@pytest.mark.parametrize(
    ("steps", "tokens", "message"),
    [
        ([("CCC", (0.5, 0.0, 0.0))], RANDOM, "step 0 has shares, but no action 'T'"),
        ([("TCC", ())], RANDOM, "step 0 has 0 shares for 3 sites"),
        ([("TCC", [0.5, 0, 0])], RANDOM, "shares of step 0 are a tuple"),
        ([("TCC", (1.5, 0, 0))], RANDOM, "no number from 0 to 1"),
        ([("TCC", (0.5, 0.5, 0))], RANDOM, "a share at a site whose action is not 'T'"),
        ([("TCC", (0.5, 0, 0))], None, "nothing says which tokens"),
    ],
)
def test_plans_that_do_not_say_how_many(steps, tokens, message):
    with pytest.raises(FestinaError, match=message):
        plan_of(*steps, tokens=tokens)


@pytest.mark.parametrize(
    "values",
    [{"choice": "best"}, {"age": -1}, {"bonus": float("inf")}, {"cell": 0}, {"cell": 2.0}, {"seed": -1}, {"age": "1"}],
)
def test_choices_out_of_range(values):
    with pytest.raises(FestinaError, match="not a valid choice of tokens"):
        Tokens(**({"choice": "random"} | values))
    with pytest.raises(FestinaError, match="not a valid choice of tokens"):
        Tokens.from_record(RANDOM.to_record() | values | {"other": 1})


def test_a_file_with_shares_of_another_kind_is_refused():
    text = plan_of(("CCC", ()), ("TRC", (0.25, 0.0, 0.0))).to_json()
    for found, message in (('["a", 0, 0]', "a list of numbers"), ("0.25", "a list of numbers"), ("[1]", "1 shares")):
        with pytest.raises(FestinaError, match=message):
            Plan.from_json(text.replace("[0.25, 0.0, 0.0]", found))


def test_shares_are_rounded_down():
    assert [computed_tokens(share, 16) for share in (0.0, 0.06, 0.0625, 0.5, 0.99, 1.0)] == [0, 0, 1, 8, 15, 16]


@pytest.mark.parametrize("site", SITES[1:])
def test_only_what_looks_at_one_token_at_a_time_can_be_computed_for_some(site):
    plan = plan_of(("C", ()), ("T", (0.5,)), sites=(site,))
    with pytest.raises(FestinaError, match="cannot run the actions"):
        festina.apply(pixart_transformer(), plan)


def test_gates_do_not_go_with_it():
    gate = Gate("transformer_blocks.0:residual", "residual", "computed", 0.1)
    sites = ("transformer_blocks.1:residual", "transformer_blocks.2.ff")
    plan = plan_of(("CC", ()), ("GT", (0.0, 0.5)), sites=sites, gate=gate)
    with pytest.raises(FestinaError, match="has no gate"):
        festina.apply(pixart_transformer(), plan)


class Layers(nn.Module):
    """A cross-attention without self-attention beside it."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, hidden_states, encoder_hidden_states):
        return self.to_q(hidden_states) @ self.to_k(encoder_hidden_states).mT @ encoder_hidden_states


class Crossing(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.Module()
        block.attn2, block.ff = Layers(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.blocks = nn.ModuleList([block])

    def forward(self, hidden_states, text):
        block = self.blocks[0]
        return block.ff(block.attn2(hidden_states, encoder_hidden_states=text))


def test_a_block_without_self_attention_chooses_at_random():
    model, text = Crossing(), torch.randn(2, 3, 4)
    sites = ("blocks.0.attn2", "blocks.0.ff")
    plan = Plan("Crossing", sites, (Step(1.0, "CC"), Step(0.5, "TT", shares=(0.5, 0.5))), tokens=IMPORTANCE)
    with pytest.raises(FestinaError, match="has no self-attention"):
        festina.apply(model, plan)
    with torch.no_grad(), festina.accelerate(model, replace(plan, tokens=RANDOM)) as run:
        run.start(2)
        for _ in range(2):
            model(torch.randn(2, 6, 4), text)
            run.next_step()
        report = run.report()
    assert report.tokens == dict.fromkeys(sites, 3)
    # Queries and two products, the keys of the text whole; then two layers.
    queries, keys, products, layers = 4 * 4, 2 * 3 * 4 * 4, 2 * 4 * 3, 2 * 4 * 4
    assert report.macs_uncached == 2 * (2 * 6 * (queries + products + layers) + keys)
    assert report.macs == report.macs_uncached - 2 * 3 * (queries + products + layers)


def test_an_attention_whose_product_is_not_seen():
    denoiser = pixart_transformer()
    inputs, text = drifting(2)
    denoiser.set_attn_processor(AttnProcessor())
    with pytest.raises(FestinaError, match="0 products of all its tokens"):
        by_hand(denoiser, partial_plan(denoiser, "CT", IMPORTANCE), inputs, text)
    assert by_hand(denoiser, partial_plan(denoiser, "CT", RANDOM), inputs, text).tokens[FF] == 8


@pytest.mark.parametrize("make", [pixart_pipeline, flux_pipeline])
def test_cells_want_a_picture_of_cells(make):
    pipe = make()
    # 4 x 4 tokens are no cells of 3 x 3; the latents of FLUX are no picture but a list of tokens.
    tokens = Tokens("random", bonus=0.5, cell=3 if make is pixart_pipeline else 2)
    plan = partial_plan(pipe, "CTT", tokens)
    with festina.accelerate(pipe, plan) as run, pytest.raises(FestinaError, match="no picture of such cells"):
        generate(pipe, steps=3)
    assert not len(run.store)


def test_pictures_that_are_not_square():
    pipe = pixart_pipeline()
    plan = partial_plan(pipe, "CTT", Tokens("random", bonus=0.5))
    with festina.accelerate(pipe, plan) as run:
        generate(pipe, steps=3, height=16, width=32)
        assert run.report().tokens[FF] == 2 * 16


def test_what_a_module_returns_has_to_be_of_its_tokens():
    denoiser = pixart_transformer()
    inputs, text = drifting(2)
    original = denoiser.transformer_blocks[1].ff.forward
    denoiser.transformer_blocks[1].ff.forward = lambda *args, **kwargs: original(*args, **kwargs)[:, :4].repeat(1, 4, 1)
    with pytest.raises(FestinaError, match=r"returned a tensor \(2, 16, 16\) for 8 tokens of each row"):
        by_hand(denoiser, partial_plan(denoiser, "CT", RANDOM), inputs, text)


def test_plan_show_draws_it(tmp_path):
    path = tmp_path / "plan.json"
    plan_of(("CCC", ()), ("TRC", (0.25, 0.0, 0.0))).save(path)
    result = CliRunner().invoke(app, ["plan", "show", str(path)])
    assert result.exit_code == 0
    assert "+.# 1/3" in result.output
