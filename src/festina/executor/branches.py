"""Branches: which of a step's denoiser calls continues which one of the steps before.

Values of one branch must never be served to another, also when guidance starts, pauses or ends midway and the number of
calls changes. Where a pipeline sets diffusers' cache context, its name decides. Elsewhere calls are told apart by what
they are given: a pipeline makes its conditioning once, before the loop, so that a call with the very same tensors in
memory is the same branch. Only where conditioning is made anew in each step are its values compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from festina.executor.calls import Leaves, Signature, identity, is_setting, same_values, signature_of

_CONDITIONING = (
    "encoder_hidden_states",
    "class_labels",
    "text",
    "prompt",
    "caption",
    "cap_feats",
    "pooled",
    "embeds",
    "embeddings",
    "input_ids",
    "prior_token",
)
"""Parts of the names of arguments that say what to draw."""


@dataclass(eq=False)
class Branch:
    """A call that comes back in each step.

    Attributes:
        name: its name.
        sample: shapes of what its last call denoised.
        shapes: shapes of all tensors of its last call.
        held: what its first call was given: kept, so that nothing else can take this memory. From the second call on
            only what came again, and the conditioning.
        last_step: the step of its last call, -1 before the first ends.
        stale: whether the values kept for it fit the present call no more.
        calls: how often it was called in this run.
        identities: what the leaves of `held` are, see `identity`.
    """

    name: str
    sample: Signature
    shapes: Signature
    held: dict[str, Any]
    last_step: int
    stale: bool = False
    calls: int = 1
    identities: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identities = {path: identity(leaf) for path, leaf in self.held.items()}

    def begin_again(self, leaves: Leaves) -> None:
        """From here on it is a branch of other calls; what was kept for it is no use to them."""
        self.held, self.calls, self.stale = dict(leaves), 0, True
        self.__post_init__()

    def called(self, leaves: Leaves, sample: Signature, shapes: Signature) -> None:
        """Take note of another call."""
        if self.calls == 1:
            mine = {path: identity(leaf) for path, leaf in leaves.items()}
            kept = {path for path in self.held if _conditions(path) or mine.get(path, self) == self.identities[path]}
            self.held = {path: leaf for path, leaf in self.held.items() if path in kept}
            self.identities = {path: seen for path, seen in self.identities.items() if path in kept}
        self.calls += 1
        self.stale = self.stale or shapes != self.shapes
        self.sample, self.shapes = sample, shapes

    def fits(self, leaves: Leaves, same: Callable[[str], bool]) -> bool:
        """Whether a call may be one of this branch.

        Args:
            leaves: what the call was given.
            same: whether its conditioning under a path is the branch's.
        """
        settings = {path for path, leaf in self.held.items() if is_setting(leaf)}
        if self.calls == 1 and settings != {path for path, leaf in leaves.items() if is_setting(leaf)}:
            return False
        for path, seen in self.identities.items():
            if _conditions(path):
                if path not in leaves or not same(path):
                    return False
            # What came again in its second call does so in all; before that only settings are sure to.
            elif (self.calls > 1 or path in settings) and (path not in leaves or identity(leaves[path]) != seen):
                return False
        return True


class Branches:
    """The branches of a run, by group: calls under one cache context of one denoiser, or under none."""

    def __init__(self) -> None:
        self._groups: dict[str, list[Branch]] = {}
        self._taken: dict[str, list[Branch]] = {}
        self._most: Counter[str] = Counter()
        self._fewer: set[str] = set()

    def clear(self) -> None:
        """Forget everything: another run."""
        for kept in (self._groups, self._taken, self._most, self._fewer):
            kept.clear()

    def names(self) -> list[str]:
        """Names of all branches."""
        return [branch.name for known in self._groups.values() for branch in known]

    def end_step(self) -> None:
        """The calls that follow belong to another step."""
        for group, taken in self._taken.items():
            if len(taken) < self._most[group]:
                self._fewer.add(group)
            self._most[group] = max(self._most[group], len(taken))
        self._taken.clear()

    def of_call(self, group: str, named: bool, sample: str, leaves: Leaves, step: int) -> Branch:
        """The branch of a call.

        Args:
            group: the calls it is one of.
            named: whether a cache context names the group, so that a single branch in it needs no other evidence.
            sample: name of the argument that is denoised, which says nothing about the branch.
            leaves: what the call was given.
            step: the present step.
        """
        denoised = {path: leaf for path, leaf in leaves.items() if path.partition(".")[0] == sample}
        given = {path: leaf for path, leaf in leaves.items() if path not in denoised}
        sizes = (signature_of(denoised), signature_of(leaves))
        known, taken = self._groups.setdefault(group, []), self._taken.setdefault(group, [])
        branch = self._known(group, named, known, taken, given, sizes[0])
        if branch is None:
            names, place = {other.name for other in known}, len(taken)
            while f"{group}#{place}" in names:
                place += 1
            branch = Branch(f"{group}#{place}", *sizes, given, step)
            known.append(branch)
        else:
            branch.called(given, *sizes)
        taken.append(branch)
        return branch

    def _known(
        self, group: str, named: bool, known: list[Branch], taken: list[Branch], leaves: Leaves, sample: Signature
    ) -> Branch | None:
        """The known branch that a call belongs to; None if it is a new one."""
        free = [branch for branch in known if branch not in taken]
        if not free:
            return None
        # The call's place within the step, the only evidence if all calls look alike.
        usual = known[len(taken)] if len(taken) < len(known) and known[len(taken)] in free else free[0]
        if named and len(known) == 1:
            return usual
        candidates = _fitting(free, leaves)
        if candidates:
            scores = _evidence(known, leaves)
            best = max(scores[branch] for branch in candidates)
            candidates = [branch for branch in candidates if scores[branch] == best]
            chosen = usual if usual in candidates else candidates[0]
            if len(candidates) > 1 and group in self._fewer:
                chosen.stale = True
            return chosen
        # A call that nobody has seen. Conditioning that is other in every step must not make branches without end.
        if sample == usual.sample and len(known) <= max(self._most[group], len(taken) + 1):
            return None
        oldest = usual if sample != usual.sample else min(free, key=lambda branch: branch.last_step)
        oldest.begin_again(leaves)
        return oldest


class Denoisers:
    """Which of a pipeline's denoisers were called, and the branches of each.

    A pipeline with two experts changes from one to the other midway: what the first left behind is never read again.
    One that calls both in each step (a weaker model as guidance) needs what both keep.
    """

    def __init__(self) -> None:
        self._branches: dict[int, set[str]] = {}
        self._before: set[int] = set()
        self._now: set[int] = set()

    def clear(self) -> None:
        self._branches.clear()
        self._before, self._now = set(), set()

    def end_step(self) -> None:
        self._before, self._now = self._now, set()

    def call(self, denoiser: int) -> set[str]:
        """A call of a denoiser begins; returns the branches that are over by that."""
        over: set[str] = set()
        if not self._now and self._before:
            needed = {denoiser} | (self._before if len(self._before) > 1 else set())
            for other in set(self._branches) - needed:
                over |= self._branches.pop(other)
        self._now.add(denoiser)
        return over

    def of(self, denoiser: int) -> set[str]:
        """The branches of a denoiser."""
        return self._branches.get(denoiser, set())

    def any_now(self) -> bool:
        """Whether one was called in the present step."""
        return bool(self._now)

    def add(self, denoiser: int, branch: str) -> None:
        self._branches.setdefault(denoiser, set()).add(branch)


def _fitting(free: list[Branch], leaves: Leaves) -> list[Branch]:
    """The branches that a call may be one of: whose conditioning it is given, or one with the same values."""

    def in_memory(branch: Branch) -> Callable[[str], bool]:
        return lambda path: bool(identity(leaves[path]) == branch.identities[path])

    def in_value(branch: Branch) -> Callable[[str], bool]:
        return lambda path: same_values(leaves[path], branch.held[path])

    fitting = [branch for branch in free if branch.fits(leaves, in_memory(branch))]
    return fitting or [branch for branch in free if branch.fits(leaves, in_value(branch))]


def _evidence(known: list[Branch], leaves: Leaves) -> dict[Branch, int]:
    """How many arguments of a call are the very ones of each branch, and not those of every branch."""
    holders = Counter((path, seen) for branch in known for path, seen in branch.identities.items())
    mine = {path: identity(leaf) for path, leaf in leaves.items()}
    return {
        branch: sum(
            path in mine and mine[path] == seen and holders[path, seen] < len(known)
            for path, seen in branch.identities.items()
        )
        for branch in known
    }


def _conditions(path: str) -> bool:
    return any(part in path for part in _CONDITIONING)
