"""The grammar of site names, without any model."""

import pytest

from festina import FestinaError
from festina.names import parse
from festina.plan import enclosing_sites


@pytest.mark.parametrize(
    ("name", "kind", "first", "last"),
    [
        ("transformer_blocks.3.attn1", "output", "transformer_blocks.3.attn1", "transformer_blocks.3.attn1"),
        ("transformer_blocks.3:residual", "residual", "transformer_blocks.3", "transformer_blocks.3"),
        ("transformer_blocks.3..9:residual", "residual", "transformer_blocks.3", "transformer_blocks.9"),
        ("mid_block:feature", "feature", "mid_block", "mid_block"),
        ("down_blocks.1..up_blocks.2:feature", "feature", "down_blocks.1", "up_blocks.2"),
    ],
)
def test_names_are_taken_apart(name, kind, first, last):
    found = parse(name)
    assert (found.text, found.kind, found.first, found.last) == (name, kind, first, last)


@pytest.mark.parametrize(
    "name",
    [
        ":residual",
        "blocks.1:output",
        "blocks.1:else",
        "blocks.1..3",
        "blocks.3..1:residual",
        "blocks.3..3:residual",
        "blocks..3:residual",
        "blocks.1..:residual",
        "up_blocks.0..down_blocks.1:feature",
        "blocks.1..blocks.2:feature",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(FestinaError, match="is no site name"):
        parse(name)


def test_what_lies_within_what():
    run = parse("transformer_blocks.3..10:residual")
    assert run.encloses(parse("transformer_blocks.3.attn1"))
    assert run.encloses(parse("transformer_blocks.10:residual"))
    assert run.encloses(parse("transformer_blocks.4..9:residual"))
    for outside in ("transformer_blocks.2.ff", "transformer_blocks.11:residual", "single_transformer_blocks.4.attn"):
        assert not run.encloses(parse(outside))
        assert not run.overlaps(parse(outside))
    assert not run.encloses(parse("transformer_blocks.3..10:residual"))
    assert run.overlaps(parse("transformer_blocks.9..12:residual"))
    below = parse("down_blocks.1..up_blocks.1:feature")
    inside = ("mid_block:feature", "down_blocks.2.attentions.0.transformer_blocks.0.attn1", "up_blocks.0.resnets.1")
    assert all(below.encloses(parse(name)) for name in inside)
    assert not any(below.encloses(parse(name)) for name in ("down_blocks.0.resnets.1", "up_blocks.2:feature"))
    # Block 1 is no prefix of block 10.
    assert not parse("blocks.1:residual").encloses(parse("blocks.10.attn"))


def test_enclosing_sites_of_a_plan():
    names = ("blocks.0..2:residual", "blocks.1:residual", "blocks.1.attn", "blocks.3.attn", "norm")
    assert enclosing_sites(names) == [[], [0], [0, 1], [], []]
