"""Tracing a call: hand-worked counts, sizes, order, and models that do odd things."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from festina import FestinaError
from festina.trace import Call, Macs, Returned, trace


class Toy(nn.Module):
    """Two products with weights, one of activations, a layer that runs twice and one that never runs."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 10)
        self.twice = nn.Linear(10, 10, bias=False)
        self.never = nn.Linear(10, 10)

    def forward(self, x, scale=None):
        wide = self.inner(x)
        scores = wide @ wide.transpose(1, 2)
        return self.twice(self.twice(scores @ wide))


def test_counts_worked_by_hand():
    found = trace(Toy(), Call((torch.zeros(2, 5, 6),)))
    inner, twice, products = 2 * 5 * 6 * 10, 2 * 5 * 10 * 10, 2 * (5 * 5 * 10)
    assert found.macs == Macs(inner + 2 * twice, 2 * products)
    assert found.within == {"inner": Macs(inner, 0), "twice": Macs(2 * twice, 0)}
    assert found.visits == ("inner", "twice", "twice")
    assert found.returned["twice"] == ((Returned((2, 5, 10), 0),), (Returned((2, 5, 10), 0),))


def test_attention_and_convolution():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

        def forward(self, x):
            tokens = self.conv(x).flatten(2).transpose(1, 2).view(2, -1, 2, 4).transpose(1, 2)
            return functional.scaled_dot_product_attention(tokens, tokens[:, :, :7], tokens[:, :, :7])

    found = trace(Both(), Call((torch.zeros(2, 3, 8, 8),)))
    assert found.macs == Macs(2 * 16 * 8 * 3 * 9, 2 * 2 * 16 * 7 * (4 + 4))


def test_the_meta_device_needs_no_weights():
    with torch.device("meta"):
        model = Toy()
    assert (
        trace(model, Call((torch.zeros(2, 5, 6, device="meta"),))).macs
        == trace(Toy(), Call((torch.zeros(2, 5, 6),))).macs
    )


def test_a_tensor_returned_twice_is_one():
    class Twice(nn.Module):
        def forward(self, x):
            return x, (x, x + 1)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = Twice()

        def forward(self, x):
            return self.inside(x)[0]

    found = trace(Around(), Call((torch.zeros(3),)))
    assert found.returned["inside"] == ((Returned((3,), 0), Returned((3,), 0), Returned((3,), 2)),)


def test_values_that_decide_shapes_are_real():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)

        def forward(self, x, mask):
            return self.inner(x[mask])

    mask = torch.tensor([True, False, True, True])
    assert trace(Masked(), Call((), {"x": torch.zeros(4, 4), "mask": mask})).macs == Macs(3 * 16, 0)


def test_nothing_is_left_behind_and_nothing_is_computed():
    model = Toy()
    x = torch.randn(2, 5, 6)
    before = model(x)
    attributes = [dict(vars(module)) for module in model.modules()]
    trace(model, Call((x,)))
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(model(x), before)


def test_a_call_that_fails_is_told_with_the_module():
    with pytest.raises(FestinaError, match=r"Toy cannot be priced.*fails in inner"):
        trace(Toy(), Call((torch.zeros(2, 5, 7),)))


def test_signatures_tell_shapes_apart():
    one = Call((torch.zeros(2, 3),), {"more": {"text": torch.zeros(4)}, "flag": True})
    assert one.signature == ((2, 3), (4,))
