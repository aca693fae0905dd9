"""Rules by which mutations meet: the same in Python as in Postgres, and refused where they make no sense."""

from __future__ import annotations

import datetime
import itertools
import random
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from pleinair import krablet
from pleinair.krablet.funnel.batch import Run, statements
from pleinair.krablet.funnel.clients import ClientState
from pleinair.krablet.funnel.plans import TablePlan
from pleinair.records.errors import QueueError

MORNING = datetime.datetime(2026, 5, 1, 8, 30, tzinfo=datetime.UTC)
TEXTS = ["", "a", "B", "b", "Zebra", "zebra", "\u00e4rger", "\U0001f98a", 'q"uo\\te', "{a,b}", "NULL", "null", " "]
SAMPLES: dict[str, list[Any]] = {
    "text": TEXTS,
    "boolean": [True, False],
    "integer": [0, -5, 7, 2**20],
    "bigint": [0, 3, -(2**40), 2**41],
    "real": [0.5, -2.25, float("inf"), float("nan")],
    "double precision": [0.5, -2.25, 1e300, float("nan")],
    "date": [datetime.date(2026, 1, day) for day in (1, 2, 3)],
    "timestamptz": [MORNING + datetime.timedelta(minutes=n) for n in range(3)],
    "uuid": [uuid.UUID(int=n) for n in (1, 2**127, 2**64)],
    "bytea": [b"", b"\x00\xff", b"\\x41", b'"'],
    "jsonb": [{"a": 1}, {"b": [1, None]}, {"a": {"c": 'x"y'}}, {}],
    "text[]": [["x"], ["y", "x", "y"], [], [None, "NULL", 'q"'], ["z"]],
    "bigint[]": [[1], [2, 1], [], [3, 3]],
    "date[]": [[datetime.date(2026, 1, 1)], [datetime.date(2026, 1, 2), datetime.date(2026, 1, 1)]],
}
EXACT = {"real": [0.5, -2.25, 4.0], "double precision": [0.5, 8.0]}  # floats whose sums do not depend on the order
RULES = {
    "last": list(SAMPLES),
    "coalesce": list(SAMPLES),
    "max": ["text", "boolean", "integer", "bigint", "real", "double precision", "date", "timestamptz", "uuid", "bytea"],
    "min": ["text", "boolean", "integer", "bigint", "real", "double precision", "date", "timestamptz", "uuid", "bytea"],
    "sum": ["integer", "bigint", "real", "double precision"],
    "json_merge": ["jsonb"],
    "union": ["text[]", "bigint[]", "date[]"],
}
CASES = [(rule, type_) for rule, types in RULES.items() for type_ in types]


def column_name(rule: str, type_: str) -> str:
    return f"{rule}_{type_}".replace(" ", "_").replace("[]", "_s")


def random_rows(seed: int, count: int) -> list[dict[str, object]]:
    chosen = random.Random(seed)
    rows = []
    for _ in range(count):
        row: dict[str, object] = {"key": f"k{chosen.randrange(6)}"}
        for rule, type_ in chosen.sample(CASES, chosen.choice([0, 3, len(CASES)])):
            samples = EXACT.get(type_, SAMPLES[type_]) if rule == "sum" else SAMPLES[type_]
            row[column_name(rule, type_)] = chosen.choice([None, *samples])
        rows.append(row)
    return rows


def apply(database: krablet.Database, table: krablet.Table, rows: Sequence[dict[str, object]], flush: int) -> None:
    plan = TablePlan(table.name, table.key, table.columns, table.merge)
    client = ClientState("test", "", None)
    remaining = iter(rows)
    with database.connection() as connection, connection.transaction():
        while flushed := list(itertools.islice(remaining, flush)):
            runs = [Run(client, 1, table.name, tuple(row), list(row.values())) for row in flushed]
            for statement in statements(runs, lambda _, columns: (plan, plan.shape(columns))):
                connection.execute(statement.text, statement.parameters)  # type: ignore[call-overload]
            assert not any(run.failures for run in runs)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_merged_flush_gives_what_one_mutation_at_a_time_gives(database: krablet.Database, seed: int) -> None:
    rows = random_rows(seed, 120)
    contents = []
    for name, flush in (("by_one", 1), ("by_seven", 7), ("by_all", 120)):
        columns = {"key": "text", **{column_name(*case): case[1] for case in CASES}}
        merge = {column_name(*case): case[0] for case in CASES}
        table = database.table(name, key="key", columns=columns, merge=merge)
        apply(database, table, rows, flush)
        with database.connection() as connection:
            # As text: NaN equals nothing.
            found = connection.execute(f"SELECT {name}::text FROM {name} ORDER BY key").fetchall()
        contents.append(found)
    assert len(contents[0]) == 6
    assert contents[1] == contents[0]
    assert contents[2] == contents[0]


def test_rules_have_the_results_that_the_documentation_gives(database: krablet.Database) -> None:
    columns = {"key": "text", "n": "bigint", "high": "text", "first": "date", "info": "jsonb", "tags": "text[]"}
    merge = {"n": "sum", "high": "max", "first": "coalesce", "info": "json_merge", "tags": "union"}
    table = database.table("facts", key="key", columns=columns, merge=merge)
    day = datetime.date(2026, 1, 1)
    rows: list[dict[str, object]] = [
        {"key": "a", "n": 1, "high": "Z", "first": None, "info": {"x": {"deep": 1}, "y": 1}, "tags": ["b", "a"]},
        {"key": "a", "n": 2, "high": "a", "first": day, "info": {"x": {"other": 2}}, "tags": ["c", "b"]},
        {"key": "a", "n": None, "high": None, "first": day.replace(day=2), "info": None, "tags": None},
    ]
    for flush in (1, 3):
        apply(database, table, rows, flush)
    with database.connection() as connection:
        found = connection.execute("SELECT n, high, first, info, tags FROM facts").fetchall()
    assert found == [(6, "a", day, {"x": {"other": 2}, "y": 1}, ["b", "a", "c"])]


def test_a_rule_is_kept_by_the_catalog_and_never_changes(database: krablet.Database) -> None:
    columns = {"name": "text", "hits": "bigint"}
    database.table("stats", key="name", columns=columns, merge={"hits": "sum"})
    assert database.declared_table("stats").merge == {"hits": "sum"}
    assert database.table("stats", key="name", columns=columns).merge == {"hits": "sum"}
    database.table("stats", key="name", columns={**columns, "best": "real"}, merge={"best": "max", "hits": "sum"})
    assert database.declared_table("stats").merge == {"hits": "sum", "best": "max"}
    with pytest.raises(QueueError, match=r"^column stats\.hits is declared with merge rule 'sum', not 'max': declare"):
        database.table("stats", key="name", columns=columns, merge={"hits": "max"})
    assert database.declared_table("stats").merge == {"hits": "sum", "best": "max"}


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"hits": "plus"}, "merge rule 'plus' of stats.hits is unknown: use one of last, max, min, sum, coalesce"),
        ({"name": "max"}, "merge names stats.name, which is the key, which never changes: take it out of merge"),
        ({"other": "max"}, "merge names stats.other, which is not among the columns: take it out of merge"),
        ({"hits": "union"}, "merge rule 'union' cannot hold for stats.hits, which is bigint: it is for text[]"),
        ({"tags": "sum"}, "merge rule 'sum' cannot hold for stats.tags, which is text[]: it is for integer, bigint"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(database: krablet.Database, merge: dict[str, str], message: str) -> None:
    with pytest.raises(QueueError) as refused:
        database.table("stats", key="name", columns={"name": "text", "hits": "bigint", "tags": "text[]"}, merge=merge)
    assert str(refused.value).startswith(message)
