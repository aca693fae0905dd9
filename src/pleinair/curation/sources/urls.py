"""Lists of URLs: `.txt` (a URL a line, with an optional caption after a tab), `.csv` and `.parquet` with a column `url`.

Listing opens nothing but the list; the fetch stage goes to the web, see `curation.web`. Keys are digests of the URLs, so
workers, which take rows in the order of keys, meet many hosts at once instead of one host's pictures in a row.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pleinair.curation.sources.files import picture_row, printable
from pleinair.curation.sources.rows import PictureRow, short_hash
from pleinair.curation.sources.shards import FACT_COLUMNS, PICTURE_COLUMNS, opened_parquet
from pleinair.curation.sources.sidecars import Facts, mapping_facts
from pleinair.records.errors import SourceError
from pleinair.records.names import slug

URL_COLUMNS = ("url", "image_url", "uri", "link")
LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_SCHEMES = ("http", "https")
_MAX_LINE_BYTES = 2**20


def lists_urls(path: Path) -> bool:
    """Whether a Parquet file holds URLs and no pictures."""
    with opened_parquet(path) as file:
        names = file.schema_arrow.names
    return not set(names) & set(PICTURE_COLUMNS) and bool(set(names) & set(URL_COLUMNS))


Line = tuple[str, Mapping[str, Any]]
"""(where, values) of one entry, `url` among the values."""


class UrlSource:
    """The pictures behind the URLs of one or more lists. `style` is the style of all that name none."""

    def __init__(self, files: Sequence[Path], style: str | None = None, name: str | None = None) -> None:
        self._files = [path.resolve() for path in files]
        self._style = style
        self.name = name or f"{slug(self._files[0].stem) or 'urls'}-{short_hash(str(self._files[0]))}"
        self.notes: list[str] = []

    def list(self) -> Iterator[PictureRow]:
        """A row per URL, in the order of the list; a URL that comes again with the same words is one picture.

        Raises SourceError naming the line: no URL, two captions for one URL, an encoding that is not UTF-8.
        """
        seen: dict[str, tuple[str, Facts]] = {}
        num_repeats = 0
        for path in self._files:
            for where, values in _lines(path):
                url, facts = _url(values, where), mapping_facts(values, where)
                first, said = seen.setdefault(url, (where, facts))
                if first == where:
                    yield self._row(url, where, facts)
                elif said != _renamed(facts, where, first):
                    raise SourceError(f"{where} says something else of {url} than {first}: keep one of them")
                else:
                    num_repeats += 1
        self.notes = [f"{num_repeats} lines repeat a URL and add nothing"] if num_repeats else []
        if not seen:
            raise SourceError(f"no URL in {printable(self._files[0])}: give one a line")

    def _row(self, url: str, where: str, facts: Facts) -> PictureRow:
        return picture_row(
            facts,
            image_name=f"{self.name}/{hashlib.sha256(url.encode()).hexdigest()[:24]}",
            uri=url,
            source=self.name,
            provenance=where,
            style=self._style,
        )


def _renamed(facts: Facts, where: str, first: str) -> Facts:
    """The facts as if they stood where the first ones do: an error names its place."""
    if facts.caption_error is None:
        return facts
    return Facts(caption_error=facts.caption_error.replace(where, first))


def _url(values: Mapping[str, Any], where: str) -> str:
    column = next((name for name in URL_COLUMNS if name in values), "url")
    text = values.get(column)
    if not isinstance(text, str) or not text.strip():
        raise SourceError(f"{where} has no URL in column {column}: add it or remove the line")
    scheme, colon, rest = text.strip().partition(":")
    # What is no web address must not become the address of a file on this machine.
    if not colon or scheme.lower() not in _SCHEMES or not rest.startswith("//"):
        raise SourceError(f"{where} holds {text.strip()[:100]!r}, no http or https URL: correct or remove it")
    if any(sign.isspace() or not sign.isprintable() for sign in rest):
        raise SourceError(f"{where} holds {text.strip()[:100]!r} with a space or control character: percent-encode it")
    return f"{scheme.lower()}:{rest}"


def _lines(path: Path) -> Iterator[Line]:
    readers = {".txt": _text_lines, ".csv": _csv_lines, ".parquet": _parquet_lines}
    return readers[path.suffix](path)


def _text_lines(path: Path) -> Iterator[Line]:
    for number, line in enumerate(_decoded(path), start=1):
        if line.strip() and not line.startswith("#"):
            url, _, caption = line.strip().partition("\t")
            yield f"{printable(path.name)} line {number}", {"url": url, "caption": caption or None}


def _csv_lines(path: Path) -> Iterator[Line]:
    # The csv module's own limit, 128 KiB a field, stays: no caption is longer.
    reader = csv.DictReader(_decoded(path), strict=True)
    try:
        columns = reader.fieldnames or ()
        _check_columns(columns, path)
        for values in reader:
            where = f"{printable(path.name)} line {reader.line_num}"
            if None in values or None in values.values():
                raise SourceError(f"{where} has not the {len(columns)} columns of the first line: correct it")
            yield where, {name: values[name] for name in columns if name in (*URL_COLUMNS, *FACT_COLUMNS)}
    except csv.Error as error:
        raise SourceError(f"{printable(path.name)} line {reader.line_num} is not CSV ({error}): correct it") from error


def _parquet_lines(path: Path) -> Iterator[Line]:
    with opened_parquet(path) as file:
        names = file.schema_arrow.names
        _check_columns(names, path)
        wanted = [name for name in names if name in (*URL_COLUMNS, *FACT_COLUMNS)]
        number = 0
        for batch in file.iter_batches(4096, columns=wanted):
            for values in batch.to_pylist():
                yield f"{printable(path.name)} row {number}", values
                number += 1


def _check_columns(names: Sequence[str], path: Path) -> None:
    if not any(name in names for name in URL_COLUMNS):
        raise SourceError(
            f"{printable(path)} has no column of URLs among {', '.join(names) or 'none'}: name one of "
            f"{', '.join(URL_COLUMNS)}"
        )
    if repeated := [name for name in names if list(names).count(name) > 1]:
        raise SourceError(f"{printable(path)} has the column {repeated[0]} twice: rename one")


def _decoded(path: Path) -> Iterator[str]:
    """Lines as text. Raises SourceError naming line and byte that are no UTF-8."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            where = f"{printable(path.name)} line {number}"
            if len(line) > _MAX_LINE_BYTES:
                raise SourceError(f"{where} is over {_MAX_LINE_BYTES} bytes: is this a list of URLs?")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{where} is not UTF-8 (byte {error.start} is 0x{line[error.start]:02x}): save it as UTF-8"
                ) from error
            if "\x00" in text:
                raise SourceError(f"{where} holds a NUL character: save the list as UTF-8")
            yield text
