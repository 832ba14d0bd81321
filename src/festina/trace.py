"""Tracing one call of a denoiser: what each module multiplies, how much it returns, and in which order modules run.

The call runs with its matrix products left out: each is counted by its closed form (that of torch's own counter, from
the shapes of the operands) and answered with zeros, while everything else, in particular masks, positions and other
small integer work that decides shapes, really runs. So a trace costs a fraction of a call, works on the meta device
where the model's own code does, and knows every class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from festina.errors import FestinaError
from festina.sites.regions import skips_taken


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates: `linear` in products with weights, `attention` in products of activations (QK^T, AV)."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __sub__(self, other: Macs) -> Macs:
        return Macs(self.linear - other.linear, self.attention - other.attention)

    def __mul__(self, times: int) -> Macs:
        return Macs(self.linear * times, self.attention * times)


@dataclass(frozen=True)
class Call:
    """Arguments of one denoiser call, as the pipeline gave them.

    Attributes:
        args, kwargs: positional and keyword arguments; tensors may be on the meta device if the denoiser is.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def signature(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all tensors among the arguments; calls of one signature cost the same."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class Returned:
    """A tensor that a module returned.

    Attributes:
        shape: its shape.
        same_as: place of the first tensor that is the very same object, usually its own place.
    """

    shape: tuple[int, ...]
    same_as: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class CallTrace:
    """What happened in one call with everything computed.

    Attributes:
        macs: of the whole call.
        within: of each module and all it contains, by path; modules that did not run are missing.
        visits: paths of modules in the order in which they ended, a module that ran twice twice.
        returned: the tensors that a module returned, by path: for each visit those of it, in order.
        skips: how many tensors in tuples each module was given, by path, if any: a U-Net's skip connections.
        answer: numbers in what the call returned.
    """

    macs: Macs
    within: Mapping[str, Macs]
    visits: tuple[str, ...]
    returned: Mapping[str, tuple[tuple[Returned, ...], ...]]
    skips: Mapping[str, int]
    answer: int


def trace(denoiser: nn.Module, call: Call) -> CallTrace:
    """Trace one call.

    Args:
        denoiser: any denoiser; on the meta device, or with its weights in memory.
        call: arguments on the same device.

    Raises:
        FestinaError: the model cannot run on these arguments; on the meta device also if its own code reads values.
    """
    record = _Record()
    try:
        with torch.no_grad(), _uncompiled(denoiser), _listening(denoiser, record), _Counting(record):
            answer = denoiser(*call.args, **call.kwargs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0][:200]
        raise FestinaError(
            f"{type(denoiser).__name__} cannot be priced: a call with tensors {call.signature} fails in "
            f"{record.running[-1] if record.running else 'the model'} ({reason}). Give the arguments of a real call "
            f"and a model with its weights."
        ) from error
    total = record.within.pop("", Macs(0, 0))
    returned = {path: tuple(visits) for path, visits in record.returned.items()}
    answered = {id(leaf): leaf.numel() for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)}
    return CallTrace(total, record.within, tuple(record.visits), returned, record.skips, sum(answered.values()))


@contextmanager
def _uncompiled(denoiser: nn.Module) -> Iterator[None]:
    """Compiled parts run as they were written, flex attention too, which compiles itself."""
    before = flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    try:
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in denoiser.modules()):
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = before


class _Record:
    """A trace in the making; `running` holds the paths of the modules under way."""

    def __init__(self) -> None:
        self.within: dict[str, Macs] = {}
        self.visits: list[str] = []
        self.returned: dict[str, list[tuple[Returned, ...]]] = {}
        self.skips: dict[str, int] = {}
        self.running: list[str] = []

    def count(self, macs: Macs) -> None:
        for path in ("", *self.running):
            self.within[path] = self.within.get(path, Macs(0, 0)) + macs


@contextmanager
def _listening(denoiser: nn.Module, record: _Record) -> Iterator[None]:
    """Hooks that tell which modules run, and what they return."""

    def entering(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            record.within.setdefault(path, Macs(0, 0))
            record.running.append(path)
            if given := skips_taken(args, kwargs):
                record.skips[path] = given

        return hook

    def leaving(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            record.running.pop()
            record.visits.append(path)
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            first = {id(tensor): place for place, tensor in reversed(list(enumerate(tensors)))}
            told = tuple(Returned(tuple(tensor.shape), first[id(tensor)]) for tensor in tensors)
            record.returned.setdefault(path, []).append(told)

        return hook

    handles = []
    try:
        for path, module in denoiser.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(entering(path), with_kwargs=True))
                handles.append(module.register_forward_hook(leaving(path)))
        yield
    finally:
        for handle in handles:
            handle.remove()


_aten = torch.ops.aten
_ATTENTION = frozenset(
    getattr(_aten, name)
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_attention_math",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(_aten, name)
)
_WITH_WEIGHTS = frozenset({_aten.mm, _aten.addmm, _aten.convolution, _aten._convolution})


class _Counting(TorchDispatchMode):
    """Counts matrix products instead of doing them; flex attention as if nothing were masked."""

    supports_higher_order_operators = True

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.flex_attention:
            query, key, value = args[:3]
            self.record.count(Macs(0, sdpa_flop_count(query.shape, key.shape, value.shape) // 2))
            rows = query.new_zeros(query.shape[:-1], dtype=torch.float32)
            return query.new_zeros(*query.shape[:-1], value.shape[-1]), rows, rows
        packet = getattr(func, "_overloadpacket", func)
        if packet not in flop_registry and packet not in _ATTENTION:
            return func(*args, **kwargs)
        device = next(leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        bare_args, bare_kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        answer = func(*bare_args, **bare_kwargs)
        if packet in _ATTENTION:
            flops = sdpa_flop_count(*(tensor.shape for tensor in bare_args[:3]))
        else:
            flops = flop_registry[packet](*bare_args, **bare_kwargs, out_val=answer)
        macs = int(flops) // 2
        self.record.count(Macs(macs, 0) if packet in _WITH_WEIGHTS else Macs(0, macs))
        if device.type == "meta":
            return answer
        return tree_map_only(Tensor, lambda tensor: torch.zeros_like(tensor, device=device), answer)
