"""Which modules really ran in which step of a run by a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

import festina
from festina import Plan
from festina.sites import find_denoiser


def steps_run(pipe: Any, plan: Plan, paths: Iterable[str], call: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """The steps in which the modules at these paths ran, told by a hook on the first layer within each.

    Args:
        pipe: a pipeline.
        plan: the plan to run it by.
        paths: paths of modules of its denoiser; none may be a single layer, whose own hooks also see served calls.
        call: runs the pipeline.
    """
    seen: dict[str, set[int]] = {path: set() for path in paths}
    handles = []
    try:
        with festina.accelerate(pipe, plan) as run:
            for path, steps in seen.items():
                module = find_denoiser(pipe).get_submodule(path)
                leaf = next(inner for inner in module.modules() if isinstance(inner, nn.Linear | nn.Conv2d))
                assert leaf is not module
                handles.append(leaf.register_forward_hook(lambda *_, steps=steps: steps.add(run.clock.step)))
            call()
    finally:
        for handle in handles:
            handle.remove()
    return {path: tuple(sorted(steps)) for path, steps in seen.items()}
