"""Small copies of stored pictures, made once: `<store>/thumbnails/<side>/<path in the store>.webp`.

They are named by content as their originals are, so one is never out of date, and `ObjectStore.remove` takes them along.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image

from pleinair.curation.pictures import decode, read_header
from pleinair.curation.store import THUMBNAILS, ObjectStore
from pleinair.records.errors import ImageError

THUMB_SIDE = 256
_MAX_PIXELS = 100_000_000
_QUALITY = 82


def thumbnail_file(store: ObjectStore, image_path: str, side: int = THUMB_SIDE) -> Path:
    """File of a WebP whose longer side is at most `side` pixels; made now if it is not there.

    Raises SourceError when the original is gone, ImageError when it is no picture or too large to decode.
    """
    path = store.root / THUMBNAILS / str(side) / f"{image_path}.webp"
    if not path.exists():
        _write(path, small_copy(store.get(image_path), side))
    return path


def small_copy(data: bytes, side: int) -> bytes:
    """A WebP whose longer side is at most `side` pixels, never larger than the picture. Raises ImageError."""
    header = read_header(data)
    if header.width * header.height > _MAX_PIXELS:
        raise ImageError(f"bomb: {header.width} x {header.height} pixels are too many to show; scale it down")
    with Image.fromarray(decode(data)) as picture:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        written = io.BytesIO()
        picture.save(written, "WEBP", quality=_QUALITY)
    return written.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".thumb-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
