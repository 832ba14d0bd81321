"""How figures are written: one place, so that page, tables and headline say a number the same way."""

from __future__ import annotations

import math

from festina.report.points import Point

MISSING = "\N{EN DASH}"
"""What stands where nothing was measured."""

TIMES = "\N{MULTIPLICATION SIGN}"
"""Behind a ratio."""


def three_digits(value: float) -> str:
    """Three significant digits without an exponent; whole numbers from 100 on."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def macs_text(macs: int) -> str:
    """Multiply-accumulates with a decimal prefix, e.g. "1.25 GMACs"."""
    for prefix, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if macs >= size:
            return f"{three_digits(macs / size)} {prefix}MACs"
    return f"{macs} MACs"


def share_text(macs: int, of: int) -> str:
    """A share in percent, e.g. "41.3 %"."""
    return f"{100 * macs / of:.1f} %"


def seconds_text(seconds: float | None) -> str:
    """Seconds per picture, in ms below a tenth of a second."""
    if seconds is None:
        return MISSING
    return f"{three_digits(1000 * seconds)} ms" if seconds < 0.1 else f"{three_digits(seconds)} s"


def ratio_text(ratio: float | None) -> str:
    """A ratio to uncached, two decimals and the sign for times."""
    return MISSING if ratio is None else f"{ratio:.2f}{TIMES}"


def point_ratio_text(point: Point) -> str:
    """The seconds ratio of a point; uncached is the measure itself."""
    return ratio_text(1.0 if point.kind == "uncached" else point.seconds_ratio)


def reward_text(reward: float) -> str:
    """A reward to three places."""
    return f"{reward:.3f}"


def interval_text(point: Point) -> str:
    """The 95 % confidence interval of a point's reward, e.g. "0.812 to 0.840"."""
    return f"{point.reward_low:.3f} to {point.reward_high:.3f}"


def frechet_text(frechet: float | None) -> str:
    """A Frechet distance."""
    return MISSING if frechet is None else three_digits(frechet)


def psnr_text(point: Point) -> str:
    """PSNR to the uncached pictures; ∞ for equal pictures."""
    if point.kind == "uncached" or point.psnr is None:
        return MISSING
    return "∞" if math.isinf(point.psnr) else f"{point.psnr:.1f} dB"


def bytes_text(size: int) -> str:
    """Bytes with a binary prefix, e.g. "3.50 MiB"."""
    for prefix, unit in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size >= unit:
            return f"{three_digits(size / unit)} {prefix}B"
    return f"{size} B"
