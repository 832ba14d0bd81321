"""The small pipelines that ship with Festina, and loading any other."""

from festina.zoo.loading import SHIPPED, call_arguments, load, shipped_judge, shipped_plan

__all__ = ["SHIPPED", "call_arguments", "load", "shipped_judge", "shipped_plan"]
