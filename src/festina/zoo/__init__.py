"""The small pipelines that ship with Festina, and loading any other."""

from festina.zoo.denoisers import load_denoiser
from festina.zoo.loading import SHIPPED, SMALL, call_arguments, load, shipped_judge, shipped_plan

__all__ = ["SHIPPED", "SMALL", "call_arguments", "load", "load_denoiser", "shipped_judge", "shipped_plan"]
