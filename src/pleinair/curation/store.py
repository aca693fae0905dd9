"""Pictures kept by content: one file per distinct picture, named by its SHA-256.

    <root>/ab/abcdef....png

A file is there entirely or not at all (temporary file, then rename), and storing the same bytes twice is one file, so a
crash or a second worker costs nothing and a path never changes its content.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pleinair.records.errors import SourceError

THUMBNAILS = "thumbnails"
"""Folder below the root for small copies, by side; see `pleinair.curation.thumbnails`."""
_SIGNATURES = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)


def looks_like_raster(data: bytes) -> bool:
    """Whether the bytes begin like a picture of a format we know."""
    return _suffix(data) != "bin"


class ObjectStore:
    """A folder of pictures named by content. Several processes may use one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, data: bytes) -> str:
        """Store the bytes and return their path relative to the root. Raises SourceError when the disk is full."""
        digest = hashlib.sha256(data).hexdigest()
        relative = f"{digest[:2]}/{digest}.{_suffix(data)}"
        path = self.root / relative
        if path.exists():
            return relative
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_by_rename(path, data)
        except OSError as error:
            raise SourceError(
                f"cannot store {len(data)} bytes in {self.root} ({error.strerror}): free space or fix its permissions, "
                "then run the same command again"
            ) from error
        return relative

    def get(self, relative: str) -> bytes:
        """The bytes at a path `put` returned. Raises SourceError when they are gone."""
        try:
            return (self.root / relative).read_bytes()
        except OSError as error:
            raise SourceError(
                f"stored picture {self.root / relative} cannot be read ({error.strerror}): restore the store, or run "
                "`pleinair curate --fetch-again`"
            ) from error

    def remove(self, relative: str) -> None:
        """Take a picture out for good, its small copies too; one that is gone already is fine."""
        for copy in (self.root / THUMBNAILS).glob(f"*/{relative}.webp"):
            copy.unlink(missing_ok=True)
        (self.root / relative).unlink(missing_ok=True)


def _write_by_rename(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".put-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((suffix for signature, suffix in _SIGNATURES if data.startswith(signature)), "bin")
