"""Is this a picture, and of a usable size? The first filter, and the cheapest."""

from __future__ import annotations

from dataclasses import dataclass

from pleinair.curation.pictures import decode, read_header
from pleinair.records.errors import ConfigError, ImageError


@dataclass(frozen=True, kw_only=True)
class ProbeLimits:
    """Sizes a training resolution can use."""

    min_side: int = 64
    """Shorter side in pixels."""
    max_aspect: float = 4.0
    """Longer side over shorter side."""
    max_pixels: int = 100_000_000
    """Pixels above which a picture is not even decoded: a file of kilobytes can claim gigabytes."""

    def __post_init__(self) -> None:
        for field, low in (("min_side", 1), ("max_aspect", 1), ("max_pixels", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"probe.{field} is {getattr(self, field)}: give at least {low}")


@dataclass(frozen=True)
class Probe:
    """What the probe found: `drop` is empty for a kept picture, else the reason."""

    drop: str
    format: str | None = None
    width: int | None = None
    height: int | None = None
    aspect: float | None = None


def probe(data: bytes, limits: ProbeLimits) -> Probe:
    """Format, size and verdict of an encoded picture. Never raises for a bad one."""
    try:
        header = read_header(data)
    except ImageError as error:
        return Probe(str(error))
    width, height = header.width, header.height
    found = (header.format, width, height, max(width, height) / max(1, min(width, height)))
    reason = _header_reason(width, height, limits)
    if not reason:
        try:
            decode(data)
        except ImageError as error:
            reason = str(error)
    return Probe(reason, *found)


def _header_reason(width: int, height: int, limits: ProbeLimits) -> str:
    if width * height > limits.max_pixels:
        megapixels, most = width * height / 1e6, limits.max_pixels / 1e6
        return f"bomb: {width} x {height} is {megapixels:.0f} megapixels, over {most:.0f}; scale it down"
    if min(width, height) < limits.min_side:
        return f"small: {width} x {height}, under {limits.min_side} pixels"
    aspect = max(width, height) / min(width, height)
    if aspect > limits.max_aspect:
        return f"aspect: {aspect:.1f}, over {limits.max_aspect:g}"
    return ""
