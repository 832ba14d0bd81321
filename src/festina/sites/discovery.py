"""Finding stacks, blocks and components in a denoiser's module structure, for any class.

What is looked for, and by which sign:

- an *attention* owns a linear layer that projects queries (`to_q`, `qkv`, `q_proj`, ...);
- a *feed-forward* is any other part with two linear layers or more, one reading the width that another one returns;
- a *convolution* is any other part with convolutions, such as a residual block of a U-Net;
- a *block* is an entry of a list that holds an attention; a list of blocks is a *stack*. Projections for modulation
  (one layer, or layers none of which returns the width that the first one reads) are no components.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_QUERY_WORDS = frozenset({"q", "qkv", "query", "wq", "wqkv", "qk"})

SELF, CROSS, FEED_FORWARD, CONVOLUTION = "self-attention", "cross-attention", "feed-forward", "convolution"
"""What a component does."""


@dataclass(frozen=True)
class Part:
    """A component, by its path within its block ("" if it stands alone), and what it does."""

    name: str
    role: str


@dataclass(frozen=True)
class Block:
    """An entry of a stack, or a component that stands alone in a list.

    Attributes:
        path: path of the module.
        stack: path of its list.
        parts: its components in the order of their definition; a single one named "" if it stands alone.
        streams: names of the arguments it changes, in the order in which it returns them; () if the shapes tell.
    """

    path: str
    stack: str
    parts: tuple[Part, ...]
    streams: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether it is a component without a block."""
        return self.parts[0].name == ""


def attention_like(module: nn.Module) -> bool:
    """Whether a module projects queries itself."""
    return any(
        (_is_linear(child) or isinstance(child, nn.Conv1d | nn.Conv2d))
        and _QUERY_WORDS & set(re.split(r"[_\d]+", name.lower()))
        for name, child in module.named_children()
    )


def discover(denoiser: nn.Module) -> tuple[Block, ...]:
    """The blocks of a denoiser, in the order of their definition, and the components that stand alone."""
    return tuple(_blocks_below(denoiser, ""))


def parts_of(block: nn.Module) -> tuple[Part, ...]:
    """The components of a block."""
    return tuple(_parts_below(block, ""))


def role_of(module: nn.Module, name: str) -> str:
    """What a component does, by its structure; whether an attention is a cross-attention is told by the class where it
    says so, and by the name where it does not."""
    if not any(attention_like(inner) for inner in module.modules()):
        return CONVOLUTION if any(isinstance(inner, CONVOLUTIONS) for inner in module.modules()) else FEED_FORWARD
    if "self" in name or "cross" in name:
        return CROSS if "cross" in name else SELF
    says = getattr(module, "is_cross_attention", None)
    return CROSS if (says if isinstance(says, bool) else name.endswith("attn2")) else SELF


def _blocks_below(module: nn.Module, path: str) -> Iterator[Block]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList) or _numbered(child):
            yield from _entries(child, inner)
        elif not attention_like(child):
            yield from _blocks_below(child, inner)


def _entries(entries: nn.Module, path: str) -> Iterator[Block]:
    for name, entry in entries.named_children():
        inner = f"{path}.{name}"
        if isinstance(entry, nn.ModuleList):
            yield from _entries(entry, inner)
        elif attention_like(entry):
            yield Block(inner, path, (Part("", role_of(entry, path)),))
        elif nested := list(_blocks_below(entry, inner)):
            # A level of a U-Net, or a wrapper around a shorter list.
            yield from nested
        elif (parts := parts_of(entry)) and any(part.role in (SELF, CROSS) for part in parts):
            yield Block(inner, path, parts)
        elif _convolves(entry):
            yield Block(inner, path, (Part("", CONVOLUTION),))


def _numbered(module: nn.Module) -> bool:
    """Whether a dictionary of modules is a list with gaps."""
    return isinstance(module, nn.ModuleDict) and all(name.isdigit() for name in module)


def _parts_below(module: nn.Module, path: str) -> Iterator[Part]:
    # A pair of single layers beside an attention is a feed-forward taken apart, as in FLUX's single blocks.
    layers = {name: _width(child) for name, child in module.named_children() if _is_linear(child)}
    opened = {name for name, (read, returned) in layers.items() if returned > read}
    closed = {name for name, (read, returned) in layers.items() if read > returned}
    paired = opened | closed if opened and closed and not attention_like(module) else set()
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if name in paired:
            yield Part(inner, FEED_FORWARD)
        elif attention_like(child):
            yield Part(inner, role_of(child, inner))
        elif any(attention_like(deep) for deep in child.modules()):
            yield from _parts_below(child, inner)
        elif _feeds_forward(child) or _convolves(child):
            yield Part(inner, role_of(child, inner))


def _feeds_forward(module: nn.Module) -> bool:
    if any(weight.ndim == 3 and min(weight.shape) > 1 for weight in module.parameters()):
        # Experts, whose matrices lie in one parameter.
        return True
    layers = [layer for layer in module.modules() if _is_linear(layer) or isinstance(layer, nn.Conv1d | nn.Conv2d)]
    if len(layers) < 2:
        return False
    return any(_width(layer)[1] == _width(layers[0])[0] for layer in layers[1:])


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, or one that an adapter or a quantiser put in its place."""
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def _width(layer: Any) -> tuple[int, int]:
    """Numbers that a layer reads and returns per token."""
    if _is_linear(layer):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _convolves(module: nn.Module) -> bool:
    """Whether it is made of convolutions: a residual block, a change of resolution."""
    return not isinstance(module, CONVOLUTIONS) and any(isinstance(inner, CONVOLUTIONS) for inner in module.modules())
