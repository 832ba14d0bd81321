"""The report of a run: what ran, what was served, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from festina.cost import mac_table
from festina.executor.calls import Signature
from festina.executor.serving import Column
from festina.trace import Call, trace

_SMALL = 4096
"""Numbers of a tensor that is kept for a report as it is."""


@dataclass
class CallRecord:
    """Denoiser calls of one signature in a run.

    Attributes:
        call: arguments of the first of them.
        count: how many ran.
        asked: how many the pipeline made; of these, a plan that leaves out a branch of guidance runs none or half.
    """

    call: Call
    count: int = 0
    asked: int = 0

    def lighten(self) -> None:
        """Put a zero without memory in the place of large tensors; small ones, such as masks, can decide shapes."""

        def light(tensor: Tensor) -> Tensor:
            return tensor if tensor.numel() <= _SMALL else tensor.new_zeros(()).expand(tensor.shape)

        args, kwargs = tree_map_only(Tensor, light, (self.call.args, dict(self.call.kwargs)))
        self.call = Call(args, kwargs)


@dataclass(frozen=True)
class RunReport:
    """What happened in the last run.

    Attributes:
        steps: steps that ended.
        calls: calls of the denoiser that the pipeline made, run or answered otherwise (see `shapes`).
        seconds: wall seconds from the start of the run to the end of its last step.
        computed, served: how often each site ran and how often it was served, by site name.
        peak_bytes: most bytes the store held at once.
        macs: multiply-accumulates of the denoiser, attention products included.
        macs_uncached: what the calls that the pipeline made cost with everything computed.
        shapes: how many calls ran with tensors of which shapes.
        partial: how often each site ran for some of its tokens, by name of the sites that do.
        tokens: for how many tokens of each row in all of these, by name.
        models: how many calls of other denoisers ran in the place of the pipeline's own, by name.
    """

    steps: int
    calls: int
    seconds: float
    computed: Mapping[str, int]
    served: Mapping[str, int]
    peak_bytes: int
    macs: int
    macs_uncached: int
    shapes: Mapping[Signature, int]
    partial: Mapping[str, int]
    tokens: Mapping[str, int]
    models: Mapping[str, int]


@dataclass(frozen=True)
class Spent:
    """What the calls of a run cost.

    Attributes:
        macs: with what was served left out.
        macs_uncached: with everything computed.
        visits: how often each of the sites came up, served or not, by name.
    """

    macs: int
    macs_uncached: int
    visits: Mapping[str, int]


def price(
    denoiser: nn.Module, records: Mapping[Signature, CallRecord], columns: Sequence[Column], maps: Sequence[Column]
) -> Spent:
    """Price the calls of a run, by a trace of one call per signature.

    Args:
        denoiser: the denoiser.
        records: the calls.
        columns: the plan's columns.
        maps: those of attentions of which a map was made, each time at the price of QK^T.

    Raises:
        FestinaError: a call cannot be priced.
    """
    macs = uncached = 0
    visits = dict.fromkeys((column.site.name for column in columns), 0)
    for signature, record in records.items():
        traced = trace(denoiser, record.call)
        table = mac_table(denoiser, traced, tuple(column.site.name for column in columns))
        uncached += record.asked * traced.macs.total
        macs += record.count * traced.macs.total
        for column in columns:
            name = column.site.name
            # A site that a call visits several times is priced for all of its visits together.
            each = len(traced.returned.get(column.site.paths[-1], ()))
            visits[name] += each * record.count
            if served := column.served[signature]:
                macs -= table.sites[name].total * served // each
            if passed := column.passed[signature]:
                macs -= table.tokens[name].each.total * passed
        for column in maps:
            each = len(traced.returned.get(column.site.path, ()))
            macs += table.sites[column.site.name].attention * column.computed[signature] // (2 * max(1, each))
    return Spent(macs, uncached, visits)


def price_of_others(denoiser: nn.Module, records: Mapping[Signature, CallRecord]) -> int:
    """MACs of the calls of a denoiser that ran in the place of the pipeline's own, with everything computed.

    Raises:
        FestinaError: a call cannot be priced.
    """
    return sum(record.count * trace(denoiser, record.call).macs.total for record in records.values())


def told(method: str, report: RunReport) -> str:
    """A report in a few lines.

    Args:
        method: what made the plan.
        report: the report.
    """
    computed, served = sum(report.computed.values()), sum(report.served.values())
    partial = sum(report.partial.values())
    share = computed / max(1, computed + served + partial)
    for_some = f", {partial} for some tokens" if partial else ""
    ratio = report.macs_uncached / max(1, report.macs)
    others = "".join(f", {count} of them of {name}" for name, count in report.models.items())
    return (
        f"plan {method!r}: {report.steps} steps, {report.calls} calls of the denoiser{others} in "
        f"{report.seconds:.2f} s\n"
        f"{computed} site calls computed, {served} served{for_some} ({share:.0%} computed)\n"
        f"{report.macs / 1e9:.2f} GMACs of {report.macs_uncached / 1e9:.2f} uncached ({ratio:.2f} times fewer)\n"
        f"{report.peak_bytes / 2**20:.2f} MiB held at most between steps"
    )
