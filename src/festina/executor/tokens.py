"""Computing a site for some of its tokens: choosing them, and putting what comes of them into the last value.

Nothing here looks at a tensor's values on the host: how many tokens are computed follows from the plan, and which ones
stays on the device. What scores are made of lies in the run's store, per branch: ages of a site's tokens, and how much
each token is attended to (`festina.executor.attended`).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from festina.errors import FestinaError
from festina.executor.attended import Watch
from festina.executor.clock import StepClock
from festina.executor.serving import Column
from festina.executor.store import Store, Value
from festina.plan import COMPUTE, Plan
from festina.sites import self_attentions
from festina.strict import brief
from festina.token_cost import age_steps, maps_of, partial_sites
from festina.tokens import RANDOM, Tokens, computed_tokens

_AGE, _ATTENDED = "tokens:age", "tokens:attended"


class TokenRun:
    """The choice of tokens in a run.

    Args:
        plan: the plan, in canonical form, with a choice of tokens.
        denoiser: the denoiser.
        columns: the plan's columns.
        clock, store: those of the run.

    Attributes:
        maps: a column for each attention whose map is needed; it counts how often the map was made.

    Raises:
        FestinaError: the plan has a gate or answers ahead, or a block has no attention to choose by.
    """

    def __init__(
        self, plan: Plan, denoiser: nn.Module, columns: Sequence[Column], clock: StepClock, store: Store
    ) -> None:
        assert plan.tokens is not None
        if plan.gate is not None or any(step.ahead for step in plan.steps):
            raise FestinaError("a plan that computes for some tokens has no gate and answers nothing ahead.")
        self.tokens: Tokens = plan.tokens
        self.clock, self.store = clock, store
        names = partial_sites(plan)
        self._kept_ages = {name: age_steps(plan, name) for name in names}
        by_block = self_attentions(denoiser)
        own: dict[str, str] = {}
        for column in columns:
            if column.site.name in names and column.site.block in by_block:
                own[column.site.name] = by_block[column.site.block].name
        sites = {site.name: site for site in by_block.values()}
        self._attention_of = own
        # As with the plan's columns there is one step more than the plan has; it keeps everything.
        self.maps = tuple(
            Column(sites[name], COMPUTE * (len(kept) + 1), tuple(map(int, (*kept, True))))
            for name, (_, kept) in maps_of(plan, own).items()
        )

    def end_step(self, branches: Sequence[str]) -> None:
        """A step is over: forget the maps that none after it reads."""
        for column in self.maps:
            if not column.held[self.clock.step]:
                for branch in branches:
                    self.store.trim_visits(branch, f"{_ATTENDED} {column.site.name}", 0)

    def watching_forward(self, original: Callable[..., Any], column: Column) -> Callable[..., Any]:
        """The forward of an attention, which leaves behind how much each token was attended to."""

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.clock.passing or not column.held[self.clock.step]:
                return original(*args, **kwargs)
            with Watch() as watch:
                returned = original(*args, **kwargs)
            key = f"{_ATTENDED} {column.visit(self.clock)}"
            self.store.put(self.clock.branch, key, self.clock.step, watch.attended(column.site.name))
            column.computed[self.clock.signature] += 1
            return returned

        return forward

    def forget(self, key: str) -> None:
        """All tokens of a visited site have been computed."""
        self.store.trim(self.clock.branch, f"{_AGE} {key}", 0)

    def renewed(
        self, column: Column, key: str, value: Value, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Tensor | None:
        """A site's value, some of its tokens computed anew.

        Args:
            column: the site's column.
            key: key of this visit in the store.
            value: its last value, (rows, tokens, width). It is left as it is.
            original: the site's own forward.
            args, kwargs: what it is called with.

        Returns:
            the new value; None if the tokens cannot be chosen yet, as in a branch that has just begun.

        Raises:
            FestinaError: what the site is given, returns or is chosen by is not of these tokens.
        """
        place, given = _given(args, kwargs)
        if not isinstance(value, Tensor) or value.ndim != 3 or given is None or given.shape[:2] != value.shape[:2]:
            raise self._unfit(column, f"is given {_told(given)} and returned {_told(value)}")
        pictures = self.clock.signature[0][0]
        if len(value) % pictures or (value.shape[1] == pictures != len(value)):
            raise self._unfit(column, f"returned {_told(value)} in a call of {pictures} rows")
        index = self._chosen(column, key, value)
        if index is None:
            return None
        count = index.shape[1]
        column.partial[self.clock.signature] += 1
        column.tokens[self.clock.signature] += count
        column.passed[self.clock.signature] += value.shape[1] - count
        if not count:
            return value
        some = given.gather(1, index.unsqueeze(2).expand(-1, -1, given.shape[2]))
        try:
            if isinstance(place, int):
                fresh = original(*args[:place], some, *args[place + 1 :], **kwargs)
            else:
                fresh = original(*args, **{**kwargs, place: some})
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            # It is given something else by token, such as positions.
            raise self._unfit(column, f"fails on {count} of {value.shape[1]} tokens ({brief(error)})") from error
        if not isinstance(fresh, Tensor) or fresh.shape != (*index.shape, value.shape[2]):
            raise self._unfit(column, f"returned {_told(fresh)} for {count} tokens of each row")
        return value.scatter(1, index.unsqueeze(2).expand_as(fresh), fresh)

    def _chosen(self, column: Column, key: str, value: Tensor) -> Tensor | None:
        """Places of the tokens to compute, in ascending order, int64 (rows, count)."""
        rows, tokens = value.shape[:2]
        step, branch = self.clock.step, self.clock.branch
        scores = self._first_scores(column, key, value)
        if scores is None:
            return None
        ages = None
        if self.tokens.age:
            kept = self.store.get(branch, f"{_AGE} {key}")
            ages = kept[0].value if kept else torch.zeros(rows, tokens, device=value.device)
            scores = scores + self.tokens.age * ages
        if self.tokens.bonus:
            cells = _cells(column.site.name, tokens, self.clock.signature, self.tokens.cell)
            scores = with_bonus(scores, cells, self.tokens.cell, self.tokens.bonus)
        count = computed_tokens(column.shares[step], tokens)
        index = scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
        if ages is not None:
            if self._kept_ages[column.site.name][step]:
                self.store.put(branch, f"{_AGE} {key}", step, (ages + 1).scatter(1, index, 0.0))
            else:
                self.store.trim(branch, f"{_AGE} {key}", 0)
        return index

    def _first_scores(self, column: Column, key: str, value: Tensor) -> Tensor | None:
        """What the scores begin with, (rows, tokens)."""
        rows, tokens = value.shape[:2]
        site = column.site
        if self.tokens.choice == RANDOM:
            seed = zlib.crc32(f"{self.tokens.seed} {self.clock.step} {site.block}".encode())
            scores = torch.rand(tokens, generator=torch.Generator().manual_seed(seed))
            # Drawn on the host, so that all devices choose alike; nobody waits for the copy.
            return scores.to(value.device, non_blocking=True).expand(rows, tokens)
        visit = key.removeprefix(site.name)
        name, branch = f"{_ATTENDED} {self._attention_of[site.name]}", self.clock.branch
        # A block may send two streams through one feed-forward after a joint attention.
        kept = self.store.get(branch, f"{name}{visit}") or self.store.get(branch, name)
        if not kept:
            return None
        streams: tuple[Tensor, ...] = kept[0].value
        whole = torch.cat(streams, dim=1)
        fitting = [whole] if whole.shape == (rows, tokens) else [s for s in streams if s.shape == (rows, tokens)]
        if len(fitting) != 1:
            told = ", ".join(_told(stream) for stream in streams)
            raise FestinaError(
                f"{site.name} has {tokens} tokens in {rows} rows, but what its block's attention says of its tokens is "
                f"{told}, so that they cannot be chosen by it. Choose them at random."
            )
        return functional.normalize(fitting[0], dim=1)

    @staticmethod
    def _unfit(column: Column, what: str) -> FestinaError:
        return FestinaError(
            f"{column.site.name} {what}, so that it cannot be computed for some of its tokens. Let it compute or reuse."
        )


def with_bonus(scores: Tensor, sides: tuple[int, int], cell: int, bonus: float) -> Tensor:
    """The scores, that of the best token of each cell of the picture raised by a share of itself (ToCa's fourth score).

    Args:
        scores: (rows, tokens), the picture row by row.
        sides: height and width of the picture in cells.
        cell: side of a cell in tokens.
        bonus: the share.
    """
    height, width = sides
    grouped = scores.unflatten(1, (height, cell, width, cell)).transpose(2, 3).flatten(3)
    best = grouped.argmax(dim=3, keepdim=True)
    raised = grouped.scatter(3, best, grouped.gather(3, best) * (1 + bonus))
    ungrouped: Tensor = raised.unflatten(3, (cell, cell)).transpose(2, 3).flatten(1)
    return ungrouped


def _cells(name: str, tokens: int, shapes: Sequence[tuple[int, ...]], cell: int) -> tuple[int, int]:
    """Height and width in cells of a picture of so many tokens, seen by the shape of the latents in the call.

    Raises:
        FestinaError: the latents are no picture, or it is not made of such cells.
    """
    picture = next((shape[-2:] for shape in shapes if len(shape) in (4, 5)), None)
    if picture is not None:
        height = round((tokens * picture[0] / picture[1]) ** 0.5)
        width = tokens // max(1, height)
        fits = height * width == tokens and height * picture[1] == width * picture[0]
        if fits and not height % cell and not width % cell:
            return height // cell, width // cell
    raise FestinaError(
        f"the best token of each cell of {cell} x {cell} gains a bonus, but the {tokens} tokens of {name} are no "
        f"picture of such cells. Choose tokens without a bonus, or with another cell."
    )


def _given(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int | str, Tensor | None]:
    """The argument that holds the tokens, and its place or name."""
    places: list[tuple[int | str, Any]] = [("hidden_states", kwargs.get("hidden_states"))]
    places += [*enumerate(args), *kwargs.items()]
    return next(((place, given) for place, given in places if isinstance(given, Tensor)), ("", None))


def _told(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
