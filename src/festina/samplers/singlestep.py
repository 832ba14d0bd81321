"""Singlestep DPM-Solver (Lu et al., arXiv 2206.00927, section 3) and DPM-Solver++ (2211.01095, section 4) as tables.

A step of order k makes k network calls at levels of its own and looks back on none before it. After each of its calls
the sample goes from the step's first level to the next one: by the first order after the first call, by the second
after the second, and so on. A call after the first thus starts again from the sample at the beginning of the step. The
table says that sample by the current one and by what was added to it since, as the tables of PNDM do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from festina.errors import FestinaError
from festina.samplers.coefficients import first_order, higher_order_weights, kind_of
from festina.samplers.frames import Frame, NoiseLevel
from festina.samplers.table import LinearWeights, SolverStep, SolverTable

__all__ = ["call_orders", "singlestep"]

SOLVERS = ("data", "data_released", "noise", "noise_released")
_HIGHEST = 3


def singlestep(
    frame: Frame,
    noises: Sequence[float],
    solver: str = "data_released",
    order: int = 2,
    final_noise: float = 0.0,
    lower_order_final: bool = True,
) -> SolverTable:
    """Singlestep DPM-Solver or DPM-Solver++ on a grid, as diffusers' `DPMSolverSinglestepScheduler`.

    Args:
        frame: of the model.
        noises: levels of the network calls, falling, those within a step among them.
        solver: "data_released" and "noise_released" are diffusers' solver_type "midpoint": the second order weighs its
            difference as the first order weighs an output, and the third order leaves the call in the middle out of
            its last difference. "data" and "noise" are exact, diffusers' "heun".
        order: of the steps, 1 to 3.
        final_noise: level that the last step ends at, 0 = clean.
        lower_order_final: whether the last steps are of lower orders (see `call_orders`).

    Returns:
        a table with a step per network call, in those after a step's first one weights of their own.

    Raises:
        FestinaError: another solver or order; levels that the model does not have or that do not fall; all steps of one
            order with a clean end or a number of calls that the order does not divide; a noise form at pure noise.
    """
    if solver not in SOLVERS:
        raise FestinaError(f"no singlestep solver is called {solver!r}. Use one of {', '.join(SOLVERS)}.")
    if any(following >= noise for noise, following in pairwise(noises)):
        shown = ", ".join(f"{noise:.4g}" for noise in noises)
        raise FestinaError(f"the levels {shown} do not fall from call to call. Use distinct ones, noisiest first.")
    orders = call_orders(len(noises), order, clean=final_noise == 0, lower_order_final=lower_order_final)
    levels = [frame.level(noise) for noise in (*noises, final_noise)]
    form = kind_of(solver).form
    if form == "noise" and levels[0].alpha == 0:
        raise FestinaError(
            f"a step from pure noise weighs the noise infinitely, so {solver} cannot begin there. Use a data form."
        )
    steps: list[SolverStep] = []
    for place, own in enumerate(orders):
        if own == 1:
            steps.append(SolverStep(noises[place], form, 1))
            continue
        start = place - own + 1
        before = _weights(frame, solver, levels[start : place + 1])
        after = _weights(frame, solver, levels[start : place + 2])
        share = after[0] / before[0]
        outputs = [
            after[1][-1],
            *(new - share * old for new, old in zip(after[1][-2::-1], before[1][::-1], strict=True)),
        ]
        linear = LinearWeights(tuple(outputs), form, share)
        steps.append(SolverStep(noises[place], linear=linear))
    return SolverTable(tuple(steps), final_noise).checked(frame)


def call_orders(calls: int, order: int, clean: bool = True, lower_order_final: bool = True) -> list[int]:
    """The order of the update after each network call: 1, 2, 3, 1, 2, 3, ... for steps of order 3.

    With `lower_order_final` the calls that are left over make a step of a lower order, and where none are left over the
    last step is cut in two: for order 3 the pattern of DPM-Solver-fast (2206.00927). A step to the clean end is of
    order 1.

    Args:
        calls: network calls, at least 1.
        order: of the steps, 1 to 3.
        clean: whether the last step ends at noise 0, where higher orders are not defined.
        lower_order_final: whether to lower the last orders so.

    Raises:
        FestinaError: no calls, another order; without `lower_order_final` a clean end, or calls left over.
    """
    if not 1 <= order <= _HIGHEST:
        raise FestinaError(f"singlestep solvers have no order {order}. Use an order from 1 to {_HIGHEST}.")
    if calls < 1:
        raise FestinaError("a table of 0 network calls was asked for. Use 1 or more.")
    if not lower_order_final and order > 1 and (clean or calls % order):
        raise FestinaError(
            f"{calls} network calls with {'a clean' if clean else 'a noisy'} end cannot all be in steps of order "
            f"{order}. Use lower_order_final=True, or a final_noise above 0 and a multiple of {order} calls."
        )
    whole, left = divmod(calls, order)
    sizes = [order] * whole + [left] * (left > 0)
    last = sizes[-1]
    if last > 1 and (clean or (lower_order_final and left == 0)):
        sizes[-1:] = [last - 1, 1]
    return [own for size in sizes for own in range(1, size + 1)]


def _weights(frame: Frame, solver: str, levels: Sequence[NoiseLevel]) -> tuple[float, list[float]]:
    """Weights of a step's first sample and of its outputs, in the order of its calls, in the sample at the last level.

    Args:
        frame: of the model.
        solver: one of `SOLVERS`.
        levels: of the step's calls so far, the first one first, and the level that the sample goes to.
    """
    *nodes, target = levels
    kind = kind_of(solver)
    sample, first = first_order(nodes[0], target, kind.form)
    places = list(range(len(nodes)))
    if len(nodes) == _HIGHEST and solver != kind.form:
        # As released, the third order is the exact second one with the last call's output.
        kind, places = kind_of(kind.form), [0, len(nodes) - 1]
    outputs = [0.0] * len(nodes)
    outputs[0] = first
    for place, weight in zip(
        places, higher_order_weights(frame, kind, [nodes[p] for p in places], target), strict=True
    ):
        outputs[place] += float(weight)
    return sample, outputs
