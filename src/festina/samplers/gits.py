"""GITS (Chen et al., arXiv 2405.11326): the steps of a few-step sampler, chosen among those of a fine one.

Sampling trajectories have nearly the same shape for all pictures, so that the cost of every jump from one node of a
fine run to another, measured on a few pictures, says which few nodes to keep: those of the cheapest path, which dynamic
programming finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from festina.errors import FestinaError
from festina.samplers.recording import Trajectory

__all__ = ["COSTS", "cheapest_path", "gits_noises", "jump_costs"]

Costs = NDArray[np.float64]
Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def gits_noises(teacher: Trajectory, steps: int, discount: float = 1.15, cost: str = "deviation") -> tuple[float, ...]:
    """Levels of the network calls of a sampler with few steps, for `SolverTable`s; it ends where the teacher ends.

    Args:
        teacher: a fine run of some pictures; the authors take 60 steps of 256 pictures.
        steps: network calls, from 1 to the teacher's.
        discount: gamma, weight of all that comes after a jump; the authors take 1.15, and 0.8 to 1.2 for Stable
            Diffusion. Above 1, late jumps count more.
        cost: a name of `COSTS`.

    Raises:
        FestinaError: a number of steps, discount or cost that is not known.
    """
    return tuple(teacher.noises[node] for node in cheapest_path(jump_costs(teacher, cost), steps, discount)[:-1])


def jump_costs(teacher: Trajectory, cost: str = "deviation") -> Costs:
    """The cost of a first-order step from each node of a fine run to each later one, the mean over its pictures.

    Args:
        teacher: samples and outputs at nodes 0 (noise) to M (end).
        cost: how far the step's end lies from the run. "l1", "l2": norm of the difference to the run's sample.
            "deviation": how much further it lies from the straight line from the run's first to its last sample than
            the run's sample does; it may be negative.

    Returns:
        (M + 1, M + 1) in float64; infinite where a step would not go forward.

    Raises:
        FestinaError: a cost that is not known.
    """
    if cost not in COSTS:
        raise FestinaError(f"no cost of jumps is called {cost!r}. Use one of {', '.join(COSTS)}.")
    places, states, slopes = _straightened(teacher)
    count = len(places)
    found = np.full((count, count), np.inf)
    for start in range(count - 1):
        for end in range(start + 1, count):
            jumped = states[start] + (places[end] - places[start]) * slopes[start]
            found[start, end] = COSTS[cost](jumped, states[end], states[0], states[-1]).mean()
    return found


def cheapest_path(costs: Costs, steps: int, discount: float = 1.0) -> tuple[int, ...]:
    """The cheapest path of so many jumps from the first node to the last: the exact minimum, by dynamic programming.

    A path's cost is that of its first jump plus `discount` times that of the rest of the path, and so on.

    Args:
        costs: (nodes, nodes), cost of the jump from a node to a later one.
        steps: jumps, from 1 to one less than the nodes.
        discount: above 0.

    Returns:
        the nodes of the path, first and last ones included; of equally cheap ones, that with the earlier nodes.

    Raises:
        FestinaError: such a path does not exist.
    """
    last = len(costs) - 1
    if not 1 <= steps <= last or not discount > 0:
        raise FestinaError(
            f"a path of {steps} jumps with discount {discount:g} through {last + 1} nodes was asked for. Use 1 to "
            f"{last} jumps and a discount above 0."
        )
    forward = np.where(np.triu(np.ones_like(costs, dtype=bool), 1), costs, np.inf)
    rest, choices = forward[:, last], []
    for _ in range(steps - 1):
        through = forward + discount * rest
        choices.append(through.argmin(1))
        rest = through.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return (*path, last)


def _straightened(teacher: Trajectory) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """Places of the nodes, samples and slopes (M, pictures, values) where a first-order step is a straight line.

    For flow models that is the sample over sigma, whose slope is noise - picture; otherwise x / alpha over
    sigma / alpha, whose slope is the noise.
    """
    levels, flow = teacher.levels, teacher.frame.family == "flow"
    slopes = []
    for level, sample, output in zip(levels[:-1], teacher.samples[:-1].double(), teacher.outputs.double(), strict=True):
        picture, noise = teacher.frame.predictions(output, sample, level)
        slopes.append(noise - picture if flow else noise)
    scales = [1.0 if flow else level.alpha for level in levels]
    states = [sample / scale for sample, scale in zip(teacher.samples.double(), scales, strict=True)]
    places = [level.sigma if flow else level.sigma_hat for level in levels]
    return places, torch.stack(states).flatten(2), torch.stack(slopes).flatten(2)


def _length(vectors: torch.Tensor, power: int) -> torch.Tensor:
    return vectors.abs().pow(power).sum(1).pow(1 / power)


def _norm(power: int) -> Measure:
    def measured(jumped: torch.Tensor, state: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return _length(jumped - state, power)

    return measured


def _deviation(jumped: torch.Tensor, state: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    chord = torch.nn.functional.normalize(last - first, dim=1)

    def away(point: torch.Tensor) -> torch.Tensor:
        offset = point - first
        return _length(offset - (offset * chord).sum(1, keepdim=True) * chord, 2)

    return away(jumped) - away(state)


COSTS: Mapping[str, Measure] = {"deviation": _deviation, "l1": _norm(1), "l2": _norm(2)}
"""Costs of a jump by name: of its end, the run's sample there, its first and its last one, (pictures, values) each."""
