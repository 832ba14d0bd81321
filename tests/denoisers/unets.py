"""Tiny instances of the U-Net classes of diffusers with the inputs of one forward call, and which are left out."""

from __future__ import annotations

from denoisers import unets_image, unets_other, unets_video
from denoisers.tiny_class import TinyClass

CLASSES: dict[str, TinyClass] = {**unets_image.CLASSES, **unets_video.CLASSES, **unets_other.CLASSES}

LEFT_OUT: dict[str, str] = {
    "MotionAdapter": "a container of motion modules that UNetMotionModel takes over; its own forward does nothing",
}
