"""A folder of pictures, each with an optional sidecar of the same name: `fox.png`, `fox.txt` or `fox.json`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from pleinair.curation.heldout import held_out
from pleinair.curation.sources.rows import PictureRow, short_hash
from pleinair.curation.sources.sidecars import MAX_SIDECAR_BYTES, Facts, json_facts, text_facts
from pleinair.records.errors import SourceError
from pleinair.records.names import slug

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".svg")


SIDECAR_SUFFIXES = (".json", ".txt")


class FolderSource:
    """Every picture below a folder, sorted by path. `style` is the style of all that do not name their own."""

    def __init__(self, folder: Path, style: str | None = None) -> None:
        if not folder.is_dir():
            raise SourceError(f"{folder} is not a folder: give a folder of pictures")
        self._folder = folder.resolve()
        self._style = style
        self.notes: list[str] = []
        # Two folders called `photos` must not share keys.
        self.name = f"{slug(self._folder.name) or 'folder'}-{short_hash(str(self._folder))}"

    def list(self) -> Iterator[PictureRow]:
        """Rows in the order of their paths. Raises SourceError when there is no picture."""
        pictures, sidecars = [], []
        for path in _files(self._folder):
            if is_picture(path.name):
                pictures.append(path)
            elif path.suffix in SIDECAR_SUFFIXES and not path.name.startswith("."):
                sidecars.append(path)
        for path in sorted(pictures):
            yield self._row(path)
        stems = {path.with_suffix("") for path in pictures}
        self.notes = [
            f"{printable(path)} belongs to no picture" for path in sorted(sidecars) if path.with_suffix("") not in stems
        ]
        if not pictures:
            raise SourceError(f"no picture in {self._folder}: it needs files ending in {', '.join(PICTURE_SUFFIXES)}")

    def _row(self, path: Path) -> PictureRow:
        relative = printable(path.relative_to(self._folder))
        return picture_row(
            _sidecar(path),
            image_name=f"{self.name}/{relative}",
            uri=path_uri(path),
            source=self.name,
            provenance=relative,
            style=self._style,
        )


def picture_row(
    facts: Facts, *, style: str | None, image_name: str, uri: str, source: str, provenance: str
) -> PictureRow:
    """A row from what its sidecar says, `style` filling in where that names none."""
    values = {**asdict(facts), "style": facts.style or style}
    return PictureRow(
        image_name=image_name,
        uri=uri,
        source=source,
        provenance=provenance,
        held_out=held_out(facts.concept, values["style"]),
        **values,
    )


def printable(path: str | Path) -> str:
    """The path as text a database stores, bytes that are no UTF-8 written as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def path_uri(path: Path) -> str:
    """`file:` URI of an absolute path, any bytes allowed."""
    return f"file:{quote(os.fsencode(path))}"


def uri_path(quoted: str) -> Path:
    """The path in a URI, its scheme already taken off."""
    return Path(os.fsdecode(unquote_to_bytes(quoted)))


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names)


def is_picture(name: str) -> bool:
    """Whether a file name looks like a picture's."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _sidecar(path: Path) -> Facts:
    for suffix, read in ((".json", json_facts), (".txt", text_facts)):
        sidecar = path.with_suffix(suffix)
        if sidecar.is_file():
            try:
                if (size := sidecar.stat().st_size) > MAX_SIDECAR_BYTES:
                    return Facts(
                        caption_error=f"caption file {printable(sidecar)} has {size} bytes, over {MAX_SIDECAR_BYTES}: "
                        "shorten it"
                    )
                return read(sidecar.read_bytes(), printable(sidecar), path.name)
            except OSError as error:
                return Facts(
                    caption_error=f"caption file {printable(sidecar)} cannot be read ({error.strerror}): check it"
                )
    return Facts()
