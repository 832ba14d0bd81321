"""Calibration: runs of the untouched pipeline that measure what several methods need, as plain numbers."""

from festina.calibration.record import Calibration
from festina.calibration.running import calibrate

__all__ = ["Calibration", "calibrate"]
