"""The prompts of a command: of files, or drawn for a pipeline that ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from festina.errors import FestinaError

if TYPE_CHECKING:
    from festina.zoo.shipped import Shipped

SEARCH_SEED, HELD_OUT_SEED, CALIBRATION_SEED, BENCH_SEED = 100, 200, 300, 400
"""Seeds by which captions are drawn: to search on, to score the front of a search, to calibrate methods, and to
benchmark."""

_NONE = "no prompts; give --prompts FILE with one per line (about 100 that are like your own)."


def prompts_of_search(
    ours: Shipped | None, prompts: Path | None, held_out: Path | None, images: int | None, held_out_images: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prompts of a search.

    Args:
        ours: the pipeline, if it is one that ships.
        prompts, held_out: files of prompts to learn on, and of others to score the front on.
        images, held_out_images: how many of either are used at most; None for 64 and 128 captions of what ships, and
            for all of a file.

    Returns:
        what the search learns on, and what its front is scored on.

    Raises:
        FestinaError: there are no prompts, or too few to set some aside.
    """
    if held_out is not None and prompts is None:
        raise FestinaError("--held-out without --prompts; give both or, for a pipeline that ships, neither.")
    if prompts is None:
        if ours is None:
            raise FestinaError(_NONE)
        calibration = ours.captions(images or 64, SEARCH_SEED)
        # The grammar has few captions, so two draws may share some.
        return calibration, ours.captions(held_out_images or 128, HELD_OUT_SEED, calibration)
    lines = read_prompts(prompts)
    if held_out is not None:
        return lines[:images], read_prompts(held_out)[:held_out_images]
    # Without a second file the last quarter is held out.
    cut = max(2, len(lines) // 4)
    if len(lines) < 4:
        raise FestinaError(f"{prompts} has {len(lines)} prompts; give at least 4, or a second file by --held-out.")
    return lines[:-cut][:images], lines[-cut:][:held_out_images]


def prompts_of_bench(
    ours: Shipped | None, prompts: Path | None, calibration: Path | None, images: int | None, calibrated: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prompts of a benchmark.

    Args:
        ours: the pipeline, if it is one that ships.
        prompts, calibration: files of prompts to draw, and of others to calibrate methods on.
        images: how many are drawn at most; None for 128 captions of what ships, and for all of a file.
        calibrated: how many are calibrated on at most.

    Returns:
        what is drawn, and what methods are calibrated on.

    Raises:
        FestinaError: there are no prompts, or too few to set some aside.
    """
    if prompts is None:
        if ours is None:
            raise FestinaError(_NONE)
        if calibration is not None:
            raise FestinaError("--calibration without --prompts; give both or, for a pipeline that ships, neither.")
        drawn = ours.captions(images or 128, BENCH_SEED)
        return drawn, ours.captions(calibrated, CALIBRATION_SEED, drawn)
    lines = read_prompts(prompts)
    if calibration is not None:
        return lines[:images], read_prompts(calibration)[:calibrated]
    # Without a second file the last ones calibrate: no more than a quarter, and none that are drawn.
    count = min(calibrated, len(lines) // 4)
    if count == 0:
        raise FestinaError(f"{prompts} has {len(lines)} prompts; give at least 4, or a second file by --calibration.")
    return lines[:-count][:images], lines[-count:]


def scene_captions(count: int, seed: int) -> tuple[str, ...]:
    """`count` different captions of the scenes grammar, a quarter of them with combinations held out of training."""
    from festina.zoo.shipped import Shipped

    return Shipped("scenes").captions(count, seed)


def read_prompts(path: Path) -> tuple[str, ...]:
    """The different non-empty lines of a text file.

    Raises:
        FestinaError: the file cannot be read or has no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FestinaError(f"cannot read the prompts {path}: {error}.") from None
    lines = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise FestinaError(f"{path} has no prompts; wanted one per line.")
    return lines
