"""Captions and facts people keep beside their pictures: `.txt` files and JSON.

A sidecar that cannot be read costs its picture a caption, not the run: the row carries a sentence instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pleinair.curation.sources.rows import slug

_CAPTION_KEYS = ("caption", "text", "prompt", "description")
_LICENCE_KEYS = ("licence", "license")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a sidecar says. Either `caption_error` is set or the rest may be."""

    caption: str | None = None
    caption_error: str | None = None
    label: str | None = None
    tags: tuple[str, ...] = ()
    style: str | None = None
    concept: str | None = None
    group_name: str | None = None
    licence: str | None = None
    author: str | None = None


def decode_caption(data: bytes, where: str) -> str:
    """Caption text. Raises ValueError with a sentence naming file, byte and remedy."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"caption file {where} is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}): save it as UTF-8"
        ) from error
    if "\x00" in text:
        raise ValueError(f"caption file {where} holds a NUL character (byte {text.index(chr(0))}): save it as UTF-8")
    return text.strip()


def text_facts(data: bytes, where: str) -> Facts:
    """Facts of a `.txt` sidecar: the whole text is the caption."""
    try:
        return Facts(caption=decode_caption(data, where) or None)
    except ValueError as error:
        return Facts(caption_error=str(error))


def json_facts(data: bytes, where: str) -> Facts:
    """Facts of a `.json` sidecar: any of caption (or text), label, tags, style, concept, group, licence, author."""
    try:
        values = json.loads(decode_caption(data, where))
    except json.JSONDecodeError as error:
        reason = f"caption file {where} is not JSON (line {error.lineno}: {error.msg}): correct it"
        return Facts(caption_error=reason)
    except ValueError as error:
        return Facts(caption_error=str(error))
    if not isinstance(values, dict):
        return Facts(caption_error=f"caption file {where} holds a {type(values).__name__}: make it a JSON object")
    return mapping_facts(values, where)


def mapping_facts(values: Mapping[str, Any], where: str) -> Facts:
    """Facts of a mapping, JSON object or table row; values of the wrong kind become a caption error."""
    try:
        label = _text(values, "label")
        return Facts(
            caption=next((text for key in _CAPTION_KEYS if (text := _text(values, key))), None),
            label=label,
            tags=_tags(values.get("tags")),
            style=_text(values, "style"),
            concept=_text(values, "concept") or (slug(label) if label else None),
            group_name=_text(values, "group_name") or _text(values, "group"),
            licence=next((text for key in _LICENCE_KEYS if (text := _text(values, key))), None),
            author=_text(values, "author"),
        )
    except TypeError as error:
        return Facts(caption_error=f"{where}: {error}")


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{key} is a {type(value).__name__}: make it text")
    if "\x00" in value:
        raise TypeError(f"{key} holds a NUL character: remove it")
    return value.strip() or None


def _tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(tag.strip() for tag in value.split(",") if tag.strip())
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return tuple(tag.strip() for tag in value if tag.strip())
    raise TypeError("tags are neither text nor a list of texts: write them as a list")
