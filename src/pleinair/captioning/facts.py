"""What is known of a picture before anyone has looked at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pleinair.captioning.guards import clean
from pleinair.records.wording import Medium, Wording


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What source, label, owner, file and OCR say; empty where they say nothing. Licence and author are no facts of it."""

    label: str = ""
    medium: Medium = field(default_factory=Medium)
    """What kind of picture the source has."""
    style: str = ""
    """As a prompt names it: `noto`."""
    group: str = ""
    tags: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    """Names from the entity analysis."""
    camera: str = ""
    writing: tuple[str, ...] = ()
    """Lines read by OCR."""
    owner_caption: str = ""

    def as_data(self) -> dict[str, Any]:
        """The facts there are, for a prompt; what kind of picture it is, a model sees."""
        return {name: value for name, value in asdict(self).items() if value and name != "medium"}


def facts_of(row: Mapping[str, Any], wording: Wording) -> Facts:
    """The facts in a row of the `images` table."""
    return Facts(
        label=_text(row.get("label")),
        medium=wording.medium(row),
        style=wording.style(row),
        group=_text(row.get("group_name")),
        tags=_texts(row.get("tags")),
        entities=_texts(row.get("entities")),
        camera=_text(row.get("camera")),
        writing=_texts(row.get("ocr_lines")),
        owner_caption=_text(row.get("caption")),
    )


def _text(value: object) -> str:
    return clean(str(value)) if value else ""


def _texts(values: Sequence[object] | None) -> tuple[str, ...]:
    return tuple(text for value in values or () if (text := _text(value)))
