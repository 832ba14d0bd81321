"""The step clock: which step of a run it is, and which branch of guidance the denoiser is called for."""

from __future__ import annotations

from collections import Counter

from festina.errors import FestinaError


class StepClock:
    """Counts the steps of a run and the denoiser calls within a step.

    The scheduler drives it: `set_timesteps` starts a run, `step` ends a step. A branch is named by diffusers' cache
    context where a pipeline sets one, and by the call's place within the step where it does not.

    Attributes:
        step: index of the current step, 0 = noisiest.
        branch: name of the denoiser call under way.
        calls: denoiser calls since the run began.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.running = False
        self.step = 0
        self.branch = ""
        self.calls = 0
        self.context: str | None = None
        self._within_step: Counter[str] = Counter()

    def start(self, steps: int) -> None:
        """Begin a run.

        Raises:
            FestinaError: the sampler makes another number of steps than the plan has.
        """
        if steps != self.steps:
            raise FestinaError(
                f"the plan has {self.steps} steps, this run {steps}. Use num_inference_steps={self.steps}, or apply "
                f"plan.resample({steps})."
            )
        self.running, self.step, self.calls = True, 0, 0
        self._within_step.clear()

    def begin_call(self) -> str:
        """Name the denoiser call that starts now.

        Raises:
            FestinaError: no run is under way.
        """
        if not self.running:
            raise FestinaError(
                "the denoiser was called outside a sampling run, so no step of the plan applies. Call the pipeline "
                "(after replacing its scheduler, remove and apply the plan again), or drive the clock yourself with "
                "run.start(steps) and run.next_step()."
            )
        name = self.context or "call"
        place = self._within_step[name]
        self._within_step[name] += 1
        self.calls += 1
        self.branch = f"{name}#{place}"
        return self.branch

    def next_step(self) -> bool:
        """End the current step; True if it was the last one of the run."""
        self.step += 1
        self._within_step.clear()
        if self.step == self.steps:
            self.running = False
        return not self.running

    def stop(self) -> None:
        """End the run, wherever it is."""
        self.running = False
        self._within_step.clear()
