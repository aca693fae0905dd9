"""Ranges of keys: every key in exactly one, and none much larger than its target, however the keys are spread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pleinair import krablet
from pleinair.krablet.connections import Connection
from pleinair.krablet.pluck.bounds import Range, choose_target, plan_ranges, take_sample
from pleinair.krablet.pluck.source import Source, matching_keys, open_source
from pleinair.krablet.pluck.worker import LARGEST_FACTOR
from pleinair.records.errors import QueueError


@pytest.fixture
def connection(database: krablet.Database) -> Iterator[Connection]:
    with database.connection() as connection:
        yield connection


def keys_in(connection: Connection, source: Source, part: Range) -> list[str]:
    return matching_keys(connection, source, part.after, part.up_to, single=False, limit=1_000_000)


def sizes(connection: Connection, source: Source, ranges: list[Range]) -> list[int]:
    return [len(keys_in(connection, source, part)) for part in ranges]


def planned(connection: Connection, source: Source, target: int, pages: int | None = None) -> list[Range]:
    return plan_ranges(connection, source, take_sample(connection, source, pages=pages), target)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    early=st.sets(
        st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=6), max_size=60
    ),
    late=st.sets(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=6), max_size=60),
    target=st.integers(1, 9),
)
def test_ranges_hold_every_key_once_even_those_inserted_later(
    connection: Connection, early: set[str], late: set[str], target: int
) -> None:
    connection.execute("DROP TABLE IF EXISTS words; CREATE TABLE words (word text PRIMARY KEY)")
    connection.execute("INSERT INTO words SELECT unnest(%s::text[])", [list(early)])
    source = open_source(connection, "words", "word", "TRUE")
    ranges = planned(connection, source, target)
    connection.execute("INSERT INTO words SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [list(late)])
    found = [key for part in ranges for key in keys_in(connection, source, part)]
    assert len(found) == len(set(found))
    assert set(found) == early | late
    assert ranges[0].after is None
    assert ranges[-1].up_to is None


@pytest.mark.parametrize(
    ("key_type", "value"),
    [
        ("bigint", "i * 1000003 - 9"),
        ("uuid", "md5(i::text)::uuid"),
        ("timestamptz", "'2020-01-01'::timestamptz + i * interval '97 s'"),
        ("double precision", "sqrt(i::double precision)"),
        ("numeric(20, 3)", "i / 7.0"),
        ("bytea", "decode(md5(i::text), 'hex')"),
        ("varchar(40)", "md5(i::text)"),
    ],
)
def test_keys_of_every_type_split_a_table(connection: Connection, key_type: str, value: str) -> None:
    connection.execute(f"CREATE TABLE things (key {key_type} PRIMARY KEY)")
    connection.execute(f"INSERT INTO things SELECT {value} FROM generate_series(1, 1000) i")
    source = open_source(connection, "things", "key", "TRUE")
    assert sizes(connection, source, planned(connection, source, 100)) == [100] * 10


SKEWED = {
    "one prefix holds 95%": "CASE WHEN i % 20 = 0 THEN chr(97 + i % 26) ELSE 'same/long/prefix/' END || md5(i::text)",
    "keys in the order of the heap": "lpad(i::text, 9, '0')",
    "keys crowd exponentially": "lpad(round(exp(i / 4000.0) * 1e6)::text, 20, '0') || i",
}


@pytest.mark.parametrize("keys", SKEWED.values(), ids=SKEWED)
def test_ranges_of_a_sampled_table_stay_near_their_target_however_keys_are_spread(
    connection: Connection, keys: str
) -> None:
    connection.execute("CREATE TABLE skewed (key text PRIMARY KEY, filler text)")
    # Every 50th stretch of rows is 30 times as wide, so pages hold from 4 to 100 rows.
    connection.execute(
        f"INSERT INTO skewed SELECT {keys}, repeat('x', CASE WHEN i / 200 % 50 = 0 THEN 1800 ELSE 30 END) "
        "FROM generate_series(1, 60000) i"
    )
    source = open_source(connection, "skewed", "key", "TRUE")
    found = sizes(connection, source, planned(connection, source, 1200, pages=300))
    assert sum(found) == 60000
    assert max(found) <= 2.5 * 1200
    assert 25 <= len(found) <= 80


def test_a_condition_true_in_one_corner_gets_its_ranges_there(connection: Connection) -> None:
    connection.execute("CREATE TABLE corner (key bigint PRIMARY KEY, filler text)")
    connection.execute("INSERT INTO corner SELECT i, repeat('x', 200) FROM generate_series(1, 50000) i")
    source = open_source(connection, "corner", "key", "key > 49000")
    ranges = planned(connection, source, 100)
    assert sizes(connection, source, [part for part in ranges if part.expected]) == [100] * 10
    everything = open_source(connection, "corner", "key", "TRUE")
    assert max(sizes(connection, everything, ranges)) <= 64 * 100


def test_a_condition_true_in_one_corner_of_a_sampled_table_is_found(connection: Connection) -> None:
    connection.execute("CREATE TABLE corner (key bigint PRIMARY KEY, filler text)")
    connection.execute("INSERT INTO corner SELECT i, repeat('x', 200) FROM generate_series(1, 50000) i")
    source = open_source(connection, "corner", "key", "key > 49000")
    found = sizes(connection, source, planned(connection, source, 100, pages=400))
    assert sum(found) == 1000
    assert max(found) <= 1000


def test_an_empty_sample_falls_back_to_reading_all_keys(connection: Connection) -> None:
    connection.execute("CREATE TABLE hollow (key bigint PRIMARY KEY, filler text) WITH (autovacuum_enabled = false)")
    connection.execute("INSERT INTO hollow SELECT i, repeat('x', 400) FROM generate_series(1, 20000) i")
    connection.execute("DELETE FROM hollow WHERE key <= 19980")
    source = open_source(connection, "hollow", "key", "TRUE")
    sample = take_sample(connection, source, pages=1)
    assert (sample.percent, sample.rows) == (100.0, 20)
    assert sizes(connection, source, plan_ranges(connection, source, sample, 5)) == [5] * 4


@pytest.mark.parametrize("rows", [0, 1])
def test_a_table_with_hardly_a_row_is_one_range(connection: Connection, rows: int) -> None:
    connection.execute("CREATE TABLE tiny (key bigint PRIMARY KEY)")
    connection.execute("INSERT INTO tiny SELECT generate_series(1, %s)", [rows])
    source = open_source(connection, "tiny", "key", "TRUE")
    assert planned(connection, source, 10) == [Range(None, None, rows)]


def test_a_target_is_a_few_calls_and_leaves_ranges_to_share() -> None:
    assert [choose_target(rows, 64) for rows in (0, 100, 10_000, 50_000, 10**9)] == [64, 64, 157, 782, 1024]
    assert LARGEST_FACTOR == 2


def test_a_key_that_may_repeat_or_be_null_is_refused(connection: Connection) -> None:
    connection.execute("CREATE TABLE loose (key bigint, other bigint UNIQUE, third bigint NOT NULL)")
    for key in ("key", "other", "third", "none"):
        with pytest.raises(QueueError, match=f"loose.{key} cannot split the table: name a column that is NOT NULL"):
            open_source(connection, "loose", key, "TRUE")
    with pytest.raises(QueueError, match="there is no table 'absent'"):
        open_source(connection, "absent", "key", "TRUE")
