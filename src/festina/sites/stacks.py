"""The stack: the blocks that carry the picture from one end of a transformer to the other, as runs that can be served.

Methods that serve a whole transformer at once, or all but its first or last blocks, name these runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from festina.errors import FestinaError
from festina.names import RESIDUAL
from festina.sites.discovery import Block
from festina.sites.tree import site_tree

_BESIDE = ("refiner", "text", "txt", "context", "caption", "cond", "vace", "fac", "perceiver", "pair", "audio")
"""Parts of the names of lists that prepare the text or a control beside the picture."""

_BETWEEN = "temporal_"
"""Beginning of the name of a list whose blocks run in turn with those of another one."""


def stack_runs(denoiser: nn.Module, first: int = 0, last: int = 0) -> tuple[str, ...]:
    """Names of the runs of blocks that hold the stack, in the order in which they run.

    One run per list; where the blocks of two lists take turns, one per block. Serving all of them leaves out the
    whole stack.

    Args:
        denoiser: a transformer.
        first, last: blocks at the beginning and at the end that are left out of the runs; of blocks that take turns,
            groups of them.

    Raises:
        FestinaError: the denoiser is no transformer with lists of blocks, or nothing is left.
    """
    rounds = _rounds(denoiser)
    if first < 0 or last < 0 or first + last >= len(rounds):
        raise FestinaError(
            f"{first} first and {last} last blocks left out of a stack of {len(rounds)}; wanted at least one to remain."
        )
    return _runs([block for group in rounds[first : len(rounds) - last] for block in group])


def first_blocks(denoiser: nn.Module, count: int = 1) -> str:
    """Name of the run of the first `count` blocks of the stack, what gates look at. Raises like `stack_runs`.

    Of blocks that take turns, that of the first list.
    """
    rounds = _rounds(denoiser)
    if not 1 <= count < len(rounds):
        raise FestinaError(f"the first {count} blocks of a stack of {len(rounds)}; wanted 1 to {len(rounds) - 1}.")
    (run, *others) = _runs([group[0] for group in rounds[:count]])
    if others:
        raise FestinaError(f"the first {count} blocks lie in two lists ({run}, {others[0]}); take fewer of them.")
    return run


def first_attention(denoiser: nn.Module) -> str:
    """Name of the first attention of the stack: what it is given is the modulated input of the first block.

    Raises:
        FestinaError: as `stack_runs`, or the first block has none.
    """
    block = _rounds(denoiser)[0][0]
    for part in block.parts:
        if part.role == "self-attention":
            return f"{block.path}.{part.name}"
    raise FestinaError(f"{block.path} of this {type(denoiser).__name__} has no self-attention to look at.")


def _rounds(denoiser: nn.Module) -> list[tuple[Block, ...]]:
    """The blocks of the stack in order: one by one, or those that take turns together."""
    tree = site_tree(denoiser)
    lists: dict[str, list[Block]] = {}
    for block in tree.blocks:
        if not block.alone and "." not in block.stack and not any(word in block.stack for word in _BESIDE):
            lists.setdefault(block.stack, []).append(block)
    if tree.regions or not lists:
        raise FestinaError(
            f"{type(denoiser).__name__} has no stack of blocks"
            + (", but levels of a U-Net; serve a run of regions (`REGION..REGION:feature`)." if tree.regions else ".")
        )
    rounds: list[tuple[Block, ...]] = []
    for stack, blocks in lists.items():
        between = lists.get(f"{_BETWEEN}{stack}")
        if between is not None:
            rounds += zip(blocks, between, strict=True)
        elif not (stack.startswith(_BETWEEN) and stack.removeprefix(_BETWEEN) in lists):
            rounds += [(block,) for block in blocks]
    return rounds


def _runs(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Neighbours of one list as one run."""
    runs: list[list[Block]] = []
    for block in blocks:
        if runs and runs[-1][-1].stack == block.stack and _index(runs[-1][-1]) + 1 == _index(block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return tuple(
        f"{run[0].path}:{RESIDUAL}" if len(run) == 1 else f"{run[0].path}..{_index(run[-1])}:{RESIDUAL}" for run in runs
    )


def _index(block: Block) -> int:
    return int(block.path.rpartition(".")[2])
