"""Every fixture there is, and what has none and why."""

from __future__ import annotations

from denoisers import (
    audio,
    cog,
    flux,
    hunyuan,
    image_editing,
    images,
    kandinsky,
    ltx,
    lumina,
    minimax,
    pixart,
    protein,
    qwen,
    sana,
    unets_image,
    unets_video,
    videos,
    wan,
    wan_relatives,
)
from denoisers.tiny_class import TinyClass

CLASSES: dict[str, TinyClass] = {
    **audio.CLASSES,
    **cog.CLASSES,
    **flux.CLASSES,
    **hunyuan.CLASSES,
    **image_editing.CLASSES,
    **images.CLASSES,
    **kandinsky.CLASSES,
    **ltx.CLASSES,
    **lumina.CLASSES,
    **minimax.CLASSES,
    **pixart.CLASSES,
    **protein.CLASSES,
    **qwen.CLASSES,
    **sana.CLASSES,
    **unets_image.CLASSES,
    **unets_video.CLASSES,
    **videos.CLASSES,
    **wan.CLASSES,
    **wan_relatives.CLASSES,
}
"""Fixtures by class name, with what is special about it behind a hyphen where a class has several."""

LEFT_OUT: dict[str, str] = {
    "DreamLiteTransformer2DModel": (
        "no denoiser of its own: the attention part of the DreamLite U-Net's blocks, which takes hidden states in the "
        "middle of that network and uses no timestep with its default norm; no pipeline calls it"
    ),
    "MiniMaxMusic3RVQDepthDecoder": (
        "no denoiser: it takes no time, and samples the codes of one frame of sound one after the other, "
        "before the sampling loop of the music transformer begins"
    ),
    "MotionAdapter": "a container of motion modules that UNetMotionModel takes over; its own forward does nothing",
    "TransformerTemporalModel": (
        "a part of UNet3DConditionModel and I2VGenXLUNet, which no sampling loop calls: it takes features instead of "
        "latents, and its blocks ignore the timestep"
    ),
}
"""Classes of diffusers without a fixture, with the reason."""
