"""What kind of picture a source has, and how captions name it and its styles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A kind of picture, and what captions may take for granted about it."""

    phrase: str = "a picture"
    """As in `a photo of a fox`, with its article."""
    says_style: bool = True
    """The `style` column names a manner, which captions say; else it only says again what kind of picture this is."""
    on_white: bool = False
    """All of them stand on a plain white ground."""
    labels_are_words: bool = True
    """Labels are what people say; else names of files, which add nothing to an owner's caption."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How captions name what they do not see: the kind of picture by its source, the style by its name."""

    media: Mapping[str, Medium] = field(default_factory=dict)
    """By source; any other source has `Medium()`, of which nothing is known."""
    styles: Mapping[str, str] = field(default_factory=dict)
    """By style, as prompts name it; other styles are said by their own names."""

    def medium(self, row: Mapping[str, Any]) -> Medium:
        """The kind of picture a row with `source` is."""
        return self.media.get(row.get("source") or "", Medium())

    def style(self, row: Mapping[str, Any]) -> str:
        """The style of a row with `source` and `style` as a prompt names it; empty where captions say none."""
        style = row.get("style") or ""
        return self.styles.get(style, style.replace("-", " ")) if self.medium(row).says_style else ""

    def to_document(self) -> dict[str, Any]:
        """As a worker's argument; survives JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Wording:
        """The inverse of `to_document`."""
        media = {source: Medium(**fields) for source, fields in document["media"].items()}
        return cls(media=media, styles=document["styles"])
