"""What is known of one picture, in the order a person asks: the verdicts, where it came from, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pleinair.curation.stages import SOURCE_COLUMNS

Row = Mapping[str, Any]
_ORIGIN = (*SOURCE_COLUMNS, "consent", "consent_signal", "consent_at", "fetched_at", "md5", "num_bytes", "image_path")
_CAPTIONS = ("caption_long", "caption_medium", "caption_short", "caption_tags", "caption_instruction", "caption_json")
_JUDGED = ("claims", "failing_claims")
_STATE = ("_drop", "_tried_at", "_attempts", "_error")


def value_text(value: object) -> str:
    """A column's value for people."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes {value[:8].hex()}..."
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(value_text(one) for one in value)
    return str(value)


def origin(row: Row) -> dict[str, str]:
    """Where a picture came from, under which terms, and when."""
    return _told(row, [name for name in _ORIGIN if name in row])


def captions(row: Row) -> dict[str, str]:
    """What is said of it."""
    return _told(row, [name for name in row if name in _CAPTIONS or name.startswith("description")])


def measured(row: Row) -> dict[str, str]:
    """Every other column that has a value."""
    known = {*_ORIGIN, *_CAPTIONS, *_JUDGED, "description"}
    return _told(row, [name for name in row if name not in known and not name.endswith(_STATE)])


def history(row: Row, stages: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Of every stage that touched it: (stage, verdict, when it was tried last, attempts and error)."""
    return [_stage_history(row, stage) for stage in stages if _touched(row, stage)]


def _touched(row: Row, stage: str) -> bool:
    return row.get(f"{stage}_drop") is not None or row.get(f"{stage}_tried_at") is not None


def _stage_history(row: Row, stage: str) -> tuple[str, str, str, str]:
    verdict, tried = row.get(f"{stage}_drop"), row.get(f"{stage}_tried_at")
    attempts, error = row.get(f"{stage}_attempts"), row.get(f"{stage}_error")
    told = {None: "not yet", "": "kept"}.get(verdict, verdict)
    tries = f"{attempts} failed attempts: {error}" if error else ""
    return stage, str(told), value_text(tried) if tried else "", tries


def claims(row: Row) -> list[dict[str, Any]]:
    """The claims of its caption, each with what was found: `text`, `holds`, `by`, `score`."""
    found = row.get("claims")
    parsed = json.loads(found) if isinstance(found, str) else found
    return [claim for claim in parsed or [] if isinstance(claim, dict)]


def _told(row: Row, names: Sequence[str]) -> dict[str, str]:
    return {name: value_text(row[name]) for name in names if row[name] not in (None, "", [])}
