"""How far a step of a plan answers ahead: what one denoiser call can answer, seen by the schedule alone.

`Step.ahead` says for how many of the following steps a denoiser call answers at once (Faster Diffusion's parallel
decoder, arXiv 2312.09608). Whether a denoiser can do that is seen where a plan is attached (`festina.executor.ahead`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from festina.names import FEATURE, parse
from festina.records import COMPUTE, Step


def cut_ahead(sites: Sequence[str], steps: Sequence[Step]) -> list[Step]:
    """The steps, each with `ahead` cut to what one call can answer.

    That is up to the end of the plan, to a step that does something else than the first of these, to one that replays
    the last answer, and to one in which a region of a U-Net computes. A step that is answered ahead itself does not
    call the denoiser and answers none.

    Args:
        sites: names of the plan's sites.
        steps: its steps, their actions in canonical form.
    """
    regions = [index for index, site in enumerate(sites) if parse(site).kind == FEATURE]
    rows: list[Step] = []
    answered = 0
    for place, step in enumerate(steps):
        length = 0 if answered else _alike(step, steps[place + 1 : place + 1 + step.ahead], regions)
        rows.append(replace(step, ahead=length))
        answered = length or max(0, answered - 1)
    return rows


def _alike(step: Step, follow: Sequence[Step], regions: Sequence[int]) -> int:
    """How many of the steps that follow one call can answer."""
    for length, other in enumerate(follow):
        same = (other.actions, other.branches) == (follow[0].actions, step.branches)
        if not same or not other.visits or any(other.actions[index] == COMPUTE for index in regions):
            return length
    return len(follow)
