"""Pictures inside a page: arrays become PNG bytes, bytes become `data:` URIs, so that the page stays one file."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import numpy.typing as npt

from pleinair.pages.html import Html, element
from pleinair.records.errors import require

Pixels = npt.NDArray[np.uint8]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MEDIA_TYPES = ((PNG_SIGNATURE, "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


def picture(source: bytes | Pixels, alt: str, *, title: str | None = None) -> Html:
    """An `img` element holding the picture itself. `source` is an encoded file or an (H, W, 3) uint8 array."""
    return element("img", src=data_uri(source), alt=alt, title=title, decoding="async")


def data_uri(source: bytes | Pixels) -> str:
    """The picture as a `data:` URI. Raises ValueError for bytes of no known picture format."""
    encoded = source if isinstance(source, bytes) else encode_png(source)
    return f"data:{media_type(encoded)};base64,{base64.b64encode(encoded).decode('ascii')}"


def media_type(encoded: bytes) -> str:
    """The media type told by the first bytes of a picture file."""
    for signature, name in MEDIA_TYPES:
        if encoded.startswith(signature):
            return name
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError(f"bytes starting with {encoded[:8]!r} are no PNG, JPEG, GIF or WebP: encode the picture first")


def encode_png(pixels_HWC: Pixels) -> bytes:
    """An 8-bit RGB picture as PNG, each row under the filter with the smallest absolute residual (PNG 1.2, 9.6)."""
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(
            f"a picture is an (H, W, 3) uint8 array, not {pixels_HWC.dtype} {pixels_HWC.shape}: convert it"
        )
    height, width, _ = pixels_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filter_rows(pixels_HWC), 9)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def filter_rows(pixels_HWC: Pixels) -> bytes:
    """PNG scan lines, each behind its filter byte."""
    height, width, _ = pixels_HWC.shape
    here = pixels_HWC.astype(np.int16)
    left = np.pad(here, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    above = np.pad(here, ((1, 0), (0, 0), (0, 0)))[:-1]
    corner = np.pad(here, ((1, 0), (1, 0), (0, 0)))[:-1, :-1]
    predictions = (np.zeros_like(here), left, above, (left + above) // 2, paeth_predictor(left, above, corner))
    residuals_FHN = np.stack([(here - guess).reshape(height, width * 3) for guess in predictions]).astype(np.uint8)
    cost_FH = np.abs(residuals_FHN.view(np.int8).astype(np.int32)).sum(axis=2)
    choice_H = cost_FH.argmin(axis=0)
    rows_HN = residuals_FHN[choice_H, np.arange(height)]
    return np.concatenate([choice_H[:, None].astype(np.uint8), rows_HN], axis=1).tobytes()


def paeth_predictor(
    left: npt.NDArray[np.int16], above: npt.NDArray[np.int16], corner: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    """The neighbour nearest to left + above - corner; ties go to left, then above (PNG 1.2, 6.6)."""
    guess = left + above - corner
    to_left, to_above, to_corner = (np.abs(guess - near) for near in (left, above, corner))
    chosen = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, chosen)


def encode_webp(pixels_HWC: Pixels, quality: int = 92) -> bytes:
    """A picture as lossy WebP, about a third of its PNG. Needs Pillow (MissingExtraError)."""
    image_module = require("PIL.Image", "curate")
    written = io.BytesIO()
    image_module.fromarray(pixels_HWC).save(written, format="WEBP", quality=quality, method=6)
    return written.getvalue()
