"""What is known of a picture before anyone has looked at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pleinair.captioning.guards import clean


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What label, owner, file and OCR say; empty where they say nothing. Licence and author are no facts of the picture."""

    label: str = ""
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
        """The facts there are, for a prompt."""
        return {name: value for name, value in asdict(self).items() if value}


def facts_of(row: Mapping[str, Any], style_words: Mapping[str, str]) -> Facts:
    """The facts in a row of the `images` table; `style_words` is how prompts name each style."""
    style = row.get("style") or ""
    return Facts(
        label=_text(row.get("label")),
        style=style_words.get(style) or style.replace("-", " "),
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
