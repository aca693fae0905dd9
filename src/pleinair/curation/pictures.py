"""Encoded pictures read safely: the header first, pixels only when they are of a sane number."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pleinair.records.errors import ImageError

Pixels = NDArray[np.uint8]
"""RGB, shape (height, width, 3), composited on white."""

# What Pillow's decoders raise on damaged bytes.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error)
_REMEDY = "re-export or remove it"


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture promise."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Format and size, without decoding a pixel. Raises ImageError."""
    with warnings.catch_warnings():
        # Pillow warns of large pictures, and refuses larger ones; what is too large here is the probe's to say.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return Header(image.format or "unknown", image.width, image.height)
        except Image.DecompressionBombError as error:
            raise ImageError(f"bomb: {error}; {_REMEDY}") from error
        except _DAMAGE as error:
            raise ImageError(f"broken: {_kind_of_damage(data, error)}; {_REMEDY}") from error


def decode(data: bytes, *, at_least: int | None = None) -> Pixels:
    """The first frame upright, transparency composited on white. Raises ImageError. Read the header first.

    With `at_least`, a JPEG comes at 1/8, 1/4 or 1/2 of its size where its shorter side keeps that many pixels: all bytes
    are read and damage is noticed, but most of the work is spared. Other formats come full size.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if at_least is not None:
                    image.draft("RGB", (at_least, at_least))
                return np.asarray(_on_white(ImageOps.exif_transpose(image)))
        except (Image.DecompressionBombError, *_DAMAGE) as error:
            raise ImageError(f"broken: {_kind_of_damage(data, error)}; {_REMEDY}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # 16-bit greys: Pillow's own conversion clips them to white instead of scaling.
        deep = np.asarray(image, dtype=np.float64)
        return Image.fromarray((deep / max(deep.max(), 65535.0) * 255.0).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image.convert("RGB")


def _kind_of_damage(data: bytes, error: BaseException) -> str:
    text = " ".join(str(error).split())
    if not data:
        return "empty file of 0 bytes"
    if "truncated" in text or isinstance(error, EOFError):
        return f"truncated after {len(data)} bytes"
    if "cannot identify" in text:
        return f"not a picture ({len(data)} bytes beginning {data[:8]!r})"
    return f"cannot be decoded ({text[:120] or type(error).__name__})"
