"""Token subsets: a site is computed for some tokens of a step, and its last value serves for all others.

ToCa (arXiv 2410.05317) and DuCa (arXiv 2412.18911) recompute, between full steps, the tokens that matter most or that
have waited longest, and put what comes of them into the stored value. How many tokens a site computes in a step stands
in the plan's steps; which ones they are is decided during the run, by the rule here. No torch, no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from festina.errors import FestinaError
from festina.strict import is_number

IMPORTANCE, RANDOM = "importance", "random"
CHOICES = (IMPORTANCE, RANDOM)


@dataclass(frozen=True)
class Tokens:
    """How the tokens to compute are chosen: those of the highest score, the first of equal ones.

    A score is made of three parts, as in ToCa (section 3 and the released code).

    Attributes:
        choice: what a score begins with. "importance": how much the token is attended to in the block's self-attention,
            the column sum of its map averaged over heads, divided by the length (L2) of all of them. The map is that of
            the last step in which the attention was computed. "random": a number from [0, 1) that depends on the seed,
            the step and the block, and is the same for all rows.
        age: what a token gains for each step of this kind that has passed it by since it was last computed.
        bonus: what the best token of each square cell of the picture gains then, as a share of its score.
        cell: side of these cells in tokens.
        seed: for the random choice.

    Raises:
        FestinaError: on construction, if a value is out of its range.
    """

    choice: str
    age: float = 0.0
    bonus: float = 0.0
    cell: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        _want(self.choice in CHOICES, f"unknown choice {self.choice!r:.40}; wanted one of {', '.join(CHOICES)}")
        for name, value in (("age", self.age), ("bonus", self.bonus)):
            _want(is_number(value) and value >= 0, f"{name!r} is a number of at least 0")
            object.__setattr__(self, name, float(value))
        _want(type(self.cell) is int and self.cell >= 1, "'cell' is a whole number of at least 1")
        _want(type(self.seed) is int and self.seed >= 0, "'seed' is a whole number of at least 0")

    def to_record(self) -> dict[str, Any]:
        """As it stands in a plan file."""
        return asdict(self)

    @staticmethod
    def from_record(record: Any) -> Tokens:
        """Read what `to_record` wrote.

        Raises:
            FestinaError: a key is missing or unknown, or a value is of the wrong kind.
        """
        names = set(Tokens.__dataclass_fields__)
        _want(isinstance(record, Mapping), "it is an object")
        _want(set(record) == names, f"it has the keys {', '.join(sorted(names))}; found {', '.join(sorted(record))}")
        return Tokens(**record)


def computed_tokens(share: float, tokens: int) -> int:
    """How many of so many tokens are computed: the share of them, rounded down, as in ToCa's released code."""
    return int(share * tokens)


def kept_after(read: Sequence[bool], renewed: Sequence[bool]) -> tuple[bool, ...]:
    """After which steps something is kept that is read in some steps and made anew in others.

    A step that does both reads what was there before.
    """
    kept, wanted = [False] * len(read), False
    for step in range(len(read) - 1, -1, -1):
        kept[step] = wanted
        wanted = bool(read[step]) or (wanted and not renewed[step])
    return tuple(kept)


def check_shares(step: int, shares: Any, partial: Sequence[bool]) -> None:
    """See that a step says how many tokens its sites compute.

    Args:
        step: index of the step.
        shares: one number in [0, 1] per site, 0 where the site does not compute for some tokens; () where none does.
        partial: which sites do.

    Raises:
        FestinaError: it does not.
    """
    if not any(partial):
        _want(shares == (), f"step {step} has shares, but no action 'T'")
        return
    _want(isinstance(shares, tuple), f"the shares of step {step} are a tuple of numbers")
    _want(
        len(shares) == len(partial), f"step {step} has {len(shares)} shares for {len(partial)} sites; wanted one each"
    )
    for share, chosen in zip(shares, partial, strict=True):
        _want(is_number(share) and 0 <= share <= 1, f"a share of step {step} is no number from 0 to 1")
        _want(chosen or share == 0, f"step {step} has a share at a site whose action is not 'T'")


def _want(holds: bool, message: str) -> None:
    if not holds:
        raise FestinaError(f"not a valid choice of tokens: {message}.")
