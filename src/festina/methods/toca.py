"""ToCa and DuCa: between full steps, compute some tokens and reuse all others (arXiv 2410.05317, arXiv 2412.18911)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from festina.errors import FestinaError
from festina.methods.columns import want_one_of, want_whole
from festina.plan import COMPUTE, MAX_STEPS, PARTIAL, REUSE, Plan, Step, even_noise
from festina.sites import Site, component_sites, find_denoiser, sampler_of, stack_runs
from festina.sites.discovery import CROSS, FEED_FORWARD
from festina.strict import is_number
from festina.token_cost import BY_TOKEN
from festina.tokens import IMPORTANCE, RANDOM, Tokens

UP, DOWN, SINCE = "up", "down", "since"
"""How full steps are counted: a step is full if its number is a multiple of the interval, if the number of steps after
it is, or if so many steps have gone by since the last full one."""


@dataclass(frozen=True)
class Rules:
    """What ToCa sets by hand for a model.

    Attributes:
        counts: how full steps are counted, "up", "down" or "since".
        warm_up: full steps at the beginning, at least 1.
        early: by how much intervals are longer at the beginning and shorter at the end, in (-1, 1): after a full step
            the interval is N / (1 - early + 2 early p), rounded, p being the share of the run that is over.
        sensitive: whether the interval is 2 where 20 to 40 % of the steps remain.
        step_weight: by how much shares grow over the run: a factor 1 - w + 2 w p.
        layer_weight: by how much shares fall over the blocks of a stack: a factor 1 + w - 2 w l / (layers - 1).
        layers: blocks of a stack over which they fall so; 0 for as many as there are.
        roles, stacks: factors by role of a component and by path of its stack; 1 for those not named.
        bonus, cell: see `festina.tokens.Tokens`.

    Raises:
        FestinaError: on construction, if a value is out of its range.
    """

    counts: str = SINCE
    warm_up: int = 1
    early: float = 0.0
    sensitive: bool = False
    step_weight: float = 0.0
    layer_weight: float = 0.0
    layers: int = 0
    roles: Mapping[str, float] = field(default_factory=dict)
    stacks: Mapping[str, float] = field(default_factory=dict)
    bonus: float = 0.0
    cell: int = 2

    def __post_init__(self) -> None:
        want_one_of("the way of counting", self.counts, (UP, DOWN, SINCE))
        want_whole("the warm-up", self.warm_up, 1)
        want_whole("the number of layers", self.layers, 0)
        if not is_number(self.early) or not -1 < self.early < 1:
            raise FestinaError(f"'early' is {self.early!r:.40}; wanted a number between -1 and 1.")


_DIT = Rules(DOWN, early=0.4, sensitive=True, roles={FEED_FORWARD: 2.5}, bonus=0.6)
DIT = replace(_DIT, step_weight=2.0, layer_weight=-0.2)
"""DiT with 50 steps of DDIM; published with interval 3 and ratio 0.07."""

DIT_250 = replace(_DIT, step_weight=0.4, layer_weight=0.8)
"""DiT with 250 steps of DDPM; published with interval 4 and ratio 0.07."""

PIXART = Rules(
    UP, early=0.2, step_weight=-0.9, layer_weight=0.6, roles={CROSS: 0.6, FEED_FORWARD: 1.6}, bonus=0.4, cell=4
)
"""PixArt-alpha; published with interval 3 and ratio 0.3."""

FLUX = Rules(
    warm_up=3, layer_weight=0.5, layers=28, stacks={"transformer_blocks": 0.4, "single_transformer_blocks": 1.6}
)
"""FLUX; published with intervals 4 to 6 and ratio 0.1."""

_TOCA = {"DiTTransformer2DModel": DIT, "PixArtTransformer2DModel": PIXART, "FluxTransformer2DModel": FLUX}
_DUCA = _TOCA | {
    "DiTTransformer2DModel": replace(DIT, bonus=0.8),
    "PixArtTransformer2DModel": replace(PIXART, early=0.0),
}


def toca(
    pipe: Any,
    steps: int,
    interval: int,
    ratio: float,
    choice: str = IMPORTANCE,
    age_weight: float = 0.25,
    seed: int = 0,
    rules: Rules | None = None,
) -> Plan:
    """The schedule of ToCa (arXiv 2410.05317; constants, rounding and order of the scores as in the released code).

    In full steps everything computes. Between them attention reuses, and feed-forwards and cross-attention compute the
    share of their tokens that `share_of` gives, those of the highest score (`festina.tokens`). With ratio 0 it is FORA,
    with intervals that do not change; nor do they from interval 1, which computes everything.

    The released code asks anew in every block whether a step is full, and sets the next interval in the first block; so
    that in some full steps only that block computes. Here a full step is full. For PixArt it scores tokens by the
    entropy of the cross-attention instead; here all models are scored by self-attention, as DiT and FLUX are there.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, at least 1.
        interval: N, steps from one full step to the next, at least 1, before the rules change it; 1 computes all.
        ratio: share of tokens before the factors of the rules, 0 to 1.
        choice: "importance" or "random".
        age_weight: what a token gains in N token steps without being computed.
        seed: for the random choice.
        rules: what is set by hand; None for the published rules of DiT, PixArt-alpha and FLUX, and for the same share
            everywhere with other classes.

    Raises:
        FestinaError: a knob is out of its range, or the denoiser has nothing that can be computed by token.
    """
    rules = rules or _published(_TOCA, pipe)
    settings, remainders = _beginning(steps, interval, ratio, choice, age_weight, seed, rules)
    kinds = [COMPUTE if not remainder else PARTIAL for remainder in remainders]
    return _plan(pipe, kinds, (), "toca", settings, rules)


def duca(
    pipe: Any,
    steps: int,
    interval: int,
    ratio: float,
    choice: str = RANDOM,
    age_weight: float = 0.25,
    seed: int = 0,
    rules: Rules | None = None,
) -> Plan:
    """The schedule of DuCa (arXiv 2412.18911; constants as in its released code): full steps as in `toca`; of the steps
    between them those of an odd remainder compute some tokens, and those of an even one reuse the whole stack.

    The remainder is that of the number by which full steps are counted, and the interval. The released code puts what
    left the last block in the place of what leaves it; here it is the change that the stack made, out - in, which is
    added to the present input. Tokens are chosen at random, as in the second version of the paper.

    Args:
        pipe, steps, interval, ratio, choice, age_weight, seed, rules: see `toca`. Published: interval 3, with ratio
            0.05 for DiT and 0.75 for PixArt-alpha.

    Raises:
        FestinaError: as `toca`, or the denoiser has no stack of blocks.
    """
    rules = rules or _published(_DUCA, pipe)
    settings, remainders = _beginning(steps, interval, ratio, choice, age_weight, seed, rules)
    kinds = [COMPUTE if not remainder else PARTIAL if remainder % 2 else REUSE for remainder in remainders]
    return _plan(pipe, kinds, stack_runs(find_denoiser(pipe)), "duca", settings, rules)


def full_steps(steps: int, interval: int, rules: Rules) -> tuple[int, ...]:
    """For each step the remainder of its number and the interval in force; 0 for a full step.

    Args:
        steps: sampling steps, at least 1.
        interval: N, at least 1.
        rules: how steps are counted and intervals change.

    Raises:
        FestinaError: `steps` or `interval` is less than 1.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    want_whole("the interval", interval, 1)
    found, now, last = [], interval, 0
    for step in range(steps):
        remaining = steps - 1 - step
        count = {UP: step, DOWN: remaining, SINCE: step - last}[rules.counts]
        remainder = count % now if step >= rules.warm_up else 0
        if not remainder:
            last = step
            now = max(1, round(interval / (1 - rules.early + 2 * rules.early * _over(step, steps, rules))))
            if rules.sensitive and int(0.2 * steps) <= remaining < int(0.4 * steps):
                now = 2
        found.append(remainder)
    return tuple(found)


def share_of(site: Site, layers: int, step: int, steps: int, ratio: float, rules: Rules) -> float:
    """The share of its tokens that a component computes in a step, in [0, 1].

    Args:
        site: the component.
        layers: blocks of its stack.
        step, steps: the step, and how many there are.
        ratio, rules: see `toca`.
    """
    layer = int(site.block.rpartition(".")[2])
    depth = max(1, (rules.layers or layers) - 1)
    by_step = 1 - rules.step_weight + 2 * rules.step_weight * _over(step, steps, rules)
    by_layer = 1 + rules.layer_weight - 2 * rules.layer_weight * layer / depth
    share = ratio * by_step * by_layer * rules.roles.get(site.role, 1.0) * rules.stacks.get(site.stack, 1.0)
    return min(1.0, max(0.0, share))


def _over(step: int, steps: int, rules: Rules) -> float:
    """The share of a run that is over, as the released codes count it."""
    return (step + 1 if rules.counts == DOWN else step) / steps


def _of_full_steps(rules: Rules, interval: int, ratio: float) -> Rules:
    """The rules of full steps: without tokens the released code leaves intervals as they are."""
    return rules if ratio and interval > 1 else replace(rules, early=0.0, sensitive=False)


def _published(known: Mapping[str, Rules], pipe: Any) -> Rules:
    """The rules of the denoiser's class; for other classes the same share everywhere."""
    return known.get(type(find_denoiser(pipe)).__name__, Rules())


def _beginning(
    steps: int, interval: int, ratio: float, choice: str, age_weight: float, seed: int, rules: Rules
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The settings of a plan and the remainders of its steps, see `full_steps`; raises like `toca`."""
    want_whole("the interval", interval, 1)
    if not is_number(ratio) or not 0 <= ratio <= 1:
        raise FestinaError(f"the ratio is {ratio!r:.40}; wanted a share of the tokens from 0 to 1.")
    if not is_number(age_weight):
        raise FestinaError(f"the age weight is {age_weight!r:.40}; wanted a number of at least 0.")
    settings = {
        "interval": interval,
        "ratio": ratio,
        "choice": choice,
        "age_weight": age_weight,
        "seed": seed,
        "rules": asdict(rules),
    }
    return settings, full_steps(steps, interval, _of_full_steps(rules, interval, ratio))


def _plan(
    pipe: Any, kinds: Sequence[str], runs: Sequence[str], method: str, settings: Mapping[str, Any], rules: Rules
) -> Plan:
    """The plan of steps that compute everything, some tokens, or nothing.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        kinds: `C`, `T` or `R` for each step.
        runs: runs of blocks that are served in a step of kind `R`.
        method, settings: see `festina.Plan`.
        rules: those of the shares.
    """
    denoiser = find_denoiser(pipe)
    sites, name = component_sites(denoiser), type(denoiser).__name__
    if not any(site.role in BY_TOKEN for site in sites):
        raise FestinaError(f"{name} has no feed-forward and no cross-attention that could be computed by token.")
    layers: dict[str, set[str]] = {}
    for site in sites:
        layers.setdefault(site.stack, set()).add(site.block)
    rows = []
    for step, (noise, kind) in enumerate(zip(even_noise(len(kinds)), kinds, strict=True)):
        if kind != PARTIAL:
            rows.append(Step(noise, kind * (len(runs) + len(sites))))
            continue
        own = [PARTIAL if site.role in BY_TOKEN else REUSE for site in sites]
        shares = [
            share_of(site, len(layers[site.stack]), step, len(kinds), settings["ratio"], rules)
            if action == PARTIAL
            else 0.0
            for site, action in zip(sites, own, strict=True)
        ]
        rows.append(Step(noise, COMPUTE * len(runs) + "".join(own), shares=(*(0.0 for _ in runs), *shares)))
    tokens = Tokens(
        settings["choice"], settings["age_weight"] / settings["interval"], rules.bonus, rules.cell, settings["seed"]
    )
    names = (*runs, *(site.name for site in sites))
    return Plan(name, names, tuple(rows), method, settings, sampler_of(pipe), tokens=tokens)
