"""Limits for kinds of pictures."""

from __future__ import annotations

from pleinair.curation.curate import CurationConfig
from pleinair.curation.pixels import PixelLimits
from pleinair.curation.probe import ProbeLimits

DRAWINGS = CurationConfig()
"""Drawings on white: a flat background is part of the drawing, only nearly blank pictures go."""

PHOTOS = CurationConfig(
    probe=ProbeLimits(min_side=256, max_aspect=3.0),
    pixels=PixelLimits(min_entropy=3.0, max_white_ratio=0.5, max_black_ratio=0.5, max_border_flatness=0.9),
)
"""Photographs: frames and flat backgrounds teach bad habits and go."""

RECIPES = {"drawings": DRAWINGS, "photos": PHOTOS}
