"""Samplers: one diffusers scheduler that runs any solver, grid and order per step as a table of weights."""

from festina.samplers.coefficients import KINDS
from festina.samplers.compiling import compile_table
from festina.samplers.frames import Frame, NoiseLevel, shifted, unshifted
from festina.samplers.interpolation import order_within_ratio
from festina.samplers.run import SamplerRun
from festina.samplers.scheduler import PlanScheduler
from festina.samplers.sources import SOURCES
from festina.samplers.table import LinearWeights, SolverStep, SolverTable

__all__ = [
    "KINDS",
    "SOURCES",
    "Frame",
    "LinearWeights",
    "NoiseLevel",
    "PlanScheduler",
    "SamplerRun",
    "SolverStep",
    "SolverTable",
    "compile_table",
    "order_within_ratio",
    "shifted",
    "unshifted",
]
