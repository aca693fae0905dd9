"""Vector drawings turned into pixels."""

from __future__ import annotations

from pleinair.records.errors import ImageError, require

VECTOR_SIDE = 128
"""Longer side, in pixels, at which vector drawings enter the object store."""


def looks_like_svg(data: bytes) -> bool:
    """Whether the bytes are an SVG document."""
    return b"<svg" in data[:2048] and data.lstrip()[:1] == b"<"


def rasterise(svg: bytes, side: int = VECTOR_SIDE) -> bytes:
    """PNG with transparent background, fitted into `side` x `side`. `currentColor` draws black. Raises ImageError."""
    resvg = require("resvg_py", "curate")
    try:
        # Both sides are given: with one alone a drawing of extreme aspect would ask for gigabytes.
        return bytes(resvg.svg_to_bytes(svg_string=svg.decode(), width=side, height=side, skip_system_fonts=True))
    except UnicodeDecodeError as error:
        raise ImageError(f"broken: SVG is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except ValueError as error:
        raise ImageError(f"broken: SVG cannot be drawn ({error}); repair or remove it") from error
