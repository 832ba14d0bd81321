"""The step clock: which step of a run it is, and which branch of guidance the denoiser is called for."""

from __future__ import annotations

from festina.errors import FestinaError


class StepClock:
    """Counts the steps of a run and the denoiser calls.

    The scheduler drives it: `set_timesteps` starts a run, `step` ends a step. A step is one entry of the scheduler's
    timesteps, so a sampler of order 2 makes nearly two per step that the user asked for. A run that begins midway
    (a picture is changed, or handed on by another pipeline) begins at the row of its first entry.

    Attributes:
        steps: steps of the plan.
        running: whether a run is under way.
        step: index of the current step, 0 = noisiest; `steps` in a first step that no row of the plan fits (see
            `festina.executor.run.Run.begin_at`).
        first: the run's first step; None until it is known.
        ended: steps that ended since the run began.
        branch: name of the denoiser call under way.
        calls: denoiser calls that the pipeline made since the run began.
        passes: how often the denoiser itself ran since then.
        context: diffusers' cache context, if one is set.
        signature: shapes of the tensors of the denoiser call under way.
        passing: whether everything runs as if no plan were applied, as while a call is traced.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.running = False
        self.step = 0
        self.first: int | None = 0
        self.ended = 0
        self.branch = ""
        self.calls = 0
        self.passes = 0
        self.context: str | None = None
        self.signature: tuple[tuple[int, ...], ...] = ()
        self.passing = False

    def start(self, steps: int, made_by: str = "") -> None:
        """Begin a run.

        Args:
            steps: steps it makes from pure noise to the picture.
            made_by: where this number comes from, in words.

        Raises:
            FestinaError: the sampler makes another number of steps than the plan has.
        """
        if steps != self.steps:
            raise FestinaError(
                f"the plan has {self.steps} steps, this run {steps}{f' ({made_by})' if made_by else ''}. Use as many "
                f"num_inference_steps as make {self.steps}, or apply plan.resample({steps})."
            )
        self.running, self.step, self.first = True, 0, 0
        self.ended, self.calls, self.passes = 0, 0, 0

    def begin_call(self) -> None:
        """Count a denoiser call.

        Raises:
            FestinaError: no run is under way.
        """
        if not self.running:
            raise FestinaError(
                "the denoiser was called outside a sampling run, so no step of the plan applies. Call the pipeline "
                "(after replacing its scheduler, remove and apply the plan again), or drive the clock yourself with "
                "run.start(steps) and run.next_step()."
            )
        self.calls += 1

    def next_step(self) -> bool:
        """End the current step; True if it was the last one of the run."""
        self.ended += 1
        self.step += 1
        if self.step >= self.steps:
            self.running = False
        return not self.running

    def stop(self) -> None:
        """End the run, wherever it is."""
        self.running = False
