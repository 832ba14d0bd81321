"""A toy pipeline with a scheduler, around the exact networks of `samplers_toy`."""

from __future__ import annotations

import diffusers
import torch
from samplers_toy import BETAS, CENTRES, levels_of, noise, run

from festina.samplers import PlanScheduler, SolverTable
from festina.samplers.recording import Trajectory, record
from festina.samplers.times import table_on, uniform_log_snr


class ToyPipe:
    """Draws points of a mixture in float64, with a `PlanScheduler` as its scheduler."""

    def __init__(self, flow: bool = False, centres: torch.Tensor = CENTRES) -> None:
        self.prediction = "flow_prediction" if flow else "epsilon"
        self.centres = centres
        source = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if flow else None
        self.scheduler = source or diffusers.DPMSolverMultistepScheduler(**BETAS)
        self.frame = PlanScheduler.from_scheduler(self.scheduler).frame

    def __call__(self, steps: int, seed: int = 0, samples: int = 64) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        start = noise(seed, samples, torch.float64)
        return run(self.scheduler, levels_of(self.scheduler), start, self.prediction, self.centres)

    def drawn(self, table: SolverTable, seed: int = 0, samples: int = 64) -> torch.Tensor:
        """Points drawn by a table."""
        scheduler = self.scheduler
        self.scheduler = PlanScheduler.from_scheduler(scheduler, table)
        try:
            return self(table.calls, seed, samples)
        finally:
            self.scheduler = scheduler

    def teacher(self, steps: int, seed: int = 0, samples: int = 64) -> Trajectory:
        """A first-order run on even steps of the log signal-to-noise ratio."""
        table = table_on(self.frame, uniform_log_snr(self.frame, steps), order=1)
        return record(self, table, lambda: self(steps, seed, samples))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square difference."""
    return float((found - wanted).square().mean().sqrt())
