"""What the inputs of many denoisers have in common: latents, text, timesteps, masks and position ids, for two rows."""

from __future__ import annotations

from typing import Any

import torch


def latents_and_text(
    *, latents: tuple[int, ...], text: tuple[int, int], timestep: float | torch.Tensor
) -> dict[str, Any]:
    """What nearly every transformer takes, drawn in this order.

    Args:
        latents: shape of the noisy latents or tokens of one row.
        text: number and width of the text tokens of one row.
        timestep: a number for both rows (see `both_rows`), or a tensor that is given as it is.
    """
    return {
        "hidden_states": torch.randn(2, *latents),
        "encoder_hidden_states": torch.randn(2, *text),
        "timestep": timestep if isinstance(timestep, torch.Tensor) else both_rows(timestep),
    }


def sample_and_text(
    *, sample: tuple[int, ...], text: tuple[int, int], timestep: float | torch.Tensor
) -> dict[str, Any]:
    """What nearly every U-Net takes: as `latents_and_text`, but a number makes a timestep without axes."""
    return {
        "sample": torch.randn(2, *sample),
        "encoder_hidden_states": torch.randn(2, *text),
        "timestep": torch.as_tensor(timestep),
    }


def both_rows(value: float) -> torch.Tensor:
    """One number for both rows, as pipelines give it: they denoise a whole batch at one noise level.

    Shape (2,); int64 for an int and float32 for a float.
    """
    return torch.tensor(value).expand(2)


def padding_mask(first: int, second: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """A mask as a tokenizer gives it: 1 for so many tokens of the first and of the second row, 0 for padding behind.

    Shape (2, tokens of the longer row).
    """
    places = torch.arange(max(first, second))
    return torch.stack([places < first, places < second]).to(dtype)


def grid_ids(height: int, width: int, modality: float = 0.0, start: int = 0) -> torch.Tensor:
    """Position ids (modality, row, column) of the tokens of one picture, shape (height * width, 3)."""
    rows = torch.arange(height, dtype=torch.float32).repeat_interleave(width) + start
    columns = torch.arange(width, dtype=torch.float32).repeat(height) + start
    return torch.stack([torch.full_like(rows, modality), rows, columns], dim=1)
