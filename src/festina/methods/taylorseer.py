"""TaylorSeer: between full steps, forecast what would have been computed (arXiv 2503.06923)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from festina.forecasts import TAYLOR
from festina.methods.columns import letters, plan_of_columns, want_one_of, want_whole
from festina.plan import COMPUTE, FORECASTS, MAX_STEPS, REUSE, Plan
from festina.sites import component_sites, find_denoiser, site_tree, stack_runs
from festina.sites.discovery import SELF

COMPONENTS, LAST = "components", "last"
PUBLISHED, DIFFUSERS = "published", "diffusers"


def taylorseer(
    pipe: Any,
    steps: int,
    interval: int,
    order: int = 1,
    warm_up: int = 2,
    basis: str = TAYLOR,
    sites: str = COMPONENTS,
    schedule: str = PUBLISHED,
) -> Plan:
    """The static schedule of TaylorSeer (arXiv 2503.06923; warm-up and growth of the order as in its released code).

    The first `warm_up` steps are full, then one in every `interval`. In the steps between, every component's output
    is forecast from the last full steps. A forecast has as many differences as were formed since the warm-up, at most
    `order`; where there is none yet, the last value is held.

    Args:
        pipe: a diffusers pipeline or its denoiser.
        steps: sampling steps, at least 1.
        interval: steps from one full step to the next after the warm-up, at least 1; 1 computes everything.
        order: highest order of a forecast, 0 to 9; 0 holds the last value. Each order keeps one more tensor per site.
        warm_up: full steps at the beginning, at least 1.
        basis: "taylor" as published, "newton" (exact for polynomials of the order) or "hermite" (HiCache, arXiv
            2508.16984); see `festina.forecasts`.
        sites: "components", or "last": the whole stack of a transformer as one site, so that one tensor per stream and
            order is kept. The published light form keeps what leaves the last block and puts its forecast in the
            stack's place; here it is the stack's change, out - in, that is forecast and added to the present input.
        schedule: "published", or "diffusers": the rule of the port in diffusers, in which the first full step after
            the warm-up is the second one after it, and differences are formed from the second step on.

    Raises:
        FestinaError: a knob is out of its range, the denoiser has no components, or for "last" no stack of blocks.
    """
    want_whole("the order", order, 0, len(FORECASTS))
    want_one_of("sites", sites, (COMPONENTS, LAST))
    denoiser = find_denoiser(pipe)
    full = full_steps(steps, interval, warm_up, schedule)
    # The released code forms no difference before the last step of the warm-up.
    first = max(warm_up - 1, 1) if schedule == PUBLISHED else 1
    forecast = "".join(
        COMPUTE if computes else _letter(min(order, int(full[first : step + 1].sum())))
        for step, computes in enumerate(full)
    )
    if sites == LAST:
        columns = dict.fromkeys(stack_runs(denoiser), forecast)
    else:
        unread, held = unread_components(denoiser), letters(full)
        columns = {site.name: held if site.name in unread else forecast for site in component_sites(denoiser)}
    settings = {
        "interval": interval,
        "order": order,
        "warm_up": warm_up,
        "basis": basis,
        "sites": sites,
        "schedule": schedule,
    }
    return plan_of_columns(pipe, columns, "taylorseer", settings, basis)


def full_steps(steps: int, interval: int, warm_up: int, schedule: str = PUBLISHED) -> NDArray[np.bool_]:
    """Which steps TaylorSeer computes, bool (steps,).

    Args:
        steps, interval, warm_up, schedule: see `taylorseer`.

    Raises:
        FestinaError: a knob is out of its range.
    """
    want_whole("the number of steps", steps, 1, MAX_STEPS)
    want_whole("the interval", interval, 1)
    want_whole("the warm-up", warm_up, 1)
    want_one_of("the schedule", schedule, (PUBLISHED, DIFFUSERS))
    step = np.arange(steps)
    anchor = warm_up - 1 if schedule == PUBLISHED else warm_up + 1
    marks: NDArray[np.bool_] = (step < warm_up) | ((step - anchor) % interval == 0)
    return marks


def unread_components(denoiser: nn.Module) -> frozenset[str]:
    """Components that nothing reads where all others are served, so that holding them does as well as a forecast.

    Where a feed-forward is taken apart into single layers, as in FLUX's single blocks, only its last layer reads the
    layers that open it; if that one is wider than they are, it reads the block's attention beside them. TaylorSeer's
    released code keeps the last layer's output alone in such blocks.
    """
    unread: set[str] = set()
    for block in site_tree(denoiser).blocks:
        layers = {}
        for part in block.parts:
            module = denoiser.get_submodule(f"{block.path}.{part.name}" if part.name else block.path)
            read, returned = getattr(module, "in_features", None), getattr(module, "out_features", None)
            if isinstance(read, int) and isinstance(returned, int):
                layers[part.name] = read, returned
        opening = {name: returned for name, (read, returned) in layers.items() if returned > read}
        closing = [size for size in layers.values() if size[0] > size[1]]
        if not opening or len(closing) != 1:
            continue
        ((read, returned),) = closing
        unread |= {f"{block.path}.{name}" for name in opening}
        if read - max(opening.values()) == returned:
            unread |= {f"{block.path}.{part.name}" for part in block.parts if part.role == SELF}
    return frozenset(unread)


def _letter(order: int) -> str:
    return str(order) if order else REUSE
