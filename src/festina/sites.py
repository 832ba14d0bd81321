"""Sites: the places in a denoiser whose output can be served instead of computed.

One declarative row per diffusers class says which stacks of blocks it has, which components of a block are sites, and
which tokens flow through each (for the closed-form costs of `festina.cost`). Nothing is guessed: a class without a
row is refused.

A site is named by the path of its module, as in `transformer_blocks.3.attn1`. Its value kind is `output`: the raw
output of the module, before gate and residual addition (ECAD, arXiv 2506.15682). A name that ends in `:residual`, as
in `transformer_blocks.3:residual`, stands for a whole block of which the difference out - in is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from festina.errors import FestinaError

RESIDUAL = ":residual"
"""Suffix of a site that stores the residual of a block."""


@dataclass(frozen=True)
class Component:
    """A part of a block that is a site, and the tokens that flow through it.

    Attributes:
        name: path of the module within its block.
        tokens: stream of tokens its linear layers see: "image", "text" or "joint" (text and image together).
        attends: stream its attention reads keys and values from, "" for a part without attention.
    """

    name: str
    tokens: str
    attends: str = ""


@dataclass(frozen=True)
class Stack:
    """A list of equal blocks.

    Attributes:
        path: path of its ModuleList.
        components: the components of each block, in execution order.
        streams: names of the block's arguments that it changes, in the order in which it returns them.
    """

    path: str
    components: tuple[Component, ...]
    streams: tuple[str, ...] = ("hidden_states",)


@dataclass(frozen=True)
class Row:
    """All that Festina knows about a denoiser class.

    Attributes:
        denoiser: the class name.
        stacks: its stacks of blocks, in execution order.
        fixed: path prefix of every module with weights outside the components, and the stream of tokens that flows
            through it ("image", "text", "joint" or "vector": one per picture). A prefix may have `*` for a number.
        again: path prefix of every module of `fixed` that runs a second time in each call, outside the blocks, with the
            stream of tokens it sees then.
    """

    denoiser: str
    stacks: tuple[Stack, ...]
    fixed: tuple[tuple[str, str], ...]
    again: tuple[tuple[str, str], ...] = ()


_PIXART_BLOCK = (
    Component("attn1", tokens="image", attends="image"),
    Component("attn2", tokens="image", attends="text"),
    Component("ff", tokens="image"),
)
_DIT_BLOCK = (Component("attn1", tokens="image", attends="image"), Component("ff", tokens="image"))
_FLUX_DOUBLE_BLOCK = (
    Component("attn", tokens="joint", attends="joint"),
    Component("ff", tokens="image"),
    Component("ff_context", tokens="text"),
)
_FLUX_SINGLE_BLOCK = (
    # In execution order: the block projects its MLP branch before it attends.
    Component("proj_mlp", tokens="joint"),
    Component("attn", tokens="joint", attends="joint"),
    Component("proj_out", tokens="joint"),
)

_FLUX_STREAMS = ("encoder_hidden_states", "hidden_states")

_ROWS: dict[str, Row] = {}


def register(row: Row) -> None:
    """Teach Festina a denoiser class; a second row for the same class replaces the first."""
    _ROWS[row.denoiser] = row


register(
    Row(
        "PixArtTransformer2DModel",
        (Stack("transformer_blocks", _PIXART_BLOCK),),
        (("pos_embed", "image"), ("adaln_single", "vector"), ("caption_projection", "text"), ("proj_out", "image")),
        # Height and width of the picture are two numbers, each embedded by itself.
        again=(("adaln_single.emb.resolution_embedder", "vector"),),
    )
)
register(
    Row(
        "DiTTransformer2DModel",
        (Stack("transformer_blocks", _DIT_BLOCK),),
        (
            ("pos_embed", "image"),
            ("transformer_blocks.*.norm1", "vector"),
            ("proj_out_1", "vector"),
            ("proj_out_2", "image"),
        ),
        # The embedding of time and class of the first block also conditions the last projection.
        again=(("transformer_blocks.0.norm1.emb", "vector"),),
    )
)
register(
    Row(
        "FluxTransformer2DModel",
        (
            Stack("transformer_blocks", _FLUX_DOUBLE_BLOCK, _FLUX_STREAMS),
            Stack("single_transformer_blocks", _FLUX_SINGLE_BLOCK, _FLUX_STREAMS),
        ),
        (
            ("x_embedder", "image"),
            ("context_embedder", "text"),
            ("time_text_embed", "vector"),
            ("transformer_blocks.*.norm1", "vector"),
            ("transformer_blocks.*.norm1_context", "vector"),
            ("single_transformer_blocks.*.norm", "vector"),
            ("norm_out", "vector"),
            ("proj_out", "image"),
        ),
    )
)


@dataclass(frozen=True)
class Site:
    """A place whose output can be served.

    Attributes:
        name: unique name: path of the module, with `:residual` behind it for a block's residual.
        path: path of the module in the denoiser.
        stack: path of the stack the site belongs to.
        block: index of its block in the stack.
        component: what the block's row says of it; None for a whole block.
        streams: see `Stack`; what a whole block changes.
    """

    name: str
    path: str
    stack: str
    block: int
    component: Component | None
    streams: tuple[str, ...]

    @property
    def group(self) -> str:
        """Sites of one group cost the same: the stack and the component's name."""
        return f"{self.stack}.{self.component.name}" if self.component else f"{self.stack}{RESIDUAL}"


def known_classes() -> tuple[str, ...]:
    """Names of the denoiser classes that have a row."""
    return tuple(sorted(_ROWS))


def row_of(denoiser: nn.Module) -> Row:
    """The row of a denoiser's class.

    Raises:
        FestinaError: the class has none; the message says how to add it.
    """
    name = type(denoiser).__name__
    if name not in _ROWS:
        lists = [path for path, module in denoiser.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
        found = ", ".join(path for path in lists[:4]) or "no list of blocks"
        raise FestinaError(
            f"no site row for the denoiser class {name} (rows: {', '.join(known_classes())}). It has {found}. To add "
            f"it: festina.sites.register(Row({name!r}, stacks=(Stack('<list>', (Component('<module>', tokens='image'), "
            f"...)),), fixed=(...))); see docs/adding_a_model.md."
        )
    return _ROWS[name]


def component_sites(denoiser: nn.Module) -> tuple[Site, ...]:
    """The component sites of a denoiser, in execution order: stack by stack, block by block.

    Raises:
        FestinaError: the class has no row, or the row names a module this denoiser lacks.
    """
    found = []
    for stack in row_of(denoiser).stacks:
        for block in range(_length(denoiser, stack.path)):
            for component in stack.components:
                path = f"{stack.path}.{block}.{component.name}"
                _module(denoiser, path)
                found.append(Site(path, path, stack.path, block, component, stack.streams))
    return tuple(found)


def block_sites(denoiser: nn.Module) -> tuple[Site, ...]:
    """One residual site per block of a denoiser, in execution order. Raises like `component_sites`."""
    found = []
    for stack in row_of(denoiser).stacks:
        for block in range(_length(denoiser, stack.path)):
            path = f"{stack.path}.{block}"
            found.append(Site(path + RESIDUAL, path, stack.path, block, None, stack.streams))
    return tuple(found)


def resolve(denoiser: nn.Module, names: tuple[str, ...]) -> tuple[Site, ...]:
    """The sites of these names.

    Raises:
        FestinaError: the class has no row, or a name is not a site of this denoiser.
    """
    known = {site.name: site for site in (*component_sites(denoiser), *block_sites(denoiser))}
    missing = [name for name in names if name not in known]
    if missing:
        raise FestinaError(
            f"{len(missing)} of the plan's {len(names)} sites are not in this {type(denoiser).__name__}, the first is "
            f"{missing[0]!r}; it has {_shape(denoiser)}. Use a plan made for this model."
        )
    return tuple(known[name] for name in names)


def site_module(denoiser: nn.Module, site: Site) -> nn.Module:
    """The module behind a site."""
    return _module(denoiser, site.path)


def find_denoiser(pipe: object) -> nn.Module:
    """The denoiser of a diffusers pipeline, or `pipe` itself if it is one.

    Raises:
        FestinaError: there is no `transformer` or `unet` in it.
    """
    if isinstance(pipe, nn.Module):
        return pipe
    for attribute in ("transformer", "unet"):
        module = getattr(pipe, attribute, None)
        if isinstance(module, nn.Module):
            return module
    raise FestinaError(
        f"{type(pipe).__name__} has no `transformer` and no `unet`; give a diffusers pipeline or its denoiser."
    )


def sampler_of(pipe: object) -> str:
    """Class name of a pipeline's scheduler; "" for a bare denoiser."""
    scheduler = getattr(pipe, "scheduler", None)
    return "" if scheduler is None else type(scheduler).__name__


def _length(denoiser: nn.Module, path: str) -> int:
    module = _module(denoiser, path)
    if not isinstance(module, nn.ModuleList) or not len(module):
        raise FestinaError(f"{path!r} of {type(denoiser).__name__} is no list of blocks; its site row does not fit.")
    return len(module)


def _module(denoiser: nn.Module, path: str) -> nn.Module:
    try:
        return denoiser.get_submodule(path)
    except AttributeError:
        raise FestinaError(
            f"{type(denoiser).__name__} has no module {path!r}; its site row does not fit this version of the class."
        ) from None


def _shape(denoiser: nn.Module) -> str:
    stacks = row_of(denoiser).stacks
    return " and ".join(
        f"{_length(denoiser, stack.path)} {stack.path} of {'/'.join(c.name for c in stack.components)}"
        for stack in stacks
    )
