"""Computing a site for some of its tokens: which ones, and what is served."""

from dataclasses import replace

import pytest
import torch
from partial import AGEING, CROSS, FF, IMPORTANCE, RANDOM, by_hand, drifting, partial_plan
from tiny import dit_pipeline, flux_pipeline, generate, pixart_pipeline, pixart_transformer
from torch.nn import functional

import festina
from festina.executor.attended import Watch
from festina.executor.tokens import with_bonus
from festina.tokens import Tokens

MAKERS = (pixart_pipeline, dit_pipeline, flux_pipeline)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("tokens", [RANDOM, AGEING], ids=["random", "importance"])
def test_all_tokens_are_the_untouched_picture_to_the_bit(make, tokens):
    """Chosen tokens are taken in their order, so that a share of 1 gives a module the tensor it would have had."""
    pipe = make()
    untouched = generate(pipe, steps=4)
    with festina.accelerate(pipe, partial_plan(pipe, "CTTT", tokens, share=1.0, others="C")) as run:
        assert torch.equal(generate(pipe, steps=4), untouched)
        assert set(run.report().partial.values()) == {3}


@pytest.mark.parametrize("make", MAKERS)
def test_no_tokens_are_a_reused_value(make):
    pipe = make()
    reusing, none = partial_plan(pipe, "CRRR", None), partial_plan(pipe, "CTTT", AGEING, share=0.0)
    assert none.key() == reusing.key()
    # A share too small for a single token computes none either, in a plan of its own.
    few = partial_plan(pipe, "CTTT", AGEING, share=0.001)
    assert few.key() != reusing.key()
    with festina.accelerate(pipe, reusing):
        wanted = generate(pipe, steps=4)
    with festina.accelerate(pipe, few) as run:
        assert torch.equal(generate(pipe, steps=4), wanted)
        assert set(run.report().tokens.values()) == {0}


class Reference:
    """What one feed-forward and one cross-attention of a PixArt shall do, worked out token by token.

    It is told by hooks what each is given, whole, in each step, and by the attention's input what the map is.
    """

    def __init__(self, denoiser, tokens, share):
        self.tokens, self.share = tokens, share
        self.block = denoiser.transformer_blocks[1]
        self.parts = {FF: self.block.ff, CROSS: self.block.attn2}
        self.given, self.seen, self.returned, self.text = {}, {}, {}, []
        self.handles = [self.block.attn1.register_forward_pre_hook(self._keep("map"), with_kwargs=True)]
        for name, part in self.parts.items():
            inner = part.net[0] if name == FF else part.to_q
            self.handles.append(part.register_forward_pre_hook(self._keep(name), with_kwargs=True))
            self.handles.append(inner.register_forward_pre_hook(self._keep(f"{name} inner"), with_kwargs=True))
            self.handles.append(part.register_forward_hook(lambda m, a, out, name=name: self._put(name, out)))

    def _keep(self, name):
        def hook(module, args, kwargs):
            target = self.seen if name.endswith("inner") else self.given
            target.setdefault(name.removesuffix(" inner"), []).append(args[0] if args else kwargs["hidden_states"])
            if name == CROSS:
                self.text.append(kwargs["encoder_hidden_states"])

        return hook

    def _put(self, name, out):
        self.returned.setdefault(name, []).append(out)

    def importance(self, step):
        """Column sums of the averaged map, divided by their length, in plain steps."""
        attention, x = self.block.attn1, self.given["map"][step]
        heads = [
            layer(x).unflatten(2, (attention.heads, -1)).transpose(1, 2) for layer in (attention.to_q, attention.to_k)
        ]
        scores = heads[0] @ heads[1].transpose(2, 3) / heads[0].shape[-1] ** 0.5
        sums = scores.softmax(3).mean(1).sum(1)
        return sums / sums.norm(dim=1, keepdim=True)

    def check(self, letters):
        for name, part in self.parts.items():
            value, ages, last, inner = None, {}, 0, iter(self.seen[name])
            for step, letter in enumerate(letters):
                out = self.returned[name][step]
                if letter == "C":
                    value, last, ages = out, step, {}
                    next(inner)
                elif letter == "T":
                    chosen = self.chosen(last, ages, len(out))
                    whole = self.given[name][step]
                    some = torch.stack([whole[row, places] for row, places in enumerate(chosen)])
                    assert torch.equal(next(inner), some), f"{name} in step {step}"
                    fresh = part(some) if name == FF else part(some, encoder_hidden_states=self.text[step])
                    value = value.clone()
                    for row, places in enumerate(chosen):
                        value[row, places] = fresh[row]
                    torch.testing.assert_close(out, value)
                assert torch.equal(out, value) or letter == "T"
                value = out
            assert next(inner, None) is None

    def chosen(self, last, ages, rows):
        """Places in ascending order, per row; `ages` is brought up to date."""
        importance, found = self.importance(last), []
        for row in range(rows):
            scores = [importance[row, n].item() + self.tokens.age * ages.get((row, n), 0) for n in range(16)]
            if self.tokens.bonus:
                for corner in (0, 2, 8, 10):
                    best = max((corner, corner + 1, corner + 4, corner + 5), key=lambda n: scores[n])
                    scores[best] *= 1 + self.tokens.bonus
            places = sorted(sorted(range(16), key=lambda n: -scores[n])[: int(self.share * 16)])
            for n in range(16):
                ages[row, n] = 0 if n in places else ages.get((row, n), 0) + 1
            found.append(places)
        return found


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize(
    "tokens",
    [IMPORTANCE, AGEING, Tokens("importance", bonus=0.6), Tokens("importance", age=0.05, bonus=0.3)],
    ids=["importance", "age", "bonus", "both"],
)
def test_tokens_are_those_of_a_reference(tokens, share):
    denoiser, letters = pixart_transformer(), "CTTRTCTTT"
    inputs, text = drifting(len(letters))
    plan = partial_plan(denoiser, letters, tokens, share)
    with torch.no_grad():
        reference = Reference(denoiser, tokens, share)
        report = by_hand(denoiser, plan, inputs, text, handles=reference.handles)
        reference.check(letters)
    assert report.computed[FF] == 2
    assert report.served[FF] == 1
    assert report.partial[FF] == 6
    assert report.tokens[FF] == 6 * int(share * 16)


def test_random_tokens_are_others_in_each_step_and_block_and_the_same_for_all_rows():
    denoiser, letters = pixart_transformer(), "CTTT"
    inputs, text = drifting(len(letters))

    def choices(tokens):
        found, handles = {}, []
        for number, block in enumerate(denoiser.transformer_blocks):
            for name, outer, inner in (("ff", block.ff, block.ff.net[0]), ("attn2", block.attn2, block.attn2.to_q)):
                whole = []
                handles.append(
                    outer.register_forward_pre_hook(
                        lambda m, args, kwargs, whole=whole: whole.append(args[0]), with_kwargs=True
                    )
                )

                def look(module, args, key=(number, name), whole=whole):
                    rows = [[(whole[-1][r] == t).all(1).nonzero().item() for t in args[0][r]] for r in range(2)]
                    assert rows[0] == rows[1]
                    found.setdefault(key, []).append(tuple(rows[0]))

                handles.append(inner.register_forward_pre_hook(look))
        by_hand(denoiser, partial_plan(denoiser, letters, tokens, 0.25), inputs, text, handles=handles)
        return {key: steps[1:] for key, steps in found.items()}

    first, other = choices(RANDOM), choices(replace(RANDOM, seed=1))
    assert first == choices(RANDOM)
    assert first != other
    assert all(len(places) == 4 and len(set(places)) == 4 for steps in first.values() for places in steps)
    # The components of a block compute the same tokens; otherwise nine choices of 4 in 16 are nine.
    assert [first[number, "ff"] for number in range(3)] == [first[number, "attn2"] for number in range(3)]
    assert len({places for number in range(3) for places in first[number, "ff"]}) == 9


def test_values_that_were_handed_out_stay_as_they_were():
    denoiser = pixart_transformer()
    inputs, text = drifting(5)
    handed = []
    handle = denoiser.transformer_blocks[1].ff.register_forward_hook(
        lambda module, args, out: handed.append((out, out.clone()))
    )
    by_hand(denoiser, partial_plan(denoiser, "CTTTR", IMPORTANCE), inputs, text, handles=[handle])
    assert len(handed) == 5
    assert all(torch.equal(out, copy) for out, copy in handed)
    assert len({out.data_ptr() for out, _ in handed[:4]}) == 4


@pytest.mark.parametrize("tokens", [RANDOM, replace(AGEING, bonus=0.5)], ids=["random", "importance"])
def test_two_pictures_are_as_two_runs_of_one(tokens):
    pipe = pixart_pipeline()
    words = ["a red circle", "a blue star on a grey background"]
    with festina.accelerate(pipe, partial_plan(pipe, "CTTCTT", tokens)):
        both = generate(pipe, words, steps=6)
        alone = [generate(pipe, [word], steps=6, seed=seed) for seed, word in enumerate(words)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_run_that_begins_midway_computes_before_it_chooses():
    denoiser = pixart_transformer()
    inputs, text = drifting(4)
    report = by_hand(denoiser, partial_plan(denoiser, "CCTTTT", AGEING), inputs, text, begin=2)
    assert (report.computed[FF], report.partial[FF], report.tokens[FF]) == (1, 3, 3 * 8)


def test_joint_attention_tells_its_streams_apart():
    generator = torch.Generator().manual_seed(1)
    text, image = (torch.randn(2, 3, count, 8, generator=generator) for count in (5, 7))
    mask = torch.rand(2, 1, 12, 12, generator=generator) > 0.3
    with Watch() as watch:
        both = torch.cat([text, image], dim=2)
        turned = torch.cat([both[..., 4:], both[..., :4]], dim=-1)
        functional.scaled_dot_product_attention(both, turned, both, attn_mask=mask, scale=0.2)
    scores = (both @ turned.transpose(2, 3) * 0.2).masked_fill(~mask, -torch.inf).softmax(3)
    sums = scores.mean(1).sum(1)
    found = watch.attended("a toy")
    assert [stream.shape[1] for stream in found] == [5, 7]
    torch.testing.assert_close(torch.cat(found, 1), sums)


def test_the_bonus_goes_to_the_best_of_each_cell():
    scores = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8]])
    assert with_bonus(scores, (1, 2), 2, 0.5).tolist() == [[1, 2, 3, 4, 5, 9, 7, 12]]
    assert with_bonus(scores, (2, 4), 1, 1.0).tolist() == (2 * scores).tolist()
