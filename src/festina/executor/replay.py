"""Giving a denoiser's last answer again instead of calling it, as LTC-Accel does (arXiv 2503.09675).

The paper repeats the last change of the latents. Here the network's answer is repeated and the scheduler makes its own
step of it, so that its times, its history and what it returns stay what they are; for Euler steps of a velocity, or of
noise in sigma, both are the same.

The factor goes on each branch's answer, before the pipeline combines them. Guidance that is a weighted sum (also with
its rescaling) gives the same as a factor on the sum; a branch that has no answer to replay, and so is computed, is left
as it is; and a loop without a scheduler replays too. What is kept is a copy, and what is given out a new tensor: a
pipeline may do with either what it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.utils._pytree import tree_leaves, tree_map

from festina.errors import FestinaError
from festina.executor.clock import StepClock
from festina.executor.difference import is_amount
from festina.executor.store import Store
from festina.plan import Plan

LAST = "last answer"
"""Under this name the store keeps what the denoiser answered."""

_FRESH_NOISE = frozenset(
    {
        "CMStochasticIterativeScheduler",
        "CogVideoXDPMScheduler",
        "ConsistencyDecoderScheduler",
        "CosineDPMSolverMultistepScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DDPMWuerstchenScheduler",
        "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LCMScheduler",
        "LTXEulerAncestralRFScheduler",
        "RFD4ProteinaScheduler",
        "RePaintScheduler",
        "SASolverScheduler",
        "SCMScheduler",
        "ScoreSdeVeScheduler",
        "TCDScheduler",
        "UnCLIPScheduler",
    }
)
"""Schedulers of diffusers that add noise in every step as they come."""

_TOKENS = frozenset(
    {
        "AmusedScheduler",
        "BlockRefinementScheduler",
        "DiscreteDDIMScheduler",
        "EntropyBoundScheduler",
        "VQDiffusionScheduler",
    }
)
"""Schedulers of diffusers that draw tokens instead of moving latents."""


class Replay:
    """The last answers of a run, and where they are given again.

    Args:
        plan: the plan, in canonical form.
        clock, store: those of the run.
    """

    def __init__(self, plan: Plan, clock: StepClock, store: Store) -> None:
        self.factors = tuple(step.replay for step in plan.steps)
        self.clock, self.store = clock, store

    @property
    def has_replays(self) -> bool:
        """Whether there is a step that replays."""
        return any(factor is not None for factor in self.factors)

    def answer(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call: by the last answer of its branch where the plan says so and there is one, else by the call.

        There is none in the first call of a run that begins midway, of a branch, or of another expert, nor after a
        change of the batch, and a branch that was left out since the denoiser last ran has none that is as new.

        Args:
            call: gives the denoiser's answer, given its positional and its keyword arguments.
            args, kwargs: the arguments of this call.

        Raises:
            FestinaError: an answer that is to be replayed later holds no tensor.
        """
        if not self.has_replays:
            return call(args, kwargs)
        step, branch = self.clock.step, self.clock.branch
        factor = self.factors[step] if step < len(self.factors) else None
        kept = self.store.get(branch, LAST)
        if factor is not None and kept and all(other is not None for other in self.factors[kept[0].step + 1 : step]):
            replayed = scaled(kept[0].value, factor)
            if not self._read_after(step):
                self.store.trim(branch, LAST, 0)
            return replayed
        self.store.trim(branch, LAST, 0)
        answer = call(args, kwargs)
        if self._read_after(step):
            self.store.put(branch, LAST, step, scaled(answer, 1.0))
        return answer

    def begun_at(self, step: int, branches: Iterable[str]) -> None:
        """A run is known now to have begun at this step; its answers are kept no longer if the next does not replay."""
        if not self._read_after(step):
            for branch in branches:
                self.store.trim(branch, LAST, 0)

    def _read_after(self, step: int) -> bool:
        """Whether the step after this one replays; in a first step of unknown place it may."""
        return step == len(self.factors) or any(factor is not None for factor in self.factors[step + 1 : step + 2])


def scaled(answer: Any, factor: float) -> Any:
    """A denoiser's answer with every tensor of real or complex numbers in it multiplied: a copy, of the same structure.

    Raises:
        FestinaError: there is none in it.
    """
    if not any(is_amount(leaf) for leaf in tree_leaves(answer)):
        raise FestinaError(
            f"the plan replays what the denoiser answers, but in its {type(answer).__name__} no tensor is found. Use a "
            f"plan that replays nothing on it."
        )
    return tree_map(lambda leaf: leaf * factor if is_amount(leaf) else leaf, answer)


def why_not_replayed(scheduler: Any) -> str:
    """Why a sampler's steps cannot be made of an older answer; "" if they can.

    DDIM's `eta` and the churn of Euler samplers are told to each step and not seen here; leave them at 0.
    """
    kind = type(scheduler).__name__
    config = getattr(scheduler, "config", None) or {}
    if getattr(scheduler, "order", 1) != 1:
        return f"{kind} calls the denoiser {scheduler.order} times a step, and each call is for another half of it"
    noisy = kind in _FRESH_NOISE or str(config.get("algorithm_type", "")).startswith("sde")
    if noisy or config.get("stochastic_sampling") is True:
        return f"{kind} adds fresh noise in each step here, of which the last answer knows nothing"
    if kind == "PNDMScheduler" and not config.get("skip_prk_steps"):
        return f"{kind} begins with Runge-Kutta steps of several calls; it can be made with skip_prk_steps=True"
    if kind in _TOKENS:
        return f"{kind} draws tokens, which are not moved by an answer"
    return ""


def check_replay(scheduler: Any, plan: Plan) -> None:
    """See that a sampler can do what a plan replays.

    Args:
        scheduler: a diffusers scheduler.
        plan: the plan, in canonical form.

    Raises:
        FestinaError: it cannot.
    """
    if any(step.replays for step in plan.steps) and (reason := why_not_replayed(scheduler)):
        raise FestinaError(
            f"the plan replays the denoiser's last answer, but {reason}. Use a sampler that adds no noise and makes a "
            f"call per step, such as Euler's, or a plan that replays nothing."
        )
