"""Every statement is prepared on the oldest and the newest Postgres; the hot ones go through their index at a million rows.

A query added to sql/*.sql is found and prepared by itself; one with a new placeholder fails until it is given here.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest
from psycopg import sql

from pleinair import krablet
from pleinair.krablet import Stage
from pleinair.krablet.connections import Connection
from pleinair.krablet.postgres import binaries
from pleinair.krablet.queries import _sections
from tests.krablet.conftest import COLUMNS

FILES = sorted(
    entry.name.removesuffix(".sql")
    for entry in resources.files("pleinair.krablet").joinpath("sql").iterdir()
    if entry.name.endswith(".sql")
)
UTILITY = re.compile(r"(CREATE|ALTER|DROP|COPY|LOCK|GRANT|REVOKE|TRUNCATE|EXPLAIN|SET)\b")
"""What Postgres has no plan for and does not prepare; the tests of its callers run it."""
PARTS = {"lease_placed"}
"""Prepared inside the statements that hold them."""
QUERIES = [
    (file, name)
    for file in FILES
    for name, text in _sections(file).items()
    if not UTILITY.match(text) and name not in PARTS
]
UNFORMATTED = {("roles", "declared_stages"), ("roles", "search_path"), ("roles", "writing_functions")}
"""Sent as they are, without values: their braces and per cent signs are Postgres's."""
GIVEN = {
    "columns": "image_name, length",
    "values": 'given."given 0"::text, given."given 1"::bigint',
    "arrays": "%(given_0)s::text[], %(given_1)s::bigint[]",
    "names": '"given 0", "given 1"',
    "assignments": "length = EXCLUDED.length",
    "results": 'length = result."given 1"',
    "written": 'result."given 1" AS length',
}
TEXT = {
    **GIVEN,
    "after": "image_name > %(after)s::text",
    "batch": "8",
    "group": "",
    "key_name": "'image_name'",
    "keys": "ARRAY['a']",
    "limit": "10",
    "percent": "1",
    "range": "image_name > %(after)s::text",
    "scan": "100",
    "slots": "ARRAY[1]",
    "staging": "images",
    "statement": "SELECT image_name, length FROM images",
    "stride": "10",
    "table": "images",
    "types": "ARRAY[25]",
    "where": "contains_text",
}
BY_QUERY = {
    ("rows", "update_rows"): {"assignments": "length = new.length"},
    ("rows", "read_rows"): {"order": "ORDER BY length"},
    ("scan", "scan_rows"): {"order": "ORDER BY length", "limit": "LIMIT 10"},
    ("scan", "table_columns"): {"table": "'images'"},
    ("scan", "select_as"): {"columns": "a", "names": "a, b"},
    ("bulk", "upsert_arrived"): {"assignments": "length = EXCLUDED.length"},
}


@dataclass(frozen=True)
class Filled:
    """A table of a million rows on one version of Postgres: all of them ready for `ocr`, one in a hundred for `measure`."""

    database: krablet.Database
    ocr: Stage
    measure: Stage


@pytest.fixture(scope="module", params=["packaged", "wheel"])
def filled(request: pytest.FixtureRequest) -> Iterator[Filled]:
    directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "wheel":
            patch.setattr(binaries, "_PACKAGED", ("/nonexistent/*/bin",))
            patch.setenv("PATH", "/usr/bin:/bin")
        elif binaries.find_binaries().from_wheel:
            pytest.skip("no packaged PostgreSQL is installed, and the wheel's is tested")
        database = krablet.connect(directory=directory)
    try:
        yield fill(database)
    finally:
        database.close()
        shutil.rmtree(directory)


def fill(database: krablet.Database) -> Filled:
    table = database.table("images", key="image_name", columns={**COLUMNS, "tags": "text[]", "details": "jsonb"})
    with database.connection() as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        numbers = "CASE WHEN i % 100 > 0 THEN i END FROM generate_series(1, 1000000) AS i"
        connection.execute(f"INSERT INTO images (image_name, length) SELECT 'p' || i, {numbers}".encode())
        connection.execute("CREATE TABLE arriving AS SELECT image_name, length FROM images LIMIT 0")
    ocr = table.stage("ocr", ready="contains_text IS NULL", writes=["length"])
    measure = table.stage("measure", ready="length IS NULL", writes=["length"])
    with database.connection() as connection:
        connection.execute("VACUUM ANALYZE images")
    return Filled(database, ocr, measure)


def composed(stage: Stage, file: str, name: str) -> str:
    """A named query with everything that its placeholders may be, as its caller would put it in."""
    text = {key: value.as_string() for key, value in stage.identifiers.items()}
    text.update(TEXT, table_name="'images'", stage_name=f"'{stage.name}'", order="image_name")
    text.update(BY_QUERY.get((file, name), {}))
    text["column"] = {"rule_union": "tags", "rule_json_merge": "details"}.get(name, "length")
    if name.endswith("_text"):
        text["column"] = "path"
    if (file, name) in UNFORMATTED:
        return _sections(file)[name]
    if name == "complete_and_claim":
        text.update(complete=composed(stage, file, "complete_rows"), claim=composed(stage, file, "claim_fresh"))
    if "{lease}" in (body := _sections(file)[name]):
        text["lease"] = sql.SQL(_sections("claims")["lease_placed"]).format(**as_sql(text)).as_string()
    statement = sql.SQL(body).format(**as_sql(text)).as_string()
    return f"SELECT {statement} FROM images AS stored, images AS excluded" if name.startswith("rule_") else statement


def as_sql(text: dict[str, str]) -> dict[str, sql.Composable]:
    return {key: sql.SQL(value) for key, value in text.items()}


def prepare(connection: Connection, statement: str) -> int:
    """Prepare a statement as `tried`; the number of its parameters, by name or by place."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement))) or ["s"] * statement.count("%s")
    for place, name in enumerate(names, start=1):
        statement = statement.replace("%s" if name == "s" else f"%({name})s", f"${place}", 1 if name == "s" else -1)
    connection.execute(f"PREPARE tried AS {statement.replace('%%', '%')}".encode())
    return len(names)


@pytest.mark.parametrize("query", QUERIES, ids=".".join)
def test_every_named_query_is_prepared(filled: Filled, query: tuple[str, str]) -> None:
    with filled.database.connection() as connection:
        if query in UNFORMATTED:
            count = 0
            connection.execute(f"PREPARE tried AS {composed(filled.ocr, *query)}".encode())
        else:
            count = prepare(connection, composed(filled.ocr, *query))
        known = connection.execute(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'tried'"
        )
        assert known.fetchone() == (count,)


def test_the_wheel_is_the_newest_version_there_is(filled: Filled, request: pytest.FixtureRequest) -> None:
    with filled.database.connection() as connection:
        version = connection.info.server_version // 10000
    assert version == 18 if request.node.callspec.params["filled"] == "wheel" else version >= binaries.OLDEST_VERSION


HOT = {
    "claim_fresh": ("_ready", "Tid Scan"),
    "claim_again": ("_again", "Tid Scan"),
    "hold_rows": ("images_pkey",),
    "complete_rows": ("images_pkey", "Tid Scan"),
    "complete_and_claim": ("images_pkey", "_ready", "Tid Scan"),
    "fail_rows": ("images_pkey",),
    "renew_lease": ("images_pkey",),
    "release_rows": ("images_pkey",),
    "upsert_rows": ("images_pkey",),
    "insert_missing_rows": ("images_pkey",),
    "update_rows": ("images_pkey",),
    "get_rows": ("images_pkey",),
    "upsert_merged_rows": ("images_pkey",),
}


@pytest.mark.parametrize("stage_name", ["ocr", "measure"])
@pytest.mark.parametrize("name", HOT)
def test_a_hot_query_goes_through_its_index_at_a_million_rows(filled: Filled, name: str, stage_name: str) -> None:
    """All rows pending, and 99% of them done; with the plan that is made without looking at the values."""
    stage = getattr(filled, stage_name)
    [file] = [file for file in FILES if file in ("claims", "rows", "scan", "funnel") and name in _sections(file)]
    with filled.database.connection() as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        count = prepare(connection, composed(stage, file, name))
        values = f"({', '.join(['NULL'] * count)})" if count else ""
        plan = "\n".join(line for (line,) in connection.execute(f"EXPLAIN EXECUTE tried {values}".encode()))
    assert "Seq Scan on images" not in plan
    for scan in HOT[name]:
        assert (f"images_{stage_name}{scan}" if scan.startswith("_") else scan) in plan, plan
