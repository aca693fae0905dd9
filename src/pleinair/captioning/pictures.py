"""A stored picture as the captioning stages need it: pixels, bytes to send, and what its camera noted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pleinair.captioning.guards import clean
from pleinair.endpoints import EncodedPicture
from pleinair.records.errors import SourceError

Pixels = NDArray[np.uint8]
"""RGB, shape (height, width, 3), composited on white."""

_MAKE, _MODEL, _EXIF, _EXPOSURE, _APERTURE, _ISO, _FOCAL = 271, 272, 0x8769, 33434, 33437, 34855, 37386
_LOSSLESS_UP_TO = 256
_JPEG_QUALITY = 90


def read_bytes(store: Path, image_path: str) -> bytes:
    """The bytes of a picture in the object store. Raises SourceError when they are gone."""
    try:
        return (store / image_path).read_bytes()
    except OSError as error:
        raise SourceError(
            f"stored picture {store / image_path} cannot be read ({error.strerror}): restore the store, or run "
            "`pleinair curate --fetch-again`"
        ) from error


def pixels_of(data: bytes) -> Pixels:
    """The picture upright, on white. Curation has decoded these bytes before; what fails now is a damaged store."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.mode or "a" in upright.mode or "transparency" in upright.info:
            transparent = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", transparent.size, "white"), transparent)
        return np.asarray(upright.convert("RGB"))


def to_send(pixels: Pixels, longest_side: int) -> EncodedPicture:
    """The picture as a server gets it, scaled down to `longest_side`: PNG when small, else JPEG; no metadata."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= _LOSSLESS_UP_TO:
        image.save(buffer, "PNG")
        return EncodedPicture(buffer.getvalue(), "image/png")
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return EncodedPicture(buffer.getvalue(), "image/jpeg")


def camera(data: bytes) -> str:
    """What the camera noted: `NIKON D90, 50 mm, f/2.8, 1/200 s, ISO 100`. Never place, owner or serial number."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            exif = image.getexif()
            taken = exif.get_ifd(_EXIF)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError):
        return ""  # metadata that cannot be read is metadata that is not there
    parts = (_body(exif), _number(taken, _FOCAL, "{} mm"), _number(taken, _APERTURE, "f/{}"), _exposure(taken))
    return clean(", ".join(filter(None, (*parts, _number(taken, _ISO, "ISO {}")))))[:120]


def _body(exif: Any) -> str:
    make, model = (str(exif.get(tag) or "").strip("\0 ") for tag in (_MAKE, _MODEL))
    return model if model.lower().startswith(make.lower().split(" ")[0]) else f"{make} {model}".strip()


def _number(taken: Any, tag: int, form: str) -> str:
    try:
        return form.format(f"{float(taken[tag]):.3g}")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ""


def _exposure(taken: Any) -> str:
    try:
        seconds = float(taken[_EXPOSURE])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ""
    if not 0 < seconds < 1e6:
        return ""
    return f"1/{1 / seconds:.0f} s" if seconds < 0.5 else f"{seconds:.3g} s"
