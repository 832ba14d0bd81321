"""What a benchmark found: every run beside fewer steps of the untouched sampler at the same seconds, and the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from festina.benchmark.figures import Figures, psnr_of
from festina.benchmark.folder import Round
from festina.benchmark.variants import Alike, Failed, Variant
from festina.report.rounds import over_rounds
from festina.search.front import confidence_interval

Verdict = Literal["yes", "no", "even"]
"""Whether a run beats the untouched sampler at its seconds: its reward is higher or lower, and the 95 % interval of the
difference leaves 0 out, or it does not."""


@dataclass(frozen=True)
class Rival:
    """The untouched sampler at some seconds, by a line between the two measured numbers of steps around them.

    Attributes:
        steps: these numbers of steps; one if a number was met exactly, or from the uncached sampler's cost on.
        reward: its mean reward.
        psnr: its PSNR to the uncached pictures in dB; the line is through mean squared errors.
        gain: reward of the run less that of the rival.
        gain_low, gain_high: 95 % confidence interval of the gain, from the differences on the same prompts and noise.
    """

    steps: tuple[int, ...]
    reward: float
    psnr: float
    gain: float
    gain_low: float
    gain_high: float

    @property
    def beaten(self) -> Verdict:
        """Whether the run beats it."""
        return "yes" if self.gain_low > 0 else "no" if self.gain_high < 0 else "even"


@dataclass(frozen=True)
class Result:
    """One run, measured.

    Attributes:
        variant: what ran.
        figures: figures of its pictures.
        seconds: wall seconds per picture: those of the uncached sampler, the median over rounds, by the ratio.
        seconds_ratio: seconds of the uncached sampler / seconds of this one, above 1 is faster: the median of the
            ratios within each round.
        reward_low, reward_high: 95 % confidence interval of the mean reward.
        rival: what fewer steps give in the same seconds; None for the untouched sampler itself, and where no measured
            number of steps needs so few seconds.
        rival_at_calls: what the untouched sampler gives with as many network calls; None where the run makes them all.
        on_front: whether no other run is at least as fast with at least the reward, one of the two strictly.
    """

    variant: Variant
    figures: Figures
    seconds: float
    seconds_ratio: float
    reward_low: float
    reward_high: float
    rival: Rival | None
    rival_at_calls: Rival | None
    on_front: bool


@dataclass(frozen=True)
class Benchmark:
    """All that a benchmark found, and what has to be known to read it.

    Attributes:
        model: name of the model.
        asked: all that decides the figures, JSON values by name (`festina.benchmark.session.asked`).
        settings: the same in a sentence.
        hardware: machine and library versions in a sentence.
        rounds: timed rounds.
        results: the runs, the uncached one first.
        alike: what runs as one of these does.
        failed: what could not be run, and why.
        prompts: prompts of the pictures that are shown.
        pictures: PNG files of these by the name of the run.
        notes: remarks for the reader.
    """

    model: str
    asked: Mapping[str, Any]
    settings: str
    hardware: str
    rounds: int
    results: tuple[Result, ...]
    alike: tuple[Alike, ...]
    failed: tuple[Failed, ...]
    prompts: tuple[str, ...]
    pictures: Mapping[str, tuple[bytes, ...]]
    notes: tuple[str, ...] = ()

    @property
    def uncached(self) -> Result:
        """The untouched sampler."""
        return self.results[0]

    @property
    def front(self) -> tuple[Result, ...]:
        """The runs that no other run beats in both seconds and reward, by rising seconds."""
        return tuple(sorted((each for each in self.results if each.on_front), key=lambda each: each.seconds))

    @property
    def remarks(self) -> tuple[tuple[str, str], ...]:
        """What was seen of a run besides its figures: its name and a sentence."""
        return tuple((each.variant.name, note) for each in self.results for note in each.figures.notes)

    @property
    def groups(self) -> tuple[str, ...]:
        """What the runs are shown under, in their order."""
        return tuple(dict.fromkeys(each.variant.group for each in self.results))

    def of_group(self, group: str) -> tuple[Result, ...]:
        """The runs of one group, by falling seconds."""
        return tuple(sorted((each for each in self.results if each.variant.group == group), key=lambda r: -r.seconds))


def results(
    variants: Sequence[Variant], figures: Mapping[str, Figures], rounds: Sequence[Round], pictures: int, per_prompt: int
) -> tuple[Result, ...]:
    """Put figures and seconds of all variants together.

    Args:
        variants: what ran; the first is the untouched sampler.
        figures: by the variant's name.
        rounds: seconds of one batch by the variant's name.
        pictures: pictures of that batch.
        per_prompt: pictures per prompt.

    Raises:
        FestinaError: there are fewer than two prompts.
    """
    batch, ratios = over_rounds(rounds, variants[0].name)
    seconds = {name: spent / pictures for name, spent in batch.items()}
    line = [(seconds[each.name], figures[each.name]) for each in variants if each.untouched]
    by_calls = [(float(each.steps), figures[each.name]) for each in variants if each.untouched]
    best = non_dominated([(seconds[each.name], figures[each.name].reward) for each in variants])
    found = []
    for place, variant in enumerate(variants):
        own = figures[variant.name]
        low, high = confidence_interval(own.scores, per_prompt)
        found.append(
            Result(
                variant=variant,
                figures=own,
                seconds=seconds[variant.name],
                seconds_ratio=ratios[variant.name],
                reward_low=low,
                reward_high=high,
                rival=rival(line, seconds[variant.name], own, per_prompt) if not variant.untouched else None,
                rival_at_calls=(
                    rival(by_calls, float(variant.calls), own, per_prompt)
                    if not variant.untouched and variant.calls < variants[0].steps
                    else None
                ),
                on_front=place in best,
            )
        )
    return tuple(found)


def rival(line: Sequence[tuple[float, Figures]], cost: float, own: Figures, per_prompt: int) -> Rival | None:
    """The untouched sampler at a run's cost, beside that run.

    Args:
        line: cost (seconds, or network calls) and figures of the untouched sampler with different numbers of steps, all
            steps among them.
        cost: the run's.
        own: the run's figures, of the same pictures.
        per_prompt: pictures per prompt.

    Returns:
        None if each number of steps costs more.

    Raises:
        FestinaError: there are fewer than two prompts.
    """
    known = sorted(line, key=lambda pair: (pair[0], pair[1].steps))
    if cost < known[0][0]:
        return None
    above = next((place for place, (needed, _) in enumerate(known) if needed >= cost), len(known) - 1)
    below = max(place for place, (needed, _) in enumerate(known) if needed <= cost)
    below = min(below, above)
    (start, fewer), (end, more) = known[below], known[above]
    share = 0.0 if end == start else min(1.0, (cost - start) / (end - start))
    scores = (1 - share) * np.array(fewer.scores) + share * np.array(more.scores)
    gains = [float(gain) for gain in np.array(own.scores) - scores]
    low, high = confidence_interval(gains, per_prompt)
    return Rival(
        steps=tuple(sorted({fewer.steps, more.steps})),
        reward=float(scores.mean()),
        psnr=psnr_of((1 - share) * fewer.error + share * more.error),
        gain=float(np.mean(gains)),
        gain_low=low,
        gain_high=high,
    )


def non_dominated(points: Sequence[tuple[float, float]]) -> set[int]:
    """Places of the points (cost, value) that no other beats: none costs no more and is worth no less, one of the two
    strictly. Points that tie in both stay or go together."""
    kept: set[int] = set()
    best = -np.inf
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    last: tuple[float, float] | None = None
    for place in order:
        if points[place][1] > best or points[place] == last:
            kept.add(place)
            best, last = points[place][1], points[place]
    return kept
