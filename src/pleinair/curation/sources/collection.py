"""Collections: packages of pictures, unpacked once into a zip with one entry per picture and an index of facts.

    <cache>/deb/openclipart-svg_0.18.deb  ->  <cache>/deb/openclipart-svg_0.18.zip (food/apple.svg ..., index.json)

A worker that wants one picture opens the zip, which takes milliseconds, whatever the package was packed with. The zip
appears by rename, so it is there entirely or not at all.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pleinair.curation.heldout import held_out
from pleinair.curation.sources.debian import DebianPackage, fetch_debian
from pleinair.curation.sources.npm import FetchProgress, Package, fetch_packages
from pleinair.curation.sources.rows import PictureRow
from pleinair.records.errors import SourceError
from pleinair.records.names import slug

INDEX = "index.json"
OnProgress = Callable[[FetchProgress], None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a collection says of one picture."""

    name: str
    """Path in the zip, with the suffix of its format."""
    label: str | None
    tags: tuple[str, ...] = ()
    group_name: str | None = None
    caption: str | None = None
    licence: str | None = None
    author: str | None = None
    provenance: str | None = None
    """Where the collection has it from, if it says so."""
    held_out: bool | None = None
    """Whether it is kept from training; None leaves that to the rule of `curation.heldout`."""


Unpack = Callable[[Path], Iterator[tuple[Entry, bytes]]]
"""Reads a package: each picture with its bytes."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """One package of pictures."""

    name: str
    """What a user types, and the value of the `source` column."""
    package: Package | DebianPackage
    style: str
    unpack: Unpack
    version: int = 1
    """Raised when `unpack` changes, so that zips of the old form are made anew."""


class CollectionSource:
    """Lists a collection, fetching and unpacking its package on first use."""

    def __init__(self, collection: Collection, cache: Path, on_progress: OnProgress | None = None) -> None:
        self._collection, self._cache, self._on_progress = collection, cache, on_progress
        self.name = collection.name
        self.notes: Sequence[str] = ()

    def list(self) -> Iterator[PictureRow]:
        """Rows in the order of the index. Raises SourceError when the package cannot be fetched or read."""
        package = self._collection.package
        scheme = "deb" if isinstance(package, DebianPackage) else "npm"
        archive = unpacked(self._fetch(), self._collection)
        for entry in read_entries(archive):
            yield _row(self._collection, entry, f"{scheme}:{package.spec}/{entry.name}")

    def _fetch(self) -> Path:
        package = self._collection.package
        if isinstance(package, DebianPackage):
            return fetch_debian(package, self._cache / "deb", self._on_progress)
        return fetch_packages([package], self._cache / "npm", self._on_progress)[0]


def _row(collection: Collection, entry: Entry, uri: str) -> PictureRow:
    concept = slug(entry.label) or None if entry.label else None
    kept = held_out(concept, collection.style) if entry.held_out is None else entry.held_out
    return PictureRow(
        image_name=f"{collection.name}/{os.path.splitext(entry.name)[0]}",
        uri=uri,
        source=collection.name,
        style=collection.style,
        concept=concept,
        label=entry.label,
        tags=entry.tags,
        group_name=entry.group_name,
        licence=entry.licence,
        author=entry.author,
        provenance=entry.provenance or uri,
        caption=entry.caption,
        held_out=kept,
    )


def unpacked(package: Path, collection: Collection) -> Path:
    """The zip beside a package, made on first use. Raises SourceError when the package is not what it should be."""
    target = package.with_suffix(".zip")
    if _is_current(target, collection.version):
        return target
    handle, temporary = tempfile.mkstemp(prefix=".unpack-", dir=package.parent)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            entries = []
            for entry, data in collection.unpack(package):
                archive.writestr(entry.name, data, zipfile.ZIP_DEFLATED if _is_text(entry.name) else zipfile.ZIP_STORED)
                entries.append(asdict(entry))
            archive.writestr(INDEX, json.dumps({"version": collection.version, "entries": entries}))
        os.replace(temporary, target)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise SourceError(f"{package} is not the package it should be ({error}): delete it and run again") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _is_text(name: str) -> bool:
    return name.endswith(".svg")


def _is_current(archive: Path, version: int) -> bool:
    try:
        return bool(_read_index(archive)["version"] == version)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return False


def read_entries(archive: Path) -> list[Entry]:
    """The entries of an unpacked collection."""
    rows = _read_index(archive)["entries"]
    return [Entry(**{**row, "tags": tuple(row["tags"])}) for row in rows]


def _read_index(archive: Path) -> dict[str, Any]:
    with zipfile.ZipFile(archive) as file:
        index: dict[str, Any] = json.loads(file.read(INDEX))
    return index
