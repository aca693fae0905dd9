"""Rows of a MediaWiki SQL dump as Arrow batches, streamed in bounded memory.

    x.sql.gz --gunzip--> blocks that end between statements --> body of one INSERT --rewritten as CSV--> Arrow's reader

The order of columns is read from the dump's own CREATE TABLE: it differs between MediaWiki versions. Arrow's CSV reader
knows MySQL's quoting (quote ', escape \\), so tuples only have to become lines: `)` becomes a newline and `(` a tab, which
Arrow skips before a number, everywhere, also inside strings, and the values are put back. That is safe because
mysqldump escapes every newline of a value; a statement with a tab of its own takes the slower way, `),(` by newline.
Only \\0 \\n \\r \\t \\b \\Z mean another character to MySQL; a statement that holds one is read by a regular expression.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from pleinair.records.errors import SourceError

CHUNK_BYTES = 8 << 20
MAX_STATEMENT_BYTES = 1 << 30
"""A statement of a real dump has about one megabyte; beyond this the file is something else."""
_TYPES = {"tinyint": pa.int32(), "smallint": pa.int32(), "int": pa.int64(), "bigint": pa.int64()}
_TOKEN = re.compile(rb"'((?:[^'\\]|\\.)*)'|([^,()']+)|(\))", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_MEANS = {b"0": b"\0", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"Z": b"\x1a"}
_LETTERS = np.isin(np.arange(256), [ord(letter) for letter in _MEANS])

OnBytes = Callable[[int, int], None]


def read_dump(
    path: Path, table: str, columns: Sequence[str], *, optional: Sequence[str] = (), on_bytes: OnBytes | None = None
) -> Iterator[pa.RecordBatch]:
    """The named columns of `table`: integers as int32 or int64, everything else as binary; one batch per INSERT.

    Columns in `optional` are left out where the dump lacks them. `on_bytes` is told the bytes read of the file and its
    size. Raises SourceError for a file that is cut off, of another table, or that lacks a column.
    """
    with path.open("rb") as file:
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file)
        schema: dict[str, pa.DataType] = {}
        try:
            for statement in _statements(stream, path):
                if not schema and b"CREATE TABLE" in statement:
                    schema = _schema(statement, path, table)
                    wanted = _wanted(schema, columns, optional, path)
                elif body := _insert_body(statement, table):
                    if not schema:
                        raise SourceError(f"{path} has rows before its CREATE TABLE: give the dump as it was published")
                    yield _rows(body, schema, wanted, path)
                    if on_bytes:
                        on_bytes(file.tell(), path.stat().st_size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(f"{path} is damaged or cut off ({error}): download it again") from error
        if not schema:
            raise SourceError(f"{path} holds no CREATE TABLE `{table}`: give the {table} dump of the wiki")


def _statements(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """Statements without their final `;`. No value holds a raw newline, so `;` at a line's end ends a statement."""
    rest = b""
    while chunk := stream.read(CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b";\n")
        yield from whole
        if len(rest) > MAX_STATEMENT_BYTES:
            raise SourceError(f"{path} has a statement over {MAX_STATEMENT_BYTES >> 20} MiB: give a mysqldump file")
    if b"INSERT INTO" in rest or b"CREATE TABLE" in rest:
        raise SourceError(f"{path} ends inside a statement: the file is cut off; download it again")


def _insert_body(statement: bytes, table: str) -> bytes | None:
    """`(1,'a'),(2,'b')` of an INSERT into `table`, tuples on lines of their own joined; None for other statements."""
    head, values, body = statement.partition(b" VALUES")
    if not values or not head.endswith(b"INSERT INTO `" + table.encode() + b"`"):
        return None
    body = body.strip()
    return body.replace(b"\n", b"") if b"\n" in body else body


def _schema(statement: bytes, path: Path, table: str) -> dict[str, pa.DataType]:
    text = statement[statement.index(b"CREATE TABLE") :].decode("utf-8", "replace")
    named = re.match(r"CREATE TABLE (?:IF NOT EXISTS )?`(\w+)`", text)
    if named is None or named[1] != table:
        raise SourceError(f"{path} is the dump of {named[1] if named else 'nothing known'}, not of `{table}`")
    found = re.findall(r"^\s*`(\w+)` (\w+)", text, re.MULTILINE)
    return {name: _TYPES.get(kind, pa.binary()) for name, kind in found}


def _wanted(schema: dict[str, pa.DataType], columns: Sequence[str], optional: Sequence[str], path: Path) -> list[str]:
    missing = [name for name in columns if name not in schema]
    if missing:
        raise SourceError(
            f"{path} has no column {missing[0]!r}, only {', '.join(schema)}: its schema is not known here"
        )
    return [*columns, *(name for name in optional if name in schema)]


def _rows(body: bytes, schema: dict[str, pa.DataType], wanted: list[str], path: Path) -> pa.RecordBatch:
    types = [schema[name] for name in wanted]
    try:
        if all(kind != pa.binary() for kind in schema.values()):
            return _integer_rows(body, schema, wanted)
        if _has_letter_escape(body):
            return _escaped_rows(body, list(schema), wanted, types)
        return _text_rows(body, schema, wanted)
    except (pa.ArrowInvalid, ValueError) as error:
        raise SourceError(f"{path}: a statement cannot be read ({str(error)[:160]}): download it again") from error


def _has_letter_escape(body: bytes) -> bool:
    """Whether a backslash stands before a letter that then means another character; `\\\\n` is a false alarm."""
    # One pass for the backslashes and a look behind each: searching for the six pairs took as long as reading the rows.
    codes = np.frombuffer(body, np.uint8)
    behind = np.flatnonzero(codes[:-1] == ord("\\")) + 1
    return bool(_LETTERS[codes[behind]].any())


_AS_LINES = bytes.maketrans(b")", b"\n")
_AS_TABBED_LINES = bytes.maketrans(b"()", b"\t\n")
_AS_THEY_WERE = bytes.maketrans(b"\t\n", b"()")


def _integer_rows(body: bytes, schema: dict[str, pa.DataType], wanted: list[str]) -> pa.RecordBatch:
    # One pass over the bytes: `(` goes, `)` ends a line, and the comma between tuples opens a first, empty column.
    return _csv(b"," + body.translate(_AS_LINES, b"("), ["", *schema], wanted, schema, csv.ParseOptions())


def _text_rows(body: bytes, schema: dict[str, pa.DataType], wanted: list[str]) -> pa.RecordBatch:
    quoting = csv.ParseOptions(quote_char="'", escape_char="\\", newlines_in_values=True)
    if next(iter(schema.values())) == pa.binary() or b"\t" in body:
        batch = _csv(body[1:-1].replace(b"),(", b"\n"), list(schema), wanted, schema, quoting)
        columns = [_put_back(column) if column.type == pa.binary() else column for column in batch.columns]
    else:
        # Bytes for bytes is twice as fast as replacing `),(`; the empty first column is that of `_integer_rows`.
        batch = _csv(b"," + body.translate(_AS_TABBED_LINES), ["", *schema], wanted, schema, quoting)
        columns = [_translated_back(column) if column.type == pa.binary() else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=wanted)


def _put_back(column: pa.Array) -> pa.Array:
    data = column.buffers()[2]
    if data is None or b"\n" not in data.to_pybytes():
        return column
    return pc.replace_substring(column, pattern=b"\n", replacement=b"),(")


def _translated_back(column: pa.Array) -> pa.Array:
    valid, offsets, data = column.buffers()
    if data is None:
        return column
    text = pa.py_buffer(data.to_pybytes().translate(_AS_THEY_WERE))
    return pa.Array.from_buffers(column.type, len(column), [valid, offsets, text], column.null_count, column.offset)


def _csv(
    text: bytes, names: list[str], wanted: list[str], types: dict[str, pa.DataType], quoting: csv.ParseOptions
) -> pa.RecordBatch:
    table = csv.read_csv(
        pa.BufferReader(text),
        read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=len(text) + 1),
        parse_options=quoting,
        convert_options=csv.ConvertOptions(
            include_columns=wanted,
            column_types=types,
            null_values=["NULL"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    return table.combine_chunks().to_batches()[0]


def _escaped_rows(body: bytes, names: list[str], wanted: list[str], types: list[pa.DataType]) -> pa.RecordBatch:
    rows = _tuples(body)
    if any(len(row) != len(names) for row in rows):
        raise ValueError(f"a row does not have the {len(names)} columns of the table")
    places = [names.index(name) for name in wanted]
    arrays = []
    for place, kind in zip(places, types, strict=True):
        values = [row[place] for row in rows]
        whole = values if kind == pa.binary() else [None if value is None else int(value) for value in values]
        arrays.append(pa.array(whole, kind))
    return pa.RecordBatch.from_arrays(arrays, names=wanted)


def _tuples(body: bytes) -> list[list[bytes | None]]:
    rows: list[list[bytes | None]] = []
    row: list[bytes | None] = []
    for found in _TOKEN.finditer(body):
        if found.lastindex == 3:
            rows.append(row)
            row = []
        elif found.lastindex == 2:
            row.append(None if found[2] == b"NULL" else found[2])
        else:
            row.append(_ESCAPE.sub(lambda escape: _MEANS.get(escape[1], escape[1]), found[1]))
    return rows
