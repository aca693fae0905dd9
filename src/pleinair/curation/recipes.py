"""Limits for kinds of pictures."""

from __future__ import annotations

from pleinair.curation.curate import CurationConfig
from pleinair.curation.limits import Override
from pleinair.curation.pixels import PixelLimits
from pleinair.curation.probe import ProbeLimits

DRAWINGS = CurationConfig()
"""Drawings on white: a flat background is part of the drawing, only nearly blank pictures go."""

PHOTOS = CurationConfig(
    probe=ProbeLimits(min_side=256, max_aspect=3.0),
    pixels=PixelLimits(min_entropy=3.0, max_white_ratio=0.5, max_black_ratio=0.5, max_border_flatness=0.9),
)
"""Photographs: frames and flat backgrounds teach bad habits and go."""

PHOTOGRAPHS = ("gcompris", "cifar-10")
"""Sources of photographs; all others hold drawings, or cut-outs on white."""

PHOTOGRAPH_LIMITS = {
    "min_entropy": 3.0,
    "max_white_ratio": 0.5,
    "max_black_ratio": 0.5,
    "max_border_flatness": 0.9,
    "max_bar_flatness": 0.99,
    "max_flat_share": 0.6,
    "max_laplacian": 12_000.0,
    "max_complexity": 0.37,
    "max_text_density": 0.1,
    "max_ocr_share": 0.1,
}
"""Fields of PixelLimits; docs/curation-filters.md has what they find and what they cost."""

MIXED = CurationConfig(
    pixels=PixelLimits(max_flat_share=0.99),
    overrides=(
        *(Override(source=name, pixels=PHOTOGRAPH_LIMITS) for name in PHOTOGRAPHS),
        # A floor for the worst only: of the photographs measured the softest has 10, one blurred beyond use 2.
        *(
            Override(source=name, resolution=r, pixels={"min_laplacian": 4.0})
            for name in PHOTOGRAPHS
            for r in (512, 1024)
        ),
        # Of 32 pixels each nearly every one is on an edge, and none is text.
        Override(source="cifar-10", probe={"min_side": 32}, pixels={"max_complexity": 1.0, "max_text_density": 1.0}),
    ),
)
"""All sources in one warehouse, each by its own limits."""

RECIPES = {"drawings": DRAWINGS, "photos": PHOTOS, "mixed": MIXED}
