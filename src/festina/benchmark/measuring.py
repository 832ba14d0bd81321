"""Making and judging the pictures of one variant."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from festina.benchmark.figures import Figures
from festina.benchmark.variants import Variant
from festina.errors import FestinaError
from festina.metrics.distances import frechet_distance, psnr
from festina.metrics.reward import Reward, scores_of
from festina.metrics.similarity import Similarity
from festina.peers import audit
from festina.report.comparison import Fidelity, png, strip
from festina.search.generation import generate_batch
from festina.search.workload import Workload

SHOWN = 8
"""Pictures on a contact sheet."""

MOST_PIXELS = 256
"""Height of a picture on a contact sheet, at most."""


@dataclass(frozen=True)
class Judges:
    """What looks at pictures.

    Attributes:
        reward: how well a picture shows its prompt.
        fidelity: what the Frechet distance is taken with; None for none.
        ssim, lpips: likeness to the uncached pictures; None where it cannot be had.
    """

    reward: Reward
    fidelity: Fidelity | None = None
    ssim: Similarity | None = None
    lpips: Similarity | None = None


@dataclass(frozen=True)
class Drawn:
    """Pictures and what drawing them took.

    Attributes:
        pictures: (count, 3, height, width) or (count, frames, 3, height, width) in [0, 1].
        macs: multiply-accumulates of the denoiser per picture; None where nothing counted them.
        held_bytes: most bytes held between steps, per picture; None where nothing counted them.
        notes: what was seen besides, a sentence each.
    """

    pictures: Tensor
    macs: int | None
    held_bytes: int | None
    notes: tuple[str, ...] = ()


def draw(pipe: Any, variant: Variant, workload: Workload) -> Drawn:
    """Draw the workload's pictures as a variant does. A gate decides anew in each batch, so all are counted.

    Raises:
        FestinaError: the variant cannot be run on this pipeline.
    """
    pictures = workload.pictures()
    drawn, macs, held = [], 0, 0
    notes: tuple[str, ...] = ()
    if variant.peer is not None:
        notes = audit(pipe, variant.peer, lambda: generate_batch(pipe, pictures[:1], workload, variant.steps)).notes
    with variant.running(pipe) as run:
        for start in range(0, len(pictures), workload.batch):
            part = pictures[start : start + workload.batch]
            drawn.append(generate_batch(pipe, part, workload, variant.steps))
            if run is not None:
                report = run.report()
                macs += report.macs
                held = max(held, math.ceil(report.peak_bytes / len(part)))
    if run is None:
        return Drawn(torch.cat(drawn), None, None, notes)
    return Drawn(torch.cat(drawn), round(macs / len(pictures)), held)


def look_at(drawn: Drawn, variant: Variant, workload: Workload, reference: Tensor, judges: Judges) -> Figures:
    """The figures of a variant's pictures.

    Args:
        drawn: the pictures.
        variant: how they were made.
        workload: their prompts.
        reference: the uncached pictures.
        judges: what looks at them.

    Raises:
        FestinaError: the reward gives no usable answer.
    """
    images = drawn.pictures
    return Figures(
        name=variant.name,
        key=variant.key,
        steps=variant.steps,
        plan=variant.plan,
        scores=scores_of(judges.reward, images, [prompt for prompt, _ in workload.pictures()], workload.batch),
        macs=drawn.macs,
        held_bytes=drawn.held_bytes,
        frechet=_frechet(images, judges.fidelity),
        error=_error(images, reference),
        ssim=_likeness(judges.ssim, images, reference),
        lpips=_likeness(judges.lpips, images, reference),
        notes=drawn.notes,
    )


def contact_sheet(images: Tensor) -> bytes:
    """The first pictures as one PNG file, side by side; of videos the frames side by side, one video below the other.

    Args:
        images: (count, 3, height, width) or (count, frames, 3, height, width) in [0, 1].
    """
    cells = [strip(image) for image in images[:SHOWN]]
    scale = min(1.0, MOST_PIXELS / cells[0].shape[-2])
    sheet: Image.Image = Image.open(io.BytesIO(png(torch.cat(cells, dim=1 if images.ndim == 5 else 2))))
    if scale < 1:
        sheet = sheet.resize((round(sheet.width * scale), round(sheet.height * scale)), Image.Resampling.LANCZOS)
    return _png_file(sheet)


def cut_apart(sheet: bytes, count: int, moving: bool) -> tuple[bytes, ...]:
    """The pictures of a contact sheet, a PNG file each.

    Args:
        sheet: the sheet, as `contact_sheet` made it.
        count: pictures of the workload it is of.
        moving: whether these are videos.
    """
    count = min(count, SHOWN)
    image = Image.open(io.BytesIO(sheet))
    width, height = (image.width, image.height // count) if moving else (image.width // count, image.height)
    corners = [(0, place * height) if moving else (place * width, 0) for place in range(count)]
    return tuple(_png_file(image.crop((left, top, left + width, top + height))) for left, top in corners)


def _png_file(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _frechet(images: Tensor, fidelity: Fidelity | None) -> float | None:
    return None if fidelity is None else frechet_distance(fidelity.features(images), fidelity.reference)


def _likeness(measure: Similarity | None, images: Tensor, reference: Tensor) -> float | None:
    """None where there is no such measure, or it cannot take pictures as small as these."""
    try:
        return None if measure is None else measure(images, reference)
    except FestinaError:
        return None


def _error(images: Tensor, reference: Tensor) -> float:
    """Mean squared error over all pictures, which are equally large."""
    return float((10 ** (psnr(images, reference) / -10)).mean())
