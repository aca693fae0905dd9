"""The captions stage, a thin coat around `captions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pleinair.captioning.templates import captions as captions_of

Row = Mapping[str, Any]


def captions(batch: Sequence[Row], *, style_words: Mapping[str, str]) -> list[dict[str, object]]:
    """Captions in three lengths. A picture without words for it is dropped: the model could learn nothing from it."""
    return [_caption_columns(row, style_words) for row in batch]


def _caption_columns(row: Row, style_words: Mapping[str, str]) -> dict[str, object]:
    drop, made = "", None
    if row.get("caption_error"):
        drop = f"caption: {row['caption_error']}"
    else:
        made = captions_of(row, style_words.get(row.get("style") or ""))
        if made is None:
            drop = "caption: neither caption nor label; add a .txt or .json file beside the picture"
    return {
        "captions_drop": drop,
        "caption_long": made.long if made else None,
        "caption_medium": made.medium if made else None,
        "caption_short": made.short if made else None,
    }
