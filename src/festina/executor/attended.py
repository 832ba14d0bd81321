"""How much each token is attended to: the column sums of an attention's map, seen beside the attention itself.

The product of queries and keys is seen as torch is given it, after norms and positions, whatever the class of the
attention. It is formed once more, head by head, in the steps in which the attention is computed and a later step
chooses tokens by it. That costs one QK^T more than the attention itself, and the memory of one head's map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from festina.errors import FestinaError


@dataclass(frozen=True)
class Product:
    """The product of an attention: queries and keys, (rows, heads, tokens, width), and what is done to it.

    Several heads of queries may share one of keys.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float | None


class Watch(TorchFunctionMode):
    """Sees the product of an attention as torch is given it, and how its tokens were put together before."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.joined: list[list[int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
            given = dict(zip(names, args, strict=False)) | kwargs
            product = Product(given["query"], given["key"], given.get("attn_mask"), given.get("scale"))
            query, key = product.query.shape, product.key.shape
            squared = len(query) == len(key) == 4 and (query[0], *query[2:]) == (key[0], *key[2:])
            self.products += [product] if squared and not given.get("is_causal") else []
        elif func in (torch.cat, torch.concat):
            parts = args[0] if args else kwargs["tensors"]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            # Along the last dimension it is no tokens that are put together.
            if parts[0].ndim and dim % parts[0].ndim != parts[0].ndim - 1:
                self.joined.append([part.shape[dim] for part in parts])
        return func(*args, **kwargs)

    def attended(self, name: str) -> tuple[Tensor, ...]:
        """How much each token is attended to, a tensor (rows, tokens) for each stream of tokens.

        Raises:
            FestinaError: it was not one product of all tokens with each other.
        """
        if len(self.products) != 1:
            raise FestinaError(
                f"tokens are to be chosen by how much they are attended to in {name}, but it makes "
                f"{len(self.products)} products of all its tokens by torch's scaled_dot_product_attention; wanted one. "
                f"Choose them at random, or set the attention back to torch's own."
            )
        total = column_sums(self.products[0])
        sizes = next((parts for parts in self.joined if sum(parts) == total.shape[1]), [total.shape[1]])
        return tuple(total.split(sizes, dim=1))


def column_sums(product: Product) -> Tensor:
    """Column sums of the map averaged over heads, float32 (rows, tokens): ToCa's first score."""
    query, key = product.query, product.key
    heads = query.shape[1]
    scale = query.shape[-1] ** -0.5 if product.scale is None else product.scale
    total = query.new_zeros(query.shape[0], key.shape[2], dtype=torch.float32)
    for head in range(heads):
        shared = key[:, head * key.shape[1] // heads]
        scores = (query[:, head] @ shared.transpose(1, 2)).float() * scale
        if product.mask is not None:
            mask = product.mask.expand(*query.shape[:2], *scores.shape[1:])[:, head]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        total += scores.softmax(dim=2).nan_to_num().sum(dim=1)
    return total / heads
