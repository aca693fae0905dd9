"""Is this a picture, and of a usable size? The first filter, and the cheapest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pleinair.curation.filters import PROBE_FILTERS, judge, with_sizes
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
    """What the probe found: `drop` is empty for a kept picture, else the reason. The rest are columns."""

    drop: str
    format: str | None = None
    width: int | None = None
    height: int | None = None
    aspect: float | None = None
    damage: str | None = ""
    """What is wrong with the file, empty where it decodes; None where nobody dared to decode it."""


COLUMNS = ("format", "width", "height", "aspect", "damage")
"""What of a Probe is kept as columns."""


def probe(data: bytes, limits: ProbeLimits) -> Probe:
    """Format, size and verdict of an encoded picture. Never raises for a bad one.

    Whatever is not a bomb is decoded, so that the verdict can be made again under other limits without the file.
    """
    return judged(measure(data, limits.max_pixels), limits)


def measure(data: bytes, max_pixels: int) -> Probe:
    """The columns, no verdict; `max_pixels` says what is not decoded."""
    try:
        header = read_header(data)
    except ImageError as error:
        return Probe("", damage=str(error))
    width, height = header.width, header.height
    aspect = max(width, height) / max(1, min(width, height))
    damage = _damage(data) if width * height <= max_pixels else None
    return Probe("", header.format, width, height, aspect, damage)


def _damage(data: bytes) -> str:
    try:
        decode(data)
    except ImageError as error:
        return str(error)
    return ""


def judged(found: Probe, limits: ProbeLimits) -> Probe:
    """What was measured, with the verdict under these limits."""
    if found.width is None or found.height is None:
        return replace(found, drop=found.damage or "")
    sizes = with_sizes({"width": found.width, "height": found.height, "aspect": found.aspect})
    verdict = judge(PROBE_FILTERS, sizes, limits, resolution=0)
    return replace(found, drop=verdict.reason or found.damage or "")


def from_columns(row: Mapping[str, Any], limits: ProbeLimits) -> Probe | None:
    """The verdict from what was measured before; None where the picture must be looked at."""
    found = judged(Probe("", **{name: row[name] for name in COLUMNS}), limits)
    return None if found.damage is None and (found.width is None or not found.drop) else found
