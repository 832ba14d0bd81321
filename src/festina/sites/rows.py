"""Rows: what the structure of a class does not tell.

Mostly the order in which blocks return two streams, which only their code knows; for a few classes the components.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from festina.errors import FestinaError
from festina.sites.discovery import Block, Part, discover, role_of


@dataclass(frozen=True)
class Stack:
    """What a row says of one list of blocks.

    Attributes:
        path: path of the list in the denoiser.
        components: paths of the components within each block, those that a block lacks left out; () to have them found.
        streams: names of the block's arguments that it changes, in the order in which it returns them, "" for a tensor
            that is the new value of none; () where it returns one tensor or where the shapes tell. Only block sites
            (`...:residual`) need them.
    """

    path: str
    components: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What Festina is told about a denoiser class, by its name; lists it does not name are found."""

    denoiser: str
    stacks: tuple[Stack, ...]


_TEXT_FIRST = ("encoder_hidden_states", "hidden_states")
_TEXT_LAST = ("hidden_states", "encoder_hidden_states")


def _ordered(streams: tuple[str, str], *paths: str) -> tuple[Stack, ...]:
    return tuple(Stack(path, streams=streams) for path in paths)


_BOTH = ("transformer_blocks", "single_transformer_blocks")
_BUILT_IN = (
    Row("AuraFlowTransformer2DModel", _ordered(_TEXT_FIRST, "joint_transformer_blocks")),
    Row("BriaFiboTransformer2DModel", _ordered(_TEXT_FIRST, "transformer_blocks")),
    Row("BriaTransformer2DModel", _ordered(_TEXT_FIRST, *_BOTH)),
    Row("ChromaTransformer2DModel", _ordered(_TEXT_FIRST, "transformer_blocks")),
    Row("Flux2Transformer2DModel", _ordered(_TEXT_FIRST, "transformer_blocks")),
    Row("Flux3Transformer2DModel", _ordered(_TEXT_FIRST, "single_transformer_blocks")),
    Row("FluxTransformer2DModel", _ordered(_TEXT_FIRST, *_BOTH)),
    Row("LongCatImageTransformer2DModel", _ordered(_TEXT_FIRST, *_BOTH)),
    Row("OvisImageTransformer2DModel", _ordered(_TEXT_FIRST, *_BOTH)),
    Row("QwenImageTransformer2DModel", _ordered(_TEXT_FIRST, "transformer_blocks")),
    Row("SD3Transformer2DModel", _ordered(_TEXT_FIRST, "transformer_blocks")),
    Row("CogVideoXTransformer3DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("CogView3PlusTransformer2DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("CogView4Transformer2DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("ConsisIDTransformer3DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("EasyAnimateTransformer3DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("GlmImageTransformer2DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("HiDreamImageTransformer2DModel", _ordered(_TEXT_LAST, "double_stream_blocks")),
    Row("HunyuanImageTransformer2DModel", _ordered(_TEXT_LAST, *_BOTH)),
    Row("HunyuanVideo15Transformer3DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("HunyuanVideoFramepackTransformer3DModel", _ordered(_TEXT_LAST, *_BOTH)),
    Row("HunyuanVideoTransformer3DModel", _ordered(_TEXT_LAST, *_BOTH)),
    Row("JoyImageEditPlusTransformer3DModel", _ordered(_TEXT_LAST, "double_blocks")),
    Row("JoyImageEditTransformer3DModel", _ordered(_TEXT_LAST, "double_blocks")),
    Row("MochiTransformer3DModel", _ordered(_TEXT_LAST, "transformer_blocks")),
    Row("MotifVideoTransformer3DModel", _ordered(_TEXT_LAST, *_BOTH)),
    Row("Cosmos3OmniTransformer", (Stack("layers", streams=("und_seq", "gen_seq")),)),
    Row("Kandinsky6Transformer3DModel", (Stack("visual_transformer_blocks", streams=("vis", "aud")),)),
    Row(
        "LTX2VideoTransformer3DModel",
        (Stack("transformer_blocks", streams=("hidden_states", "audio_hidden_states")),),
    ),
    # What its control blocks return first is added to the picture's stream by the model.
    Row("WanVACETransformer3DModel", (Stack("vace_blocks", streams=("", "control_hidden_states")),)),
    # Built with an audio half, which never runs.
    Row("SanaWMLTX2RefinerTransformer3DModel", (Stack("transformer_blocks", ("attn1", "attn2", "ff")),)),
    # Its blocks keep their parts in a list of their own.
    Row("T5FilmDecoder", (Stack("decoders", ("layer.0", "layer.1", "layer.2")),)),
    # Parts wrapped with the norms they need; the pairs are updated without attention.
    Row(
        "RFD4ProteinaTransformer",
        (
            Stack("transformer_layers", ("mhba", "transition")),
            Stack("pair_update_layers", ("tri_mult_out", "tri_mult_in", "transition_out")),
        ),
    ),
)
_ROWS: dict[str, Row] = {row.denoiser: row for row in _BUILT_IN}


def register(row: Row) -> None:
    """Teach Festina a denoiser class; a second row for the same class replaces the first."""
    _ROWS[row.denoiser] = row


def blocks_of(denoiser: nn.Module) -> tuple[Block, ...]:
    """The blocks of a denoiser: as its row says where it has one, the rest as found.

    Raises:
        FestinaError: the row does not fit, or nothing was found and there is no row.
    """
    name = type(denoiser).__name__
    row = _ROWS.get(name, Row(name, ()))
    told = {stack.path: stack for stack in row.stacks}
    with_parts = [stack for stack in row.stacks if stack.components]
    blocks = []
    for block in discover(denoiser):
        if any(f"{block.path}.".startswith(f"{stack.path}.") for stack in with_parts):
            continue
        streams = told[block.stack].streams if block.stack in told else ()
        blocks.append(Block(block.path, block.stack, block.parts, streams))
    for stack in with_parts:
        blocks.extend(_told_blocks(denoiser, stack))
    found = {block.stack for block in blocks}
    if missing := [stack.path for stack in row.stacks if stack.path not in found]:
        raise FestinaError(f"the site row of {name} names {missing[0]!r}, but there are only {', '.join(found)}.")
    if not blocks:
        raise FestinaError(_unmapped(denoiser))
    return tuple(blocks)


def _told_blocks(denoiser: nn.Module, stack: Stack) -> list[Block]:
    name = type(denoiser).__name__
    try:
        entries = denoiser.get_submodule(stack.path)
    except AttributeError:
        raise FestinaError(f"the site row of {name} names {stack.path!r}, which this model lacks.") from None
    blocks = []
    for index, entry in entries.named_children():
        modules = dict(entry.named_modules())
        parts = tuple(Part(part, role_of(modules[part], part)) for part in stack.components if part in modules)
        if not parts:
            raise FestinaError(
                f"the site row of {name} wants {', '.join(stack.components)} in {stack.path}.{index}, which has "
                f"{', '.join(child for child, _ in entry.named_children()) or 'no parts'}."
            )
        blocks.append(Block(f"{stack.path}.{index}", stack.path, parts, stack.streams))
    return blocks


def _unmapped(denoiser: nn.Module) -> str:
    name = type(denoiser).__name__
    lists = [
        f"{path} ({len(module)} x {type(module[0]).__name__} of "
        f"{', '.join(child for child, _ in module[0].named_children()) or 'no parts'})"
        for path, module in denoiser.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    return (
        f"no block with an attention was found in {name}. Its lists are: {'; '.join(lists[:6]) or 'none'}. Say which "
        f"are blocks and what can be served in them: festina.sites.register(festina.sites.Row({name!r}, "
        f"(festina.sites.Stack('<list>', components=('<part>', ...)),))); see docs/adding_a_model.md."
    )
