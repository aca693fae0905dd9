"""Loading Arrow data: what is written is what is read, whatever exists already."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest

from pleinair import krablet
from pleinair.krablet import bulk
from pleinair.krablet.reading.requests import ScanRequest
from pleinair.krablet.reading.scan import scan
from pleinair.records.errors import QueueError
from tests.krablet.reading.conftest import WIDE, Shards, Wide

NARROW = {"key": "text", "n": "bigint", "x": "double precision"}


def declare(shards: Shards, name: str, columns: dict[str, str]) -> None:
    for dsn in shards.dsns:
        with krablet.connect(dsn) as database:
            database.table(name, key="key", columns=columns)


def rows_of(shards: Shards, name: str) -> list[tuple[Any, ...]]:
    return sorted(shards.execute(f"SELECT key, n, x FROM {name}"))


def test_what_is_loaded_is_what_was_read(wide: Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK_ROWS", 64)
    declare(wide.shards, "copied", WIDE)
    original = scan(wide.pools, ScanRequest(table="wide", order_by="key")).to_table()
    seen: list[int] = []
    written = wide.shards.load("copied", original, on_conflict="error", on_progress=seen.append)
    assert written == original.num_rows == seen[-1]
    assert len(seen) == 5
    copied = scan(wide.pools, ScanRequest(table="copied", order_by="key")).to_table()
    assert str(copied.to_pylist()) == str(original.to_pylist()), "text, as NaN is not equal to NaN"
    wide.shards.execute("DROP TABLE copied")
    wide.shards.execute("DELETE FROM pleinair.tables WHERE name = 'copied'")


@pytest.mark.parametrize(
    ("on_conflict", "expected"),
    [
        ("update", [("a", 1, 0.5), ("b", 9, 2.5), ("c", 8, None)]),
        ("skip", [("a", 1, 0.5), ("b", 2, 2.5), ("c", 8, None)]),
    ],
)
def test_a_key_that_exists_is_updated_or_skipped_and_of_a_repeated_one_the_last_row_stays(
    shards: Shards, on_conflict: Any, expected: list[tuple[Any, ...]]
) -> None:
    declare(shards, "t", NARROW)
    first = pa.table({"key": ["a", "b"], "n": [1, 2], "x": [0.5, 2.5]})
    assert shards.load("t", first, on_conflict="error") == 2
    second = pa.table({"n": [7, 9, 8], "key": ["c", "b", "c"]})
    written = shards.load("t", second, on_conflict=on_conflict)
    assert written == (2 if on_conflict == "update" else 1)
    assert rows_of(shards, "t") == expected


def test_loading_a_key_that_exists_is_an_error_when_asked_for_and_writes_nothing(shards: Shards) -> None:
    declare(shards, "t", NARROW)
    shards.load("t", pa.table({"key": ["b"], "n": [2]}))
    with pytest.raises(QueueError, match="duplicate key value .*load with on_conflict='update' or 'skip'"):
        shards.load(
            "t",
            pa.table({"key": ["b", "a"], "n": [3, 1]}),
            on_conflict="error",
            shard_of=lambda key: shards.shard_of("b"),
        )
    assert rows_of(shards, "t") == [("b", 2, None)]


def test_text_that_looks_like_csv_null_or_its_end_stays_text(shards: Shards) -> None:
    declare(shards, "t", {"key": "text", "n": "bigint", "x": "double precision", "words": "text[]"})
    keys = ["", '"', '""', "\\N", "\\.", "a\n\\.\nb", "a,b", "NULL", " ", "\r\n", "\u00fc"]
    words = [[key, None] for key in keys]
    shards.load("t", pa.table({"key": keys, "words": words}))
    assert sorted(shards.execute("SELECT key, words FROM t")) == sorted(zip(keys, words, strict=True))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (pa.table({"key": ["a"], "nope": [1]}), "table t has no column 'nope': declare it"),
        (pa.table({"n": [1]}), "the data for table t has no key: give the column 'key'"),
        (pa.table({"key": ["a", None]}), "a row for table t has no key"),
        (
            pa.table({"key": ["a"], "n": ["three"]}),
            'invalid input syntax for type bigint: "three", COPY t, line 1',
        ),
        (pa.table({"key": ["a\x00"]}), 'invalid byte sequence for encoding "UTF8": 0x00'),
        (
            pa.table({"key": ["a"], "at": [datetime.datetime(2024, 1, 1)]}),
            "t.at is timestamp with time zone and cannot hold",
        ),
        (pa.table({"key": ["a"], "n": [{"b": 1}]}), "the data for table t cannot be written: .*cast it in Arrow first"),
    ],
)
def test_data_that_does_not_fit_is_refused_and_nothing_of_it_written(
    shards: Shards, data: pa.Table, complaint: str
) -> None:
    declare(shards, "t", {**NARROW, "at": "timestamptz"})
    with pytest.raises(QueueError, match=complaint):
        shards.load("t", data, shard_of=lambda key: 0)
    assert rows_of(shards, "t") == []


def test_several_shards_without_a_routing_are_refused(three_shards: Shards) -> None:
    with pytest.raises(QueueError, match="3 shards are given without shard_of"):
        three_shards.load("t", pa.table({"key": ["a"]}), shard_of=None)
