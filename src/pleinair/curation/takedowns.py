"""Takedowns: pictures that must not be here, refused again whenever a source brings them.

    add -> table `takedowns` -> fetch drops the same bytes or address, hashes drops what looks the same
                            `-> enforce: bytes out of the store, rows emptied

A takedown outlives the rows it was made for: it is kept by what the picture is (MD5, SHA-256, address, perceptual hash
and colours), not by where it stood. A row taken down keeps its name, address and the reason, nothing of the picture.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pleinair.curation import hashes_v1
from pleinair.curation.duplicates import relit
from pleinair.curation.hashes import fingerprints_of, md5
from pleinair.curation.pictures import decode, read_header
from pleinair.curation.pixels import pixel_statistics
from pleinair.curation.sources.svg import looks_like_svg, rasterise
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError, ImageError, SourceError

KIND = "takedown"
NEAR_BITS = 10
"""Default radius of the perceptual hash, of 144 bits; docs/curation-sources.md has the measurement."""
NEAR_COLOUR = 9
"""Sum of differences of colour levels within which two pictures have the same colours."""
NEAR_THUMB = 64
"""Largest difference of any cell of the small picture within which two look the same, once a change of light is out."""
NEAR_LIGHT = 1.5
"""The factor by which one of them may be lighter."""
_MIN_ENTROPY = 0.3  # bits; flatter pictures all hash alike, so only their bytes are compared
_MAX_PIXELS = 100_000_000
_LOOKS = ("phash12_v2", "colour_v2", "thumb16_v2")
_MATCHED = ("image_name", "uri", "md5", "image_path", "hashes_drop", *_LOOKS)
_COLUMNS = {
    "takedown": "text",
    "md5": "text",
    "sha256": "text",
    "url": "text",
    "phash12_v2": "text",
    "colour_v2": "text",
    "thumb16_v2": "bytea",
    "phash12_v1": "text",
    "colour_v1": "text",
    "near": "integer",
    "reason": "text",
    "added_at": "timestamptz",
}
_KEPT = ("image_name", "uri", "source", "held_out", "fetch_drop")
"""What a row taken down still says."""


@dataclass(frozen=True, kw_only=True)
class Takedown:
    """One picture that is refused; each value that is not None refuses by itself."""

    takedown: str
    """Name: what was given, an MD5, a SHA-256 or a URL."""
    reason: str
    md5: str | None = None
    sha256: str | None = None
    url: str | None = None
    phash12_v2: str | None = None
    colour_v2: str | None = None
    thumb16_v2: bytes | None = None
    """None in a takedown from before it was kept: hash and colours alone decide there."""
    phash12_v1: str | None = None
    """Of a takedown from before the second definition; its picture is gone, so the old hash stays what it is known by."""
    colour_v1: str | None = None
    near: int = 0
    """Bits of the perceptual hash within which another picture counts as this one."""
    added_at: datetime.datetime | None = None

    @property
    def drop(self) -> str:
        """The verdict on a row."""
        return f"{KIND}: {self.reason} ({self.takedown})"


def takedowns_table(db: Database) -> Table:
    """The declared `takedowns` table."""
    return db.table("takedowns", key="takedown", columns=_COLUMNS)


def read_takedowns(db: Database) -> list[Takedown]:
    """All takedowns, oldest first."""
    rows = [row for batch in takedowns_table(db).read() for row in batch.to_pylist()]
    return [Takedown(**row) for row in sorted(rows, key=lambda row: (row["added_at"], row["takedown"]))]


def add_takedown(db: Database, images: Table, what: str, reason: str, *, near: int = NEAR_BITS) -> Takedown:
    """Refuse a picture from now on: a file, an MD5, a SHA-256 or a URL. Follow it with `enforce`.

    An MD5, SHA-256 or URL of a picture that is here also refuses its look-alikes. Raises SourceError or ConfigError.
    """
    if not reason.strip():
        raise ConfigError("a takedown needs a reason: give --reason")
    if not 0 <= near <= 32:
        raise ConfigError(f"near is {near} bits: give 0 (the same bytes only) to 32")
    found = _identified(images, what)
    # A flat picture looks like every other flat picture.
    radius = near if found.get("phash12_v2") else 0
    now = datetime.datetime.now(datetime.UTC)
    takedown = Takedown(**found, reason=" ".join(reason.split()), near=radius, added_at=now)
    takedowns_table(db).upsert([_as_row(takedown)])
    return takedown


def _as_row(takedown: Takedown) -> dict[str, Any]:
    return {name: getattr(takedown, name) for name in _COLUMNS}


def _identified(images: Table, what: str) -> dict[str, Any]:
    """What is known of the picture meant: by its bytes, or by the row that has it."""
    if re.fullmatch(r"[0-9a-fA-F]{32}", what):
        return _of_row(images, {"takedown": what.lower(), "md5": what.lower()}, "md5 = %s", what.lower())
    if re.fullmatch(r"[0-9a-fA-F]{64}", what):
        pattern = f"%/{what.lower()}.%"
        return _of_row(images, {"takedown": what.lower(), "sha256": what.lower()}, "image_path LIKE %s", pattern)
    if what.startswith(("http://", "https://")):
        return _of_row(images, {"takedown": what, "url": what}, "uri = %s", what)
    return _of_file(Path(what))


def _of_row(images: Table, given: dict[str, Any], where: str, value: str) -> dict[str, Any]:
    columns = ["md5", "image_path", *_LOOKS, "entropy"]
    for batch in images.read(where=f"{where} AND image_path IS NOT NULL", params=(value,), columns=columns):
        for row in batch.to_pylist():
            looks = {name: row[name] for name in _LOOKS} if not _is_flat(row["entropy"]) else {}
            return {**given, "md5": row["md5"], "sha256": Path(row["image_path"]).stem, **looks}
    return given


def _of_file(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path} is no takedown ({error.strerror}): give a picture's file, its MD5 or SHA-256, or its URL"
        ) from error
    stored = rasterise(data) if looks_like_svg(data) else data
    sha256 = hashlib.sha256(stored).hexdigest()
    return {"takedown": sha256, "md5": md5(stored), "sha256": sha256, **_looks(stored)}


def _looks(data: bytes) -> dict[str, Any]:
    """Perceptual hash and colours; nothing for bytes that are no picture, or a flat one."""
    try:
        header = read_header(data)
        if header.width * header.height > _MAX_PIXELS:
            return {}
        if _is_flat(pixel_statistics(decode(data)).entropy):
            return {}
    except ImageError:
        return {}
    found = fingerprints_of(data)
    return {name: getattr(found, name) for name in _LOOKS}


def _is_flat(entropy: float | None) -> bool:
    return entropy is not None and entropy < _MIN_ENTROPY


@dataclass(frozen=True)
class _Looks:
    """How pictures taken down look, by one definition of the hashes."""

    takedowns: Sequence[Takedown] = ()
    phashes: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 18), np.uint8))
    colours: NDArray[np.int16] = field(default_factory=lambda: np.empty((0, 28), np.int16))
    thumbs: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    """By place, of those that have one."""

    @classmethod
    def of(cls, looks: Sequence[tuple[Takedown, str | None, str | None, bytes | None]]) -> _Looks:
        """From takedowns with hash, colours and thumb; those that lack one of the first two are left out."""
        known = [(one, phash, colour, thumb) for one, phash, colour, thumb in looks if one.near and phash and colour]
        if not known:
            return cls()
        takedowns, phashes, colours, thumbs = zip(*known, strict=True)
        return cls(
            takedowns,
            np.stack([_bits(one) for one in phashes]),
            np.stack([_levels(one) for one in colours]),
            {place: np.frombuffer(one, np.uint8) for place, one in enumerate(thumbs) if one},
        )

    def near(self, phash12: str, colour: str, thumb: bytes | None) -> list[tuple[int, int]]:
        """(bits apart, place) of every takedown the picture looks like; all that both know of themselves must agree."""
        if not self.takedowns:
            return []
        apart = np.bitwise_count(self.phashes ^ _bits(phash12)).sum(axis=1, dtype=np.int64)
        within = apart <= np.array([one.near for one in self.takedowns])
        within &= np.abs(self.colours - _levels(colour)).sum(axis=1) <= NEAR_COLOUR
        return [(int(apart[place]), place) for place in np.flatnonzero(within).tolist() if self._alike(place, thumb)]

    def _alike(self, place: int, thumb: bytes | None) -> bool:
        if thumb is None or place not in self.thumbs:
            return True
        light, difference = relit(self.thumbs[place][None], np.frombuffer(thumb, np.uint8)[None])
        return bool(light[0] <= NEAR_LIGHT and difference[0] <= NEAR_THUMB)

    def verdict(self, phash12: str, colour: str, thumb: bytes | None = None) -> str:
        """The nearest takedown within its radius and colours; empty when there is none."""
        if not (apart := self.near(phash12, colour, thumb)):
            return ""
        bits, nearest = min(apart)
        return f"{self.takedowns[nearest].drop}, {bits} of 144 bits apart"


@dataclass(frozen=True)
class Refusals:
    """All takedowns, ready to be asked."""

    takedowns: Sequence[Takedown] = ()
    by_value: Mapping[str, Takedown] = field(default_factory=dict)
    looks: _Looks = field(default_factory=_Looks)
    looks_v1: _Looks = field(default_factory=_Looks)
    """Those known by the first definition only."""

    @classmethod
    def of(cls, takedowns: Sequence[Takedown]) -> Refusals:
        """Index the takedowns."""
        values = {value: one for one in takedowns for value in (one.md5, one.sha256, one.url) if value}
        new = [(one, one.phash12_v2, one.colour_v2, one.thumb16_v2) for one in takedowns]
        old = [(one, one.phash12_v1, one.colour_v1, None) for one in takedowns if not one.phash12_v2]
        return cls(takedowns, values, _Looks.of(new), _Looks.of(old))

    def of_uri(self, uri: str) -> str:
        """The verdict on an address; empty when nothing is against it."""
        return self.by_value[uri].drop if uri in self.by_value else ""

    def of_bytes(self, md5_hex: str, sha256: str) -> str:
        """The verdict on bytes, by their digests."""
        found = self.by_value.get(sha256) or self.by_value.get(md5_hex)
        return found.drop if found else ""

    def of_looks(self, phash12: str, colour: str, thumb: bytes | None = None) -> str:
        """The verdict on how a picture looks: the nearest takedown within its radius and colours, cell by cell alike."""
        return self.looks.verdict(phash12, colour, thumb)

    def of_old_looks(self, data: bytes) -> str:
        """The same by the first definition, which is computed only where a takedown asks for it. Raises ImageError."""
        if not self.looks_v1.takedowns:
            return ""
        found = hashes_v1.fingerprints(decode(data))
        return self.looks_v1.verdict(found.phash12_v1, found.colour_v1)

    def count_near(self, phash12: str, colour: str, thumb: bytes) -> int:
        """How many takedowns a picture looks like."""
        return len(self.looks.near(phash12, colour, thumb))


def _bits(phash: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(phash), dtype=np.uint8)


def _levels(colour: str) -> NDArray[np.int16]:
    return np.array([int(level, 16) for level in colour], dtype=np.int16)


def write_snapshot(store: Path, takedowns: Sequence[Takedown]) -> Path:
    """The takedowns as a file beside the stored pictures, where every worker finds them; by rename."""
    store.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=store, prefix=".takedowns-")
    with os.fdopen(handle, "w") as file:
        json.dump([_as_document(takedown) for takedown in takedowns], file)
    os.chmod(temporary, 0o644)
    os.replace(temporary, _snapshot_path(store))
    return _snapshot_path(store)


def _as_document(takedown: Takedown) -> dict[str, Any]:
    thumb = takedown.thumb16_v2
    return {**_as_row(takedown), "added_at": None, "thumb16_v2": thumb.hex() if thumb else None}


def _from_document(row: dict[str, Any]) -> Takedown:
    thumb = row.get("thumb16_v2")  # a snapshot of an older version has none
    return Takedown(**{**row, "thumb16_v2": bytes.fromhex(thumb) if thumb else None})


def read_snapshot(store: Path) -> Refusals:
    """The takedowns a curation began with; none where there is no file."""
    path = _snapshot_path(store)
    try:
        status = path.stat()
    except FileNotFoundError:
        return Refusals()
    return _read_snapshot(str(path), status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=2)
def _read_snapshot(path: str, modified_ns: int, inode: int) -> Refusals:
    return Refusals.of([_from_document(row) for row in json.loads(Path(path).read_text())])


def _snapshot_path(store: Path) -> Path:
    return store / "takedowns.json"


def enforce(db: Database, images: Table, store: ObjectStore) -> int:
    """Take out every stored picture that a takedown refuses; how many rows were emptied.

    A row taken down keeps its name, address and verdict; all other columns ever declared are emptied, whoever writes
    them. Bytes go first: stopped in between, the next run finds the row again. What was found by its looks is refused by
    its bytes from then on.
    """
    refusals = Refusals.of(read_takedowns(db))
    if not refusals.takedowns:
        return 0
    found = list(_refused_rows(images, refusals))
    for row, _ in found:
        store.remove(row["image_path"])
    copies = [_copy(row, drop) for row, drop in found if refusals.by_value.get(row["md5"]) is None]
    takedowns_table(db).insert_missing(_as_row(copy) for copy in copies)
    emptied = dict.fromkeys(column for column in images.columns if column not in _KEPT)
    updates = ({"image_name": row["image_name"], **emptied, "fetch_drop": drop} for row, drop in found)
    return images.update(updates) if found else 0


def _refused_rows(images: Table, refusals: Refusals) -> Iterator[tuple[dict[str, Any], str]]:
    for batch in images.read(where="image_path IS NOT NULL", columns=list(_MATCHED)):
        for row in batch.to_pylist():
            drop = refusals.of_uri(row["uri"]) or refusals.of_bytes(row["md5"], Path(row["image_path"]).stem)
            if not drop and (row["hashes_drop"] or "").startswith(f"{KIND}:"):
                drop = row["hashes_drop"]
            if not drop and row["phash12_v2"]:
                drop = refusals.of_looks(row["phash12_v2"], row["colour_v2"], row["thumb16_v2"])
            if drop:
                yield row, drop


def _copy(row: Mapping[str, Any], drop: str) -> Takedown:
    return Takedown(
        takedown=row["md5"],
        md5=row["md5"],
        sha256=Path(row["image_path"]).stem,
        reason=drop.removeprefix(f"{KIND}: "),
        added_at=datetime.datetime.now(datetime.UTC),
    )
