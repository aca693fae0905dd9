"""A claim must cost the same at any table size: its plan goes through the partial index, with and without statistics."""

from __future__ import annotations

import pytest
from psycopg import sql

from pleinair.krablet.claims import _claiming
from pleinair.krablet.queries import query
from tests.krablet.conftest import Pictures

ROWS = 50_000


def fresh_statement(pictures: Pictures, batch: int) -> sql.Composed:
    stage = pictures.ocr
    after = sql.SQL("{} > %(after)s::text").format(stage.identifiers["key"])
    return query("claims", "claim_fresh").format(**_claiming(stage, batch), after=after, order=stage.ordering)


def generic_plan(pictures: Pictures, statement: sql.Composed) -> str:
    with pictures.database.connection() as connection:
        text = statement.as_string(connection).replace("%(lease_seconds)s", "$1").replace("%(after)s", "$2")
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute(f"PREPARE claim (double precision, text) AS {text.replace('%%', '%')}")
        return "\n".join(line for (line,) in connection.execute("EXPLAIN EXECUTE claim (60, 'p5')"))


@pytest.mark.parametrize("analysed", [True, False])
@pytest.mark.parametrize("done", [0, ROWS * 99 // 100])
def test_claim_goes_through_the_partial_index_under_a_generic_plan(
    pictures: Pictures, done: int, analysed: bool
) -> None:
    pictures.sql("ALTER TABLE images SET (autovacuum_enabled = false)")
    pictures.sql(
        "INSERT INTO images (image_name, path, contains_text) "
        "SELECT 'p' || i, 'x', CASE WHEN i <= %s THEN TRUE END FROM generate_series(1, %s) AS i",
        done,
        ROWS,
    )
    if analysed:
        pictures.sql("ANALYZE images")
    for batch in (8, 512):
        plan = generic_plan(pictures, fresh_statement(pictures, batch))
        assert "images_ocr_ready" in plan
        assert "Tid Scan on images" in plan
        assert "Seq Scan" not in plan
        again = generic_plan(pictures, query("claims", "claim_again").format(**_claiming(pictures.ocr, batch)))
        assert "images_ocr_again" in again
        assert "Seq Scan" not in again
