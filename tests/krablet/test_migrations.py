"""Schema changes: their sum is the schema, and each happens once."""

from __future__ import annotations

import pytest

from pleinair import krablet
from pleinair.krablet import declarations
from pleinair.krablet.migrations import applied, apply, ensure_catalog, packaged
from tests.krablet.conftest import COLUMNS

OBJECTS = """
SELECT 'column', table_name, column_name, data_type || coalesce(' default ' || column_default, '') || is_nullable
FROM information_schema.columns WHERE table_schema = 'pleinair'
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'pleinair'::regnamespace
UNION ALL SELECT 'function', proname, '', pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'pleinair'::regnamespace
UNION ALL SELECT 'sequence', relname, '', '' FROM pg_class
WHERE relnamespace = 'pleinair'::regnamespace AND relkind = 'S'
ORDER BY 1, 2, 3
"""


def objects(database: krablet.Database) -> list[tuple[object, ...]]:
    with database.connection() as connection:
        return list(connection.execute(OBJECTS))


def test_a_catalog_from_before_migrations_were_recorded_becomes_todays(database: krablet.Database) -> None:
    first = next(iter(packaged("pre").values()))
    with database.connection() as connection:
        connection.execute(first.encode())
        connection.execute(
            "INSERT INTO pleinair.tables (name, key, columns) VALUES ('old', 'a', '[[\"a\", \"text\"]]')"
        )
        ensure_catalog(connection)
        assert applied(connection) == packaged("pre").keys()
        upgraded = objects(database)
        assert connection.execute("SELECT name FROM pleinair.tables").fetchall() == [("old",)]
        connection.execute("DROP SCHEMA pleinair CASCADE")
        ensure_catalog(connection)
    assert objects(database) == upgraded


TABLE = """
SELECT 'column', attname, format_type(atttypid, atttypmod), attnotnull::text, pg_get_expr(adbin, adrelid)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = 'images'::regclass AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT 'index', relname, pg_get_indexdef(indexrelid), indisvalid::text, NULL
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = 'images'::regclass
UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid), NULL, NULL
FROM pg_constraint WHERE conrelid = 'images'::regclass
UNION ALL SELECT 'table', relname, array_to_string(reloptions, ','), NULL, NULL FROM pg_class WHERE relname = 'images'
UNION ALL SELECT 'declared', name, columns::text || merge::text, NULL, NULL FROM pleinair.tables
UNION ALL SELECT 'stage', name, concat_ws(' / ', ready, writes, reads, batch, lease_seconds, ordering), NULL, NULL
FROM pleinair.stages
ORDER BY 1, 2, 3
"""


def declared_today(database: krablet.Database) -> None:
    table = database.table("images", key="image_name", columns=COLUMNS, merge={"length": "max"})
    table.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"])
    table.stage("measure", ready="length IS NULL", writes=["length"], order="-length", batch=4)


@pytest.mark.parametrize("large", [False, True])
def test_every_migration_step_by_step_and_declarations_that_changed_make_what_a_fresh_database_has(
    database: krablet.Database, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(declarations, "SMALL_TABLE_BYTES", 0)
    with database.connection() as connection:
        for name, text in packaged("pre").items():
            assert apply(connection, name, text)
    early = database.table("images", key="image_name", columns={"image_name": "text", "path": "text"})
    early.upsert([{"image_name": "a", "path": "/a"}])
    early = database.table("images", key="image_name", columns={"image_name": "text", "contains_text": "boolean"})
    early.stage("ocr", ready="contains_text", writes=["contains_text"], order="path")
    late = database.table(
        "images", key="image_name", columns={"image_name": "text", "length": "bigint"}, merge={"length": "max"}
    )
    late.stage("measure", ready="length IS NULL AND contains_text", writes=["length"])
    declared_today(database)
    with database.connection() as connection:
        grown, grown_catalog = connection.execute(TABLE).fetchall(), objects(database)
        assert connection.execute("SELECT image_name, path FROM images").fetchall() == [("a", "/a")]
        connection.execute("DROP TABLE images; DROP SCHEMA pleinair CASCADE")
        declared_today(database)
        assert connection.execute(TABLE).fetchall() == grown
    assert objects(database) == grown_catalog


def test_a_migration_that_fails_leaves_nothing_and_is_tried_again(database: krablet.Database) -> None:
    database.table("images", key="image_name", columns=COLUMNS)
    with database.connection() as connection:
        with pytest.raises(Exception, match="nowhere"):
            apply(connection, "broken", "CREATE TABLE half (a int); SELECT * FROM nowhere;")
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)
        assert apply(connection, "broken", "CREATE TABLE half (a int);")
        assert not apply(connection, "broken", "CREATE TABLE half (a int);")
