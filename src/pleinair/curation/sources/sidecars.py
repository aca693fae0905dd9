"""Captions and facts people keep beside their pictures: `.txt` files and JSON.

A sidecar that cannot be read costs its picture a caption, not the run: the row carries a sentence instead. A sidecar
belongs to the picture that shares its stem; one that names another picture is not believed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pleinair.records.names import slug

MAX_SIDECAR_BYTES = 2**20
"""No caption is longer; a longer file is something else."""
_CAPTION_KEYS = ("caption", "text", "prompt", "description")
_LICENCE_KEYS = ("licence", "license")
_NAME_KEYS = ("file_name", "filename", "image_name", "image", "image_path")


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


def text_facts(data: bytes, where: str, picture: str) -> Facts:
    """Facts of a `.txt` sidecar: the whole text is the caption of the file `picture`."""
    try:
        return Facts(caption=decode_caption(data, where) or None)
    except ValueError as error:
        return Facts(caption_error=str(error))


def json_facts(data: bytes, where: str, picture: str) -> Facts:
    """Facts of a `.json` sidecar: any of caption (or text), label, tags, style, concept, group, licence, author.

    Where it names a file (`file_name`, `image` ...), that must be `picture`, or the caption is somebody else's.
    """
    try:
        values = json.loads(decode_caption(data, where))
    except json.JSONDecodeError as error:
        reason = f"caption file {where} is not JSON (line {error.lineno}: {error.msg}): correct it"
        return Facts(caption_error=reason)
    except RecursionError:
        return Facts(caption_error=f"caption file {where} nests too deeply: write a flat JSON object")
    except ValueError as error:
        return Facts(caption_error=str(error))
    if not isinstance(values, dict):
        return Facts(caption_error=f"caption file {where} holds a {type(values).__name__}: make it a JSON object")
    if other := _names_another(values, picture):
        reason = f"caption file {where} names another picture, {other[:100]!r}: rename the file or correct the name"
        return Facts(caption_error=reason)
    return mapping_facts(values, where)


def _names_another(values: Mapping[str, Any], picture: str) -> str | None:
    """The file name in the values that is not the picture's; folders before it and the suffix do not count."""
    for key in _NAME_KEYS:
        name = values.get(key)
        if isinstance(name, str) and PurePath(name).suffix and PurePath(name).stem != PurePath(picture).stem:
            return name
    return None


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
    if not _is_unicode(value):
        raise TypeError(f"{key} holds half a surrogate pair, which is no character: remove it")
    return value.strip() or None


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def _tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        if any("\x00" in tag or not _is_unicode(tag) for tag in value):
            raise TypeError("tags hold a NUL character or half a surrogate pair: remove it")
        return tuple(tag.strip() for tag in value if tag.strip())
    raise TypeError("tags are neither text nor a list of texts: write them as a list")
