"""Tiny instances of the transformer classes from Qwen-Image to Z-Image (in the alphabet) and which are left out."""

from __future__ import annotations

from denoisers import transformers_c_image, transformers_c_other, transformers_c_sana, transformers_c_wan
from denoisers.tiny_class import TinyClass

CLASSES: dict[str, TinyClass] = {
    **transformers_c_image.CLASSES,
    **transformers_c_wan.CLASSES,
    **transformers_c_sana.CLASSES,
    **transformers_c_other.CLASSES,
}

LEFT_OUT: dict[str, str] = {
    "TransformerTemporalModel": (
        "a part of UNet3DConditionModel and I2VGenXLUNet, which no sampling loop calls: it takes features instead of "
        "latents, and its blocks ignore the timestep"
    ),
}
