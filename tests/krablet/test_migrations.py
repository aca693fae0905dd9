"""Schema changes: their sum is the schema, and each happens once."""

from __future__ import annotations

import pytest

from pleinair import krablet
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


def test_a_migration_that_fails_leaves_nothing_and_is_tried_again(database: krablet.Database) -> None:
    database.table("images", key="image_name", columns=COLUMNS)
    with database.connection() as connection:
        with pytest.raises(Exception, match="nowhere"):
            apply(connection, "broken", "CREATE TABLE half (a int); SELECT * FROM nowhere;")
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)
        assert apply(connection, "broken", "CREATE TABLE half (a int);")
        assert not apply(connection, "broken", "CREATE TABLE half (a int);")
