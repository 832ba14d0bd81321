"""Calls of the three classes that the tests of costs use, from numbers of rows and tokens."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import nn

from festina.cost import Call, CallTrace, MacTable, mac_table, trace


class Shape(NamedTuple):
    """Rows, image tokens per row and text tokens per row of a call."""

    batch: int
    image: int
    text: int


def arguments(model: Any, shape: Shape) -> dict[str, Any]:
    """Arguments of a call of a PixArt, DiT or FLUX transformer, zeros where the model is."""
    device, config = next(model.parameters()).device, model.config
    kind, batch = type(model).__name__, shape.batch
    if kind == "FluxTransformer2DModel":
        given = {
            "hidden_states": torch.zeros(batch, shape.image, config.in_channels),
            "encoder_hidden_states": torch.zeros(batch, shape.text, config.joint_attention_dim),
            "pooled_projections": torch.zeros(batch, config.pooled_projection_dim),
            "timestep": torch.zeros(batch),
            "img_ids": torch.zeros(shape.image, 3),
            "txt_ids": torch.zeros(shape.text, 3),
        }
        if config.guidance_embeds:
            given["guidance"] = torch.zeros(batch)
    else:
        side = round(shape.image**0.5) * config.patch_size
        given = {"hidden_states": torch.zeros(batch, config.in_channels, side, side), "timestep": torch.zeros(batch)}
        if kind == "DiTTransformer2DModel":
            given |= {"class_labels": torch.zeros(batch, dtype=torch.long), "timestep": torch.zeros(batch).long()}
        else:
            given["encoder_hidden_states"] = torch.zeros(batch, shape.text, config.caption_channels)
    moved = {name: value.to(device) for name, value in given.items()}
    if kind == "PixArtTransformer2DModel":
        return {**moved, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return moved


@functools.lru_cache(maxsize=8)
def traced(model: nn.Module, shape: Shape) -> CallTrace:
    """A trace of such a call."""
    return trace(model, Call((), arguments(model, shape)))


def prices(model: nn.Module, shape: Shape, names: tuple[str, ...] = ()) -> MacTable:
    """The prices of such a call."""
    return mac_table(model, traced(model, shape), names)
