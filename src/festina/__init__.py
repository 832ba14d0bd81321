"""Festina: makes off-the-shelf diffusion pipelines faster without retraining them.

`accelerate(pipe, plan)` runs a diffusers pipeline by a plan: a small file that says which part of the denoiser is
computed and which is reused in each sampling step. Plans come from published methods (`festina.methods`) or are
learned for a model by a search (`festina.search`, `festina search` on the command line). `calibrate` measures what some
of the methods need.
"""

from festina.calibration import Calibration, calibrate
from festina.errors import FestinaError
from festina.executor import Run, RunReport, accelerate, apply, remove
from festina.plan import Plan, Step

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "FestinaError",
    "Plan",
    "Run",
    "RunReport",
    "Step",
    "accelerate",
    "apply",
    "calibrate",
    "remove",
]
