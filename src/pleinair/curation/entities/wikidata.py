"""What Wikidata says of a wiki's articles, from its JSON dump (one entity a line), streamed.

Of an article's item: its types (P31), English label and aliases. Of every item with superclasses (P279): those. A line is
parsed only when its item is wanted or holds P279, told from its first bytes and one search: most lines are neither.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pleinair.curation.entities.dumps import OnBytes
from pleinair.records.errors import SourceError

_HEAD = re.compile(rb'^\s*\{"type":"item","id":"Q(\d+)"')
_TELL_EVERY = 10_000


@dataclass(frozen=True)
class Facts:
    """Types, superclasses and names; an item is its number (42 for Q42)."""

    types: tuple[array[int], array[int]] = field(default_factory=lambda: (array("q"), array("q")))
    """Items and, aligned, a class each is an instance of (P31)."""
    superclasses: tuple[array[int], array[int]] = field(default_factory=lambda: (array("q"), array("q")))
    """Classes and, aligned, a class each is a subclass of (P279)."""
    labels: dict[int, str] = field(default_factory=dict)
    names: list[tuple[int, str]] = field(default_factory=list)
    """Labels and aliases of the wanted items."""

    @classmethod
    def none(cls) -> Facts:
        """Nothing known."""
        return cls()


def read_wikidata(
    path: Path, wanted: npt.NDArray[np.int64], *, language: str = "en", on_bytes: OnBytes | None = None
) -> Facts:
    """Facts about the `wanted` items, and all superclasses. Raises SourceError naming a line that is not JSON."""
    want = np.zeros(int(wanted.max(initial=0)) + 1, np.uint8)
    want[wanted] = 1
    want[0] = 0
    marks, facts = want.tobytes(), Facts()
    with path.open("rb") as file:
        try:
            for number, line in enumerate(_unpacked(file, path), start=1):
                _read_line(line, marks, language, facts, path, number)
                if on_bytes and number % _TELL_EVERY == 0:
                    on_bytes(file.tell(), path.stat().st_size)
        except (EOFError, gzip.BadGzipFile) as error:
            raise SourceError(f"{path} is damaged or cut off ({error}): download it again") from error
    return facts


def _unpacked(file: IO[bytes], path: Path) -> Iterator[bytes]:
    if path.suffix == ".gz":
        return iter(gzip.GzipFile(fileobj=file))
    return iter(bz2.BZ2File(file)) if path.suffix == ".bz2" else iter(file)


def _read_line(line: bytes, marks: bytes, language: str, facts: Facts, path: Path, number: int) -> None:
    head = _HEAD.match(line)
    if head is None:
        return
    item = int(head[1])
    wanted = item < len(marks) and marks[item]
    if not wanted and b'"P279"' not in line:
        return
    try:
        entity = json.loads(line.rstrip().rstrip(b","))
    except ValueError as error:
        raise SourceError(f"{path}: line {number} is not JSON ({error}): download the dump again") from error
    _add_classes(facts.superclasses, item, entity, "P279")
    if wanted:
        _add_classes(facts.types, item, entity, "P31")
        _add_names(facts, item, entity, language)


def _add_classes(into: tuple[array[int], array[int]], item: int, entity: Mapping[str, Any], relation: str) -> None:
    # An item without claims has [] there, not {}.
    claims = entity.get("claims") or {}
    for claim in claims.get(relation, ()):
        value = claim["mainsnak"].get("datavalue")
        if value is not None and claim.get("rank") != "deprecated":
            into[0].append(item)
            into[1].append(value["value"]["numeric-id"])


def _add_names(facts: Facts, item: int, entity: Mapping[str, Any], language: str) -> None:
    label = (entity.get("labels") or {}).get(language)
    if label:
        facts.labels[item] = label["value"]
        facts.names.append((item, label["value"]))
    facts.names.extend((item, alias["value"]) for alias in (entity.get("aliases") or {}).get(language, ()))


def unrepresentable_items(facts: Facts, classes: Mapping[int, str]) -> dict[int, str]:
    """Items all of whose types lie in or below `classes` -> the label of the class met first, in the order given.

    An item with one type outside stays: what is dropped here is never looked for again.
    """
    below = _below(facts, classes)
    found: dict[int, str] = {}
    outside: set[int] = set()
    for item, kind in zip(*facts.types, strict=True):
        if kind in below:
            found.setdefault(item, below[kind])
        else:
            outside.add(item)
    return {item: label for item, label in found.items() if item not in outside}


def _below(facts: Facts, classes: Mapping[int, str]) -> dict[int, str]:
    """Every class at or below the given ones, with the label of the given one."""
    children: dict[int, list[int]] = {}
    for child, parent in zip(*facts.superclasses, strict=True):
        children.setdefault(parent, []).append(child)
    below: dict[int, str] = {}
    for root, label in classes.items():
        waiting = [root]
        while waiting:
            one = waiting.pop()
            if one not in below:
                below[one] = label
                waiting += children.get(one, ())
    return below
