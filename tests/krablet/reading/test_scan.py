"""Reads of one and of three servers give what Python finds in the same rows."""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pleinair.krablet.reading import copy_stream
from pleinair.krablet.reading.limits import Limits, Run
from pleinair.krablet.reading.merge import merged, sort_indices
from pleinair.krablet.reading.requests import (
    GetRequest,
    LimitError,
    Order,
    ReadError,
    ScanRequest,
    SqlRequest,
    from_json,
    to_json,
)
from pleinair.krablet.reading.scan import get, scan, sql
from tests.krablet.reading.conftest import WIDE, Shards, Wide

Row = dict[str, Any]
SORTABLE = ("key", "flag", "small", "n", "r", "x", "day", "at", "raw", "u")
# The fixtures are only read, so that examples may share them.
examples = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Condition:
    """A condition in SQL and the same in Python, where None is SQL's unknown."""

    sql: str
    holds: Callable[[Row], bool | None]
    params: tuple[Any, ...] = ()


def _compared(name: str, value: Any, smaller: bool) -> Condition:
    def holds(row: Row) -> bool | None:
        if row[name] is None:
            return None
        return bool(row[name] < value if smaller else row[name] == value)

    return Condition(f"{name} {'<' if smaller else '='} %s", holds, (value,))


def _not(inner: Condition) -> Condition:
    def holds(row: Row) -> bool | None:
        found = inner.holds(row)
        return None if found is None else not found

    return Condition(f"NOT ({inner.sql})", holds, inner.params)


def _both(left: Condition, right: Condition) -> Condition:
    def holds(row: Row) -> bool | None:
        found = {left.holds(row), right.holds(row)}
        return False if False in found else None if None in found else True

    return Condition(f"({left.sql}) AND ({right.sql})", holds, left.params + right.params)


LEAVES = st.one_of(
    st.builds(_compared, st.sampled_from(["small", "n"]), st.integers(-4, 4), st.booleans()),
    st.builds(_compared, st.just("u"), st.uuids().map(str), st.just(True)),
    st.sampled_from(WIDE_NAMES := tuple(WIDE)).map(
        lambda name: Condition(f"{name} IS NULL -- any: 100%%", lambda row: row[name] is None)
    ),
    st.just(Condition("flag", lambda row: row["flag"])),
)
CONDITIONS = st.recursive(LEAVES, lambda inner: st.builds(_not, inner) | st.builds(_both, inner, inner), max_leaves=4)


def _broken_lines(condition: Condition) -> str:
    """A comment ends with its line, so that what follows stays SQL."""
    return condition.sql.replace("%%)", "%%\n)")


ORDERS = st.builds(
    lambda name, direction, nulls: f"{name}{direction}{nulls}",
    st.sampled_from(SORTABLE),
    st.sampled_from(["", " ASC", " desc"]),
    st.sampled_from(["", " NULLS FIRST", " nulls last"]),
)


def rank(value: Any, order: Order) -> tuple[Any, ...]:
    """What Postgres sorts by, for one value: NULLs where asked, NaN above all numbers, text by its bytes."""
    if value is None:
        return (0 if order.nulls_first else 2,)
    if isinstance(value, float) and math.isnan(value):
        key: Any = (1, 0.0)
    else:
        key = (0, value.encode() if isinstance(value, str) else value)
    return (1, _Reversed(key) if order.descending else key)


class _Reversed:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and bool(self.value == other.value)


def ranks(row: Row, orders: tuple[Order, ...]) -> list[tuple[Any, ...]]:
    return [rank(row[order.column], order) for order in orders]


def comparable(row: Row) -> tuple[Any, ...]:
    """A row that equals another with the same values; NaN equals NaN, JSON is parsed."""
    return tuple(
        repr(sorted(json.loads(value).items())) if name == "j" and value is not None else repr(value)
        for name, value in sorted(row.items())
    )


def plain(rows: list[Row]) -> list[Row]:
    """Times without their zone, which is UTC: two libraries' UTC may differ."""
    return [
        {name: value.replace(tzinfo=None) if name == "at" and value else value for name, value in row.items()}
        for row in rows
    ]


def test_every_type_comes_back_as_it_was_written(wide: Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_stream, "BATCH_ROWS", 7)
    stream = scan(wide.pools, ScanRequest(table="wide"))
    assert stream.schema == pa.schema(
        {
            "key": pa.string(),
            "flag": pa.bool_(),
            "small": pa.int32(),
            "n": pa.int64(),
            "r": pa.float32(),
            "x": pa.float64(),
            "day": pa.date32(),
            "at": pa.timestamp("us", tz="UTC"),
            "raw": pa.binary(),
            "u": pa.string(),
            "j": pa.string(),
            "tags": pa.list_(pa.string()),
            "nums": pa.list_(pa.int64()),
            "v": pa.list_(pa.float32()),
        }
    )
    table = stream.to_table()
    table.validate(full=True)
    assert sorted(map(comparable, plain(table.to_pylist()))) == sorted(map(comparable, plain(wide.rows)))


@examples
@given(
    condition=CONDITIONS,
    columns=st.none() | st.lists(st.sampled_from(tuple(WIDE)), min_size=1, max_size=4, unique=True),
    order_by=st.lists(ORDERS, max_size=3),
    limit=st.none() | st.sampled_from([0, 1, 7, 50]),
)
def test_a_scan_gives_what_python_finds(
    wide: Wide, condition: Condition, columns: list[str] | None, order_by: list[str], limit: int | None
) -> None:
    request = ScanRequest(
        table="wide",
        where=_broken_lines(condition),
        params=condition.params,
        columns=None if columns is None else tuple(columns),
        order_by=tuple(order_by),
        limit=limit,
    )
    found = plain(scan(wide.pools, from_json(to_json(request))).to_table().to_pylist())  # type: ignore[arg-type]
    matching = [row for row in wide.rows if condition.holds(row) is True]
    shown = [{name: row[name] for name in columns or WIDE} for row in plain(matching)]
    assert len(found) == (len(matching) if limit is None else min(limit, len(matching)))
    extra = collections.Counter(map(comparable, found)) - collections.Counter(map(comparable, shown))
    assert not extra, "every row found matches"
    visible = tuple(itertools.takewhile(lambda order: order.column in (columns or WIDE), request.orders))
    expected = sorted(ranks(row, visible) for row in plain(matching))
    if len(visible) == len(request.orders) or limit is None:
        assert [ranks(row, visible) for row in found] == expected[: len(found)]


AGGREGATES = st.dictionaries(
    st.sampled_from(["one", "two", "three"]),
    st.one_of(
        st.just("count(*)"),
        st.sampled_from(tuple(WIDE)).map(lambda name: f"count({name})"),
        st.sampled_from(["small", "n", "r"]).map(lambda name: f"SUM( {name} )"),
        st.sampled_from(["small", "n", "r"]).map(lambda name: f"avg({name})"),
        st.sampled_from([("min", name) for name in ("key", "n", "x", "day", "at", "r")]).map(
            lambda pair: f"{pair[0]}({pair[1]})"
        ),
        st.sampled_from([("max", name) for name in ("key", "n", "x", "day", "at", "r")]).map(
            lambda pair: f"{pair[0]}({pair[1]})"
        ),
    ),
    min_size=1,
)


def computed(text: str, rows: list[Row]) -> Any:
    """The aggregate in plain Python, integers without rounding."""
    function, name = text.lower().replace(" ", "").removesuffix(")").split("(")
    if name == "*":
        return len(rows)
    values = [row[name] for row in rows if row[name] is not None]
    if function == "count":
        return len(values)
    if not values:
        return None
    if function in ("min", "max"):
        order = Order(name, descending=function == "max")
        return min(values, key=lambda value: rank(value, order))
    if name == "r":
        return sum(values) / (len(values) if function == "avg" else 1)
    return float(Fraction(sum(values), len(values))) if function == "avg" else sum(values)


def group_key(value: Any) -> str:
    """Equal for values of one group: NaN is, and zero is whatever its sign."""
    return repr(0.0 if isinstance(value, float) and value == 0 else value)


def same(found: Any, expected: Any, text: str) -> bool:
    """Sums of floating point depend on their order; everything else is exact."""
    if isinstance(expected, float) and math.isnan(expected):
        return math.isnan(found)
    if text in ("SUM( r )", "avg(r)") and expected is not None:
        return math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-5)
    return bool(found == expected)


@examples
@given(
    condition=CONDITIONS,
    aggregate=AGGREGATES,
    group_by=st.lists(st.sampled_from(["flag", "small", "x", "day", "key"]), max_size=2, unique=True),
    descending=st.booleans(),
)
def test_an_aggregate_gives_what_python_computes(
    wide: Wide, condition: Condition, aggregate: dict[str, str], group_by: list[str], descending: bool
) -> None:
    orders = [f"{name} {'DESC' if descending else ''}" for name in group_by]
    request = ScanRequest(
        table="wide",
        where=_broken_lines(condition),
        params=condition.params,
        aggregate=aggregate,
        group_by=tuple(group_by),
        order_by=tuple(orders),
    )
    found = scan(wide.pools, request).to_table().to_pylist()
    groups: dict[tuple[str, ...], list[Row]] = {} if group_by else {(): []}
    for row in wide.rows:
        if condition.holds(row) is True:
            groups.setdefault(tuple(group_key(row[name]) for name in group_by), []).append(row)
    expected = sorted(groups.values(), key=lambda rows: ranks(rows[0], request.orders) if rows else [])
    assert len(found) == len(expected)
    for row, members in zip(found, expected, strict=True):
        assert ranks(row, request.orders) == ([] if not members else ranks(members[0], request.orders))
        for name, text in aggregate.items():
            assert same(row[name], computed(text, members), text), text


def test_a_sum_beyond_64_bits_is_refused_and_its_average_is_not(shards: Shards) -> None:
    shards.execute("CREATE TABLE big (key text PRIMARY KEY, n bigint)")
    shards.execute("INSERT INTO big SELECT i::text, 9223372036854775807 FROM generate_series(1, 3) AS i")
    with shards.pools() as pools:
        average = scan(pools, ScanRequest(table="big", aggregate={"mean": "avg(n)"})).to_table().to_pylist()
        assert average == [{"mean": float(2**63 - 1)}]
        with pytest.raises(ReadError, match="total is beyond 64 bits: compute avg and count"):
            scan(pools, ScanRequest(table="big", aggregate={"total": "sum(n)"})).to_table()


FLOATS = st.none() | st.floats(width=32)


@settings(max_examples=60)
@given(
    shards=st.lists(st.lists(st.tuples(FLOATS, st.none() | st.sampled_from(["", "a", "b"])), max_size=12), max_size=4),
    orders=st.tuples(
        st.builds(Order, st.just("x"), st.booleans(), st.booleans()),
        st.builds(Order, st.just("t"), st.booleans(), st.booleans()),
    ),
    batch=st.integers(1, 5),
)
def test_merging_sorted_batches_equals_sorting_everything(
    shards: list[list[tuple[Any, Any]]], orders: tuple[Order, ...], batch: int
) -> None:
    schema = pa.schema({"x": pa.float64(), "t": pa.string()})

    def table(rows: list[tuple[Any, Any]]) -> pa.Table:
        return pa.table([[x for x, _ in rows], [t for _, t in rows]], schema=schema)

    tables = [table(rows) for rows in shards]
    ordered = [each.take(pa.array(sort_indices(each, orders))).combine_chunks() for each in tables]
    streams = [iter(each.to_batches(max_chunksize=batch) if each.num_rows else []) for each in ordered]
    found = pa.Table.from_batches(merged(streams, orders), schema).to_pylist()
    everything = [{"x": x, "t": t} for rows in shards for x, t in rows]
    assert [ranks(row, orders) for row in found] == sorted(ranks(row, orders) for row in everything)
    assert collections.Counter(map(comparable, found)) == collections.Counter(map(comparable, everything))


def test_a_shard_that_sorts_otherwise_is_found_out() -> None:
    batches = [pa.record_batch({"t": ["a", "B"]}), pa.record_batch({"t": ["B", "a"]})]
    with pytest.raises(ReadError, match="shard number 0 sorts otherwise than the first"):
        list(merged([iter([batch]) for batch in batches], [Order("t")]))


def test_text_is_ordered_by_its_bytes_whatever_the_collation(shards: Shards) -> None:
    words = ["a", "B", "b", "A", "\u00e9", "z"]
    shards.execute('CREATE TABLE words (key text COLLATE "en-x-icu" PRIMARY KEY)')
    for word in words:
        where = shards.dsns[shards.shard_of(word)]
        Shards((where,), ()).execute("INSERT INTO words VALUES (%s)", [word])
    with shards.pools() as pools:
        found = scan(pools, ScanRequest(table="words", order_by="key")).to_table()["key"].to_pylist()
        assert found == ["A", "B", "a", "b", "z", "\u00e9"]
        least = scan(pools, ScanRequest(table="words", aggregate={"first": "min(key)", "last": "max(key)"}))
        assert least.to_table().to_pylist() == [{"first": "A", "last": "\u00e9"}]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("'infinity'::date", "column c holds a time that Arrow cannot .infinity"),
        ("'-infinity'::timestamptz", "column c holds a time that Arrow cannot"),
        ("'294270-01-01Z'::timestamptz", "after year 294246"),
        ("ARRAY[[1, 2], [3, 4]]", "column c holds an array of 2 dimensions"),
    ],
)
def test_what_arrow_cannot_hold_is_refused(wide: Wide, value: str, complaint: str) -> None:
    with pytest.raises(ReadError, match=complaint):
        sql(wide.pools, SqlRequest(query=f"SELECT {value} AS c")).to_table()


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"table": "nowhere"}, "there is no table 'nowhere'"),
        ({"table": "wide", "columns": ["nope"]}, "table wide has no column 'nope': use one of key, flag"),
        ({"table": "wide", "where": "nope > 3"}, 'shard 0 refuses the query: column "nope" does not exist'),
        ({"table": "wide", "order_by": "tags"}, "cannot order by wide.tags, which is text\\[\\]"),
        ({"table": "wide", "order_by": "n; DROP TABLE wide"}, "cannot order by 'n; DROP TABLE wide'"),
        ({"table": "wide", "aggregate": {"a": "median(n)"}}, "cannot aggregate 'median\\(n\\)'"),
        ({"table": "wide", "aggregate": {"a": "sum(key)"}}, "cannot compute sum\\(key\\), which is text"),
        ({"table": "wide", "limit": -1}, "limit is -1"),
        ({"table": "wide", "where": "n = %s AND n > 5%", "params": (3,)}, "the params do not fit `where`"),
        ({"table": 'wide"; DROP TABLE wide; --'}, "the name 'wide\"; DROP TABLE wide; --' is not usable"),
    ],
)
def test_a_wrong_request_is_refused_with_what_is_wrong(wide: Wide, request_: Row, complaint: str) -> None:
    with pytest.raises(ReadError, match=complaint):
        scan(wide.pools, ScanRequest(**request_)).to_table()


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        (Limits(rows=250), "came to its limit of 250 rows: narrow `where`, give `limit`"),
        (Limits(bytes=20_000), "came to its limit of 20,000 bytes: name fewer columns"),
    ],
)
def test_a_read_that_comes_to_a_limit_fails_and_ends_on_the_servers(wide: Wide, limits: Limits, complaint: str) -> None:
    with pytest.raises(LimitError, match=complaint):
        scan(wide.pools, ScanRequest(table="wide"), Run(limits)).to_table()
    wide.shards.wait_until_idle()


def test_a_read_that_comes_to_its_time_limit_is_cancelled_on_the_servers(wide: Wide) -> None:
    slow = ScanRequest(table="wide", where="pg_sleep(0.2) IS NOT NULL")
    with pytest.raises(LimitError, match="came to its time limit of 1 s: narrow `where`"):
        scan(wide.pools, slow, Run(Limits(seconds=1))).to_table()
    wide.shards.wait_until_idle()


def test_a_reader_that_does_not_read_loses_its_queries_at_the_time_limit(shards: Shards) -> None:
    shards.execute("CREATE TABLE long (key bigint PRIMARY KEY, pad text)")
    shards.execute("INSERT INTO long SELECT i, repeat('x', 2000) FROM generate_series(1, 20000) AS i")
    with shards.pools() as pools:
        stream = scan(pools, ScanRequest(table="long"), Run(Limits(seconds=3)))
        next(stream)
        shards.wait_until_idle()
        with pytest.raises(LimitError, match="read faster"):
            stream.to_table()


def test_closing_a_stream_ends_its_queries_and_leaves_the_pools_usable(shards: Shards) -> None:
    shards.execute("CREATE TABLE long (key bigint PRIMARY KEY, pad text)")
    shards.execute("INSERT INTO long SELECT i, repeat('x', 2000) FROM generate_series(1, 20000) AS i")
    with shards.pools() as pools:
        with scan(pools, ScanRequest(table="long", order_by="key")) as stream:
            next(stream)
            assert shards.running() == len(shards.dsns)
        shards.wait_until_idle()
        assert [pool.in_use for pool in pools.shards] == [0] * len(shards.dsns)
        counted = scan(pools, ScanRequest(table="long", aggregate={"rows": "count(*)"})).to_table().to_pylist()
        assert counted == [{"rows": 20_000 * len(shards.dsns)}]


def test_a_read_with_a_small_limit_keeps_its_connections(wide: Wide) -> None:
    with wide.shards.pools() as pools:
        for _ in range(3):
            assert scan(pools, ScanRequest(table="wide", limit=2)).to_table().num_rows == 2
        assert [(pool.idle, pool.in_use) for pool in pools.shards] == [(1, 0)] * len(pools.shards)


def test_more_reads_than_the_pool_admits_wait_and_are_then_refused(wide: Wide) -> None:
    with some_pools(wide, size=1, wait_seconds=0.2) as pools:
        with scan(pools, ScanRequest(table="wide", where="pg_sleep(0.01) IS NOT NULL")) as first:
            next(first)
            with pytest.raises(ReadError, match="1 reads are running and none ended in 0 s: try again later"):
                scan(pools, ScanRequest(table="wide"))
        assert scan(pools, ScanRequest(table="wide")).to_table().num_rows == len(wide.rows)


def some_pools(wide: Wide, **options: Any) -> Any:
    from pleinair.krablet.reading.pools import ReadPools

    return ReadPools(wide.shards.readers, **options)


@examples
@given(data=st.data())
def test_rows_by_key_come_in_the_order_asked(wide: Wide, data: st.DataObject) -> None:
    known = [row["key"] for row in wide.rows]
    keys = data.draw(st.lists(st.sampled_from(known) | st.just("no such key"), max_size=20))
    found = get(wide.pools, GetRequest(table="wide", keys=tuple(keys), columns=("n",)))
    by_key = {row["key"]: row["n"] for row in wide.rows}
    assert found.to_pylist() == [{"key": key, "n": by_key[key]} for key in keys if key in by_key]


def test_keys_of_another_type_are_refused_and_uuids_may_be_written_in_any_case(wide: Wide) -> None:
    with pytest.raises(ReadError, match="keys do not fit wide.key|refuses the query"):
        get(wide.pools, GetRequest(table="wide", keys=(3.5, "a")))
    wide.shards.execute("CREATE TABLE IF NOT EXISTS by_uuid (id uuid PRIMARY KEY)")
    wide.shards.execute("INSERT INTO by_uuid VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11') ON CONFLICT DO NOTHING")
    found = get(wide.pools, GetRequest(table="by_uuid", keys=("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",)))
    assert found.to_pylist() == [{"id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}]


def test_sql_over_several_shards_gives_the_rows_of_all_and_refuses_what_would_not_add_up(wide: Wide) -> None:
    several = len(wide.pools.shards) > 1
    found = sql(
        wide.pools, SqlRequest(query="SELECT key, n::numeric AS n, 1 AS n FROM wide WHERE small > 0;")
    ).to_table()
    assert found.column_names == ["key", "n", "n"]
    assert sorted(found["key"].to_pylist()) == sorted(row["key"] for row in wide.rows if (row["small"] or 0) > 0)
    assert sql(wide.pools, SqlRequest(query="SELECT key FROM wide LIMIT 5")).to_table().num_rows == 5
    for query, node in [
        ("SELECT count(*) FROM wide", "Aggregate"),
        ("SELECT max(key) FROM wide", "Aggregate"),
        ("SELECT key FROM wide ORDER BY key", "Sort"),
        ("SELECT DISTINCT small FROM wide", "Aggregate"),
        ("SELECT key FROM wide LIMIT 5 OFFSET 2", "Limit"),
        ("SELECT a.key FROM wide a JOIN wide b USING (key)", "Join"),
        ("SELECT key, row_number() OVER () FROM wide", "WindowAgg"),
        ("SELECT key FROM wide WHERE n = (SELECT max(n) FROM wide)", "Aggregate"),
    ]:
        if several:
            with pytest.raises(ReadError, match=f"may only filter one table, and this one needs .*{node}"):
                sql(wide.pools, SqlRequest(query=query))
        else:
            assert sql(wide.pools, SqlRequest(query=query)).to_table().num_rows > 0


def test_shards_that_declare_a_column_differently_are_named(three_shards: Shards) -> None:
    for place, dsn in enumerate(three_shards.dsns):
        type_ = "integer" if place == 2 else "bigint"
        Shards((dsn,), ()).execute(f"CREATE TABLE t (key text PRIMARY KEY, n {type_})")
    with (
        three_shards.pools() as pools,
        pytest.raises(ReadError, match="shard 2 has other columns than the first: column n"),
    ):
        scan(pools, ScanRequest(table="t")).to_table()


def test_a_session_is_wiped_between_reads(wide: Wide) -> None:
    with some_pools(wide, size=1) as pools:
        change = "SELECT set_config('statement_timeout', '1', false), set_config('TimeZone', 'Asia/Tokyo', false)"
        sql(pools, SqlRequest(query=change)).to_table()
        found = sql(pools, SqlRequest(query="SELECT current_setting('TimeZone') AS zone")).to_table()
        assert set(found["zone"].to_pylist()) == {"UTC"}
