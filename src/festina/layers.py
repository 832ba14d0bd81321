"""Facts about single layers, for `festina.cost`: what a layer multiplies, which tokens it sees, how much it returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from festina.errors import FestinaError
from festina.sites import Component, Site, component_sites, site_module

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_ADDED = frozenset({"scale_shift_table"})
"""Matrices of parameters that are added to activations, not multiplied with them."""

_ON_TEXT = frozenset({"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"})
_ON_ATTENDED = frozenset({"to_k", "to_v"})
_ON_TOKENS = frozenset({"to_q", "to_out"})

_FUSED = frozenset({"to_qkv", "to_kv", "to_added_qkv"})
"""Projections that diffusers fuses on request. Their parts stay in the module and are counted in their stead."""


@dataclass(frozen=True)
class Shape:
    """Size of one denoiser call.

    Attributes:
        batch: rows of the call, at least 1: two per picture under batched classifier-free guidance.
        image_tokens: tokens of a picture, at least 1.
        text_tokens: tokens of a caption, 0 without one.
    """

    batch: int
    image_tokens: int
    text_tokens: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.image_tokens < 1 or self.text_tokens < 0:
            raise FestinaError(f"{self} is no denoiser call; wanted at least one row and one image token.")

    def tokens(self, stream: str) -> int:
        """Tokens per row of a stream: "image", "text", "joint" (both) or "vector" (one).

        Raises:
            FestinaError: there is no such stream.
        """
        streams = {
            "image": self.image_tokens,
            "text": self.text_tokens,
            "joint": self.image_tokens + self.text_tokens,
            "vector": 1,
        }
        if stream not in streams:
            raise FestinaError(f"a site row names the stream {stream!r}; wanted one of {', '.join(streams)}.")
        return streams[stream]


def weights_per_token(path: str, module: nn.Module) -> int:
    """Multiply-accumulates per token of a module's own weights.

    Raises:
        FestinaError: it has a matrix of a kind there is no rule for.
    """
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    if isinstance(module, _CONVOLUTIONS):
        return module.weight.numel()
    matrices = {name for name, weight in module.named_parameters(recurse=False) if weight.ndim > 1}
    if isinstance(module, nn.Embedding) or matrices <= _ADDED:
        return 0
    raise FestinaError(f"no closed form for {path!r} ({type(module).__name__}): its weights are in no linear layer.")


def attention_stream(path: str, component: Component, module: nn.Module, within: str) -> str:
    """The stream a layer of an attention sees, "" if the layer does not run.

    Args:
        path: path of the layer in the denoiser.
        component: what the site row says of the attention.
        module: the attention.
        within: path of the layer in the attention.

    Raises:
        FestinaError: the layer is none that is known.
    """
    layer = within.partition(".")[0]
    if layer in _FUSED:
        return ""
    if layer in _ON_TEXT:
        return "text"
    if layer in _ON_ATTENDED | _ON_TOKENS:
        if _is_double(module):
            return "image"
        return component.attends if layer in _ON_ATTENDED else component.tokens
    raise FestinaError(f"no rule for the layer {path!r} of an attention, so it cannot be priced.")


def _is_double(attention: nn.Module) -> bool:
    """Whether an attention over text and image has projections of its own for the text."""
    return getattr(attention, "add_q_proj", None) is not None


def attention_products(site: Site, denoiser: nn.Module, shape: Shape) -> int:
    """Multiply-accumulates of QK^T and AV in a component: each rows x queries x keys x width. 0 without attention.

    Raises:
        FestinaError: the attention has no query projection.
    """
    component = site.component
    if component is None or not component.attends:
        return 0
    pairs = shape.batch * shape.tokens(component.tokens) * shape.tokens(component.attends)
    return 2 * pairs * _query_width(site_module(denoiser, site), site.path)


def stored_numbers(site: Site, denoiser: nn.Module, shape: Shape) -> int:
    """Numbers in the value a site stores: the output of a component, or a change of each stream of a block.

    Raises:
        FestinaError: the width of the output cannot be read off the module's layers.
    """
    component, module = site.component, site_module(denoiser, site)
    if component is None:
        last = [other for other in component_sites(denoiser) if other.path.startswith(f"{site.path}.")][-1]
        stream = "joint" if len(site.streams) > 1 else "image"
        return shape.batch * shape.tokens(stream) * _width(site_module(denoiser, last), last.path)
    if component.attends and not hasattr(module, "to_out"):
        width = _query_width(module, site.path)
    else:
        width = _width(getattr(module, "to_out", module), site.path)
    return shape.batch * shape.tokens(component.tokens) * width


def _query_width(attention: nn.Module, path: str) -> int:
    query = getattr(attention, "to_q", None)
    if not isinstance(query, nn.Module):
        raise FestinaError(f"the attention {path!r} has no query projection 'to_q', so it cannot be priced.")
    return _width(query, path)


def _width(module: nn.Module, path: str) -> int:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise FestinaError(f"{path!r} has no linear layer, so the size of its output is not known.")
    return layers[-1].out_features
