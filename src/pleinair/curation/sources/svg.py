"""Vector drawings turned into pixels.

A drawing may name pictures outside itself, and resvg would read them from this machine's disk: such a drawing is refused,
as is one that embeds a decompression bomb.
"""

from __future__ import annotations

import base64
import binascii
import re

from pleinair.curation.pictures import read_header
from pleinair.records.errors import ImageError, require

VECTOR_SIDE = 128
"""Longer side, in pixels, at which vector drawings enter the object store."""
_MAX_BYTES = 32 * 2**20
_MAX_EMBEDDED_PIXELS = 100_000_000
_IMAGE = re.compile(r"""<(?:[\w.-]+:)?(?:image|feImage)\b((?:[^>"']|"[^"]*"|'[^']*')*)""")
_HREF = re.compile(r"""(?:^|[\s:])href\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_ENTITY = re.compile(r"""<!ENTITY\s+(?:%\s*)?\S+\s+(SYSTEM|PUBLIC|"[^"]*"|'[^']*')""")


def looks_like_svg(data: bytes) -> bool:
    """Whether the bytes are an SVG document."""
    return b"<svg" in data[:2048] and data.lstrip()[:1] == b"<"


def rasterise(svg: bytes, side: int = VECTOR_SIDE) -> bytes:
    """PNG with transparent background, fitted into `side` x `side`. `currentColor` draws black. Raises ImageError."""
    resvg = require("resvg_py", "curate")
    if len(svg) > _MAX_BYTES:
        raise ImageError(f"broken: SVG of {len(svg)} bytes, over {_MAX_BYTES}; simplify it")
    try:
        text = svg.decode()
        check_references(text)
        # Both sides are given: with one alone a drawing of extreme aspect would ask for gigabytes.
        # Without a resolution, sizes in pt, mm or cm would come to nothing.
        drawn = resvg.svg_to_bytes(svg_string=text, width=side, height=side, dpi=96.0, skip_system_fonts=True)
        return bytes(drawn)
    except UnicodeDecodeError as error:
        raise ImageError(f"broken: SVG is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"broken: SVG cannot be drawn ({error}); repair or remove it") from error


def check_references(svg: str) -> None:
    """Refuse a drawing that reaches out of itself, openly or through entities. Raises ImageError."""
    for value in _ENTITY.findall(svg):
        # Names of namespaces are harmless; whatever makes markup or further entities is not needed to draw.
        if value in ("SYSTEM", "PUBLIC") or any(sign in value for sign in "<&%"):
            raise ImageError("outside: SVG declares an entity that makes more than text; save it as plain SVG")
    for attributes in _IMAGE.findall(svg):
        for double, single in _HREF.findall(attributes):
            _check_href((double or single).strip())


def _check_href(href: str) -> None:
    if href.startswith("data:"):
        _check_embedded(href)
    elif href and not href.startswith("#"):
        raise ImageError(f"outside: SVG shows {href[:80]!r}, a picture outside itself; embed the picture")


def _check_embedded(href: str) -> None:
    """Judge an embedded raster by its header. Raises ImageError."""
    kind, _, content = href.partition(",")
    if "base64" not in kind or "svg" in kind:
        return
    try:
        header = read_header(base64.b64decode(re.sub(r"&#\w+;|\s", "", content)))
    except (binascii.Error, ImageError):
        return  # resvg leaves out what it cannot read
    if header.width * header.height > _MAX_EMBEDDED_PIXELS:
        raise ImageError(f"bomb: SVG embeds {header.width} x {header.height} pixels; scale it down")
