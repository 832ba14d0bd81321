"""Running a plan on a pipeline: attaching, the step clock, the store, serving, the run report."""

from festina.executor.attach import accelerate, apply, remove
from festina.executor.report import RunReport
from festina.executor.run import Run

__all__ = ["Run", "RunReport", "accelerate", "apply", "remove"]
