"""Which limits hold for a picture: defaults, and a table of what differs by source, style and resolution stage.

    LimitTable(resolution=512, overrides=(
        Override(source="cifar-10", probe={"min_side": 32}),
        Override(source="gcompris", style="photo*", pixels={"max_border_flatness": 0.9}),
        Override(resolution=512, pixels={"min_laplacian": 2}),
    ))

One warehouse holds drawings on white beside photographs, so one set of numbers cannot be right for all of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from pleinair.config.overrides import from_document
from pleinair.curation.pixels import RESOLUTIONS, PixelLimits
from pleinair.curation.probe import ProbeLimits
from pleinair.records.errors import ConfigError

FLOOR_FROM = 512
"""The first resolution stage with a floor of quality."""

_Limits = TypeVar("_Limits", ProbeLimits, PixelLimits)


@dataclass(frozen=True, kw_only=True)
class Override:
    """Limits of some pictures that differ from the defaults. What is not given applies to all."""

    source: str | None = None
    """Value of the column `source`; * stands for anything."""
    style: str | None = None
    """Value of the column `style`; * stands for anything."""
    resolution: int | None = None
    """Only in this resolution stage."""
    probe: dict[str, Any] = field(default_factory=dict)
    """Fields of ProbeLimits that differ."""
    pixels: dict[str, Any] = field(default_factory=dict)
    """Fields of PixelLimits that differ."""

    def __post_init__(self) -> None:
        if self.resolution is not None:
            check_resolution(self.resolution, "overrides.resolution")
        _replaced(ProbeLimits(), self.probe, "probe")
        _replaced(PixelLimits(), self.pixels, "pixels")

    def holds_for(self, source: str | None, style: str | None, resolution: int) -> bool:
        """Whether a picture of that source and style is meant."""
        pairs = ((self.source, source), (self.style, style))
        named = all(fnmatchcase(value or "", pattern) for pattern, value in pairs if pattern is not None)
        return named and self.resolution in (None, resolution)


@dataclass(frozen=True)
class Limits:
    """The limits of one picture."""

    probe: ProbeLimits
    pixels: PixelLimits

    def of(self, stage: str) -> ProbeLimits | PixelLimits:
        """Those of the stage `probe` or `pixels`."""
        return self.probe if stage == "probe" else self.pixels


@dataclass(frozen=True, kw_only=True)
class LimitTable:
    """Limits for every picture of a warehouse."""

    resolution: int = 256
    """Resolution stage of the training this is for: 256, 512 or 1024."""
    probe: ProbeLimits = field(default_factory=ProbeLimits)
    pixels: PixelLimits = field(default_factory=PixelLimits)
    overrides: tuple[Override, ...] = ()
    """Applied in their order: of two that give the same field, the later holds."""

    def __post_init__(self) -> None:
        check_resolution(self.resolution, "resolution")
        self._check_floor("pixels", self.pixels.min_laplacian)
        for number, one in enumerate(self.overrides):
            if one.resolution in (None, self.resolution):
                self._check_floor(f"overrides[{number}].pixels", one.pixels.get("min_laplacian", 0))

    def _check_floor(self, place: str, floor: float) -> None:
        if floor > 0 and self.resolution < FLOOR_FROM:
            raise ConfigError(
                f"{place}.min_laplacian is {floor:g} at resolution {self.resolution}: a floor of quality begins at "
                f"{FLOOR_FROM}; give it in an override with resolution {FLOOR_FROM}, or leave it out"
            )

    def of(self, source: str | None, style: str | None) -> Limits:
        """The limits of a picture of that source and style."""
        probe, pixels = self.probe, self.pixels
        for one in self.overrides:
            if one.holds_for(source, style, self.resolution):
                probe, pixels = _replaced(probe, one.probe, "probe"), _replaced(pixels, one.pixels, "pixels")
        return Limits(probe, pixels)

    def uses_ocr(self) -> bool:
        """Whether any limit is on what captioning reads."""
        return any(
            share < 1
            for share in (self.pixels.max_ocr_share, *(o.pixels.get("max_ocr_share", 1) for o in self.overrides))
        )


def check_resolution(resolution: int, place: str) -> None:
    """Raises ConfigError for a resolution that is no stage."""
    if resolution not in RESOLUTIONS:
        raise ConfigError(f"{place} is {resolution}: give one of {', '.join(map(str, RESOLUTIONS))}")


def _replaced(limits: _Limits, values: dict[str, Any], place: str) -> _Limits:
    try:
        return from_document(type(limits), {**asdict(limits), **values})
    except ConfigError as refused:
        raise ConfigError(f"overrides: {place}: {refused}") from refused
