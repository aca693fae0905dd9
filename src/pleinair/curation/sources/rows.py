"""What a source says about a picture before anyone has opened it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """One picture as its source lists it. Every field is a column of the `images` table."""

    image_name: str
    """Key: stable over runs and machines, e.g. `drawings/noto/red-apple`."""
    uri: str
    """Where the bytes are; see `open_image`."""
    source: str
    """The source that listed it, e.g. `drawings` or a folder's name."""
    style: str | None = None
    """Name of the author set, a key of `STYLES` for the drawings."""
    concept: str | None = None
    """Slug shared by all pictures of one thing, over all styles."""
    label: str | None = None
    """The concept in plain words: `red apple`."""
    tags: tuple[str, ...] = ()
    group_name: str | None = None
    """Coarse group of the concept; for drawings the CLDR group, e.g. `food & drink`."""
    licence: str | None = None
    author: str | None = None
    provenance: str | None = None
    """Package, version and icon, or the file it came from."""
    caption: str | None = None
    """The owner's own caption; it wins over templates."""
    caption_error: str | None = None
    """Why the owner's caption could not be read, with the remedy."""
    held_out: bool = False
    """Kept from training; see `curation.heldout`."""

    def as_dict(self) -> dict[str, Any]:
        """The row as column values, tags as a list."""
        return {**asdict(self), "tags": list(self.tags)}


class Source(Protocol):
    """Anything that can list pictures cheaply."""

    @property
    def name(self) -> str:
        """Name of the source, the value of the `source` column."""

    def list(self) -> Iterator[PictureRow]:
        """Rows in a stable order, without opening a picture."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences on what the last listing found that is no row; complete when it has ended."""


def short_hash(text: str) -> str:
    """Eight hex digits that tell apart two folders of the same name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
