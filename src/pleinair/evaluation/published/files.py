"""Prompt files that others wrote, read strictly: what is missing is refused with file, line and remedy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pleinair.records.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """One entry of a prompt file, and where it stands."""

    where: str
    values: dict[str, Any]

    def text(self, name: str) -> str:
        """A text that says something, without the blanks around it."""
        value = self._value(name)
        if not isinstance(value, str) or not value.strip():
            raise self.refused(f"{name} is {value!r}, not a text")
        return value.strip()

    def whole(self, name: str) -> int:
        """A whole number, or digits that say one."""
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.refused(f"{name} is {value!r}, not a whole number")
        try:
            return int(value)
        except ValueError:
            raise self.refused(f"{name} is {value!r}, not a whole number") from None

    def entries(self, name: str) -> list[Any]:
        """A list with something in it."""
        value = self._value(name)
        if not isinstance(value, list) or not value:
            raise self.refused(f"{name} is {value!r}, not a list of one or more")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.entries(name)
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise self.refused(f"{name} holds {value!r}, not a text")
        return tuple(values)

    def part(self, name: str) -> Record:
        """An object inside this one."""
        return as_record(self._value(name), f"{name} of {self.where}")

    def parts(self, name: str) -> list[Record]:
        """A list of objects."""
        return [as_record(one, f"{name}[{n}] of {self.where}") for n, one in enumerate(self.entries(name))]

    def refused(self, why: str) -> ConfigError:
        """The error that says what is wrong with this entry."""
        return ConfigError(f"{self.where} cannot be used: {why}; give the benchmark's file as it was published")

    def _value(self, name: str) -> Any:
        if name not in self.values or self.values[name] is None:
            raise self.refused(f"it lacks {name!r}")
        return self.values[name]


def as_record(value: Any, where: str) -> Record:
    """A JSON object as a record. Raises ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {json.dumps(value)[:60]}, not an object: give the benchmark's file as published")
    return Record(where, value)


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigError(f"{path} cannot be read ({unreadable}): give the benchmark's file") from unreadable
    if not text.strip():
        raise ConfigError(f"{path} is empty: give the benchmark's file")
    return text


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises ConfigError naming the line."""
    try:
        return json.loads(read_text(path))
    except ValueError as broken:
        if isinstance(broken, ConfigError):
            raise
        raise ConfigError(f"{path} is no JSON ({broken}): give the benchmark's file") from broken


def read_json_lines(path: Path) -> list[Record]:
    """One object per line; empty lines are passed over. Raises ConfigError."""
    records = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"line {number} of {path}"
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as broken:
                raise ConfigError(f"{where} is no JSON ({broken}): give the benchmark's file") from broken
            records.append(as_record(value, where))
    return records


def read_csv(path: Path, needed: Iterable[str]) -> list[Record]:
    """The rows below a head line that names at least the needed columns. Raises ConfigError."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(
            f"line 1 of {path} lacks the column {missing[0]!r} (it has {', '.join(reader.fieldnames or ())}): "
            "give the benchmark's file as it was published"
        )
    try:
        rows = [Record(f"line {reader.line_num} of {path}", row) for row in reader]
    except csv.Error as broken:
        raise ConfigError(
            f"line {reader.line_num} of {path} is no CSV ({broken}): give the benchmark's file"
        ) from broken
    if not rows:
        raise ConfigError(f"{path} has a head line and nothing below it: give the benchmark's file")
    return rows


def distinct(records: Sequence[Record], keys: Sequence[object], what: str) -> None:
    """Raise ConfigError where two records share a key, since their pictures would share a file."""
    seen: dict[object, Record] = {}
    for record, key in zip(records, keys, strict=True):
        if key in seen:
            raise record.refused(f"its {what} {key!r} was used before, at {seen[key].where}")
        seen[key] = record


def plain_name(record: Record, name: str) -> str:
    """A text that can be a file's name. Raises ConfigError for one that would lead elsewhere."""
    text = record.text(name)
    if text in (".", "..") or any(sign in text for sign in "/\\\0"):
        raise record.refused(f"{name} is {text!r}, which cannot be a file's name")
    return text
