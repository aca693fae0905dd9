"""Declared tables: bulk writes by key, streaming Arrow reads, and what is refused."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from pleinair import krablet
from pleinair.records.errors import QueueError
from tests.krablet.conftest import Pictures, on_one_shard_and_on_three

MORNING = datetime.datetime(2026, 5, 1, 8, 30, tzinfo=datetime.UTC)


def everything(database: krablet.Database) -> krablet.Table:
    return database.table(
        "everything",
        key="key",
        columns={
            "key": "text",
            "flag": "boolean",
            "whole": "bigint",
            "real": "double precision",
            "taken_at": "timestamptz",
            "tags": "text[]",
            "scores": "double precision[]",
            "blob": "bytea",
            "details": "jsonb",
        },
    )


def test_read_streams_arrow_with_the_right_types(database: krablet.Database) -> None:
    table = everything(database)
    row = {
        "key": "a",
        "flag": True,
        "whole": 2**60,
        "real": 0.1,
        "taken_at": MORNING,
        "tags": ["fox", 'say "hi"', "back\\slash", "a,b", "", None, "NULL"],
        "scores": [1.5, -2.0],
        "blob": b"\x00\xff",
        "details": {"licence": "CC0", "n": [1, 2]},
    }
    assert table.upsert([row, {"key": "b"}]) == 2
    read = pa.Table.from_batches(table.read(order_by="key"))
    assert read.schema.types == [
        pa.string(),
        pa.bool_(),
        pa.int64(),
        pa.float64(),
        pa.timestamp("us", tz="UTC"),
        pa.list_(pa.string()),
        pa.list_(pa.float64()),
        pa.binary(),
        pa.string(),
    ]
    first, second = read.to_pylist()
    assert first == {**row, "details": '{"n": [1, 2], "licence": "CC0"}'}
    assert second == {**dict.fromkeys(row), "key": "b"}


def test_read_gives_batches_of_the_asked_size_and_ends_its_query_when_closed(pictures: Pictures) -> None:
    pictures.add(25)
    stream = pictures.table.read(columns=["image_name"], order_by="image_name", batch_rows=10)
    assert next(stream).num_rows == 10
    stream.close()
    assert [batch.num_rows for batch in pictures.table.read(batch_rows=10)] == [10, 10, 5]
    still_reading = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    assert pictures.sql(still_reading) == [(0,)]


@on_one_shard_and_on_three
def test_read_takes_a_condition_with_parameters_and_one_with_a_percent_sign(pictures: Pictures) -> None:
    pictures.add(12)
    assert pictures.table.count("image_name LIKE '%-0001%'") == 2
    batches = pictures.table.read("image_name LIKE %(end)s", params={"end": "%3"}, columns=["image_name"])
    assert pa.Table.from_batches(batches).column("image_name").to_pylist() == ["picture-00003"]


def test_read_gives_the_claim_state_too(pictures: Pictures) -> None:
    pictures.add(1)
    pictures.ocr.claim()
    [batch] = pictures.table.read(columns=["ocr_attempts", "ocr_tried_at"])
    assert batch.schema.types == [pa.int32(), pa.timestamp("us", tz="UTC")]
    assert batch.column("ocr_attempts").to_pylist() == [1]


@on_one_shard_and_on_three
def test_upsert_merges_duplicate_keys_in_a_batch_and_leaves_columns_not_given_alone(pictures: Pictures) -> None:
    pictures.table.upsert([{"image_name": "a", "path": "/old", "length": 3}, {"image_name": "b", "path": "/b"}])
    written = pictures.table.upsert(
        [{"image_name": "a", "path": "/1"}, {"image_name": "b", "length": 5}, {"image_name": "a", "path": "/2"}]
    )
    assert written == 2
    assert pictures.sql("SELECT image_name, path, length FROM images ORDER BY 1") == [("a", "/2", 3), ("b", "/b", 5)]


@on_one_shard_and_on_three
def test_upsert_leaves_claims_and_results_alone(pictures: Pictures) -> None:
    pictures.add(1)
    claim = pictures.ocr.claim()
    pictures.add(1)
    assert pictures.ocr.claim() is None
    pictures.ocr.complete(claim, [{"contains_text": True}])
    pictures.add(1)
    assert pictures.results() == {"picture-00000": True}


@on_one_shard_and_on_three
def test_insert_missing_counts_only_new_rows_and_changes_no_other(pictures: Pictures) -> None:
    pictures.table.upsert([{"image_name": "a", "path": "/a"}])
    rows = [{"image_name": name, "path": "/new"} for name in ("a", "b", "c", "b")]
    assert pictures.table.insert_missing(rows) == 2
    assert pictures.table.insert_missing(rows) == 0
    assert pictures.sql("SELECT path FROM images WHERE image_name = 'a'") == [("/a",)]


@on_one_shard_and_on_three
def test_update_sets_columns_of_existing_rows_and_inserts_none(pictures: Pictures) -> None:
    pictures.add(2)
    assert pictures.table.update([{"image_name": "picture-00001", "length": 7}, {"image_name": "no", "length": 1}]) == 1
    assert pictures.table.count("length = 7") == 1
    assert pictures.table.count() == 2


@on_one_shard_and_on_three
def test_more_rows_than_one_statement_holds_are_all_written(pictures: Pictures) -> None:
    pictures.add(2345)
    assert pictures.table.count() == 2345


@on_one_shard_and_on_three
def test_declaring_again_adds_columns_and_keeps_rows(pictures: Pictures) -> None:
    pictures.add(1)
    extended = pictures.database.table("images", key="image_name", columns={"image_name": "text", "sharpness": "real"})
    assert list(extended.columns) == ["image_name", "path", "contains_text", "length", "sharpness"]
    extended.upsert([{"image_name": "picture-00000", "sharpness": 1}])
    assert extended.count("sharpness = 1 AND path IS NOT NULL") == 1


@on_one_shard_and_on_three
def test_an_idempotent_declaration_waits_for_no_reader(pictures: Pictures) -> None:
    pictures.add(1)
    with pictures.database.connection() as reader, reader.transaction():
        reader.execute("SELECT * FROM images")
        pictures.database.session.run(lambda connection: connection.execute("SET lock_timeout = '1s'"))
        again = pictures.database.table("images", key="image_name", columns=pictures.table.columns)
        ocr = again.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"])
    assert ocr.depth().claimable == 1


@on_one_shard_and_on_three
def test_another_process_finds_the_declarations_in_the_database(pictures: Pictures) -> None:
    with krablet.connect(pictures.database.dsn) as other:
        [stage] = other.declared_stages()
    assert (stage.label, stage.ready, stage.writes, stage.batch, stage.lease_seconds) == (
        "images.ocr",
        "contains_text IS NULL",
        ("contains_text",),
        8,
        60.0,
    )
    assert stage.table.columns == pictures.table.columns


@on_one_shard_and_on_three
def test_a_changed_condition_rebuilds_the_index(pictures: Pictures) -> None:
    names = pictures.add_together(4)
    where = f"contains_text IS NULL AND image_name > '{names[1]}'"
    changed = pictures.table.stage("ocr", ready=where, writes=["contains_text"])
    assert sorted(changed.claim().keys) == names[2:]
    definitions = pictures.sql("SELECT pg_get_indexdef('images_ocr_ready'::regclass)")
    assert all(names[1] in definition for (definition,) in definitions)


@on_one_shard_and_on_three
def test_a_condition_may_hold_percent_signs_and_braces(pictures: Pictures) -> None:
    pictures.add(3)
    where = "contains_text IS NULL AND path LIKE '%1.png' AND path <> ALL ('{x}'::text[])"
    stage = pictures.table.stage("braces", ready=where, writes=["contains_text"])
    claim = stage.claim()
    assert claim.keys == ["picture-00001"]
    assert stage.complete(claim, [{"contains_text": True}]).completed == 1


@pytest.mark.parametrize(
    ("columns", "key", "complaint"),
    [
        (
            {"image_name": "text", "path": "bigint"},
            "image_name",
            "column images.path is text and is declared as bigint",
        ),
        ({"path": "text"}, "path", "primary key \\(image_name\\), not \\(path\\)"),
        ({"image_name": "text"}, "name", "'name' of table images is not among its columns"),
        ({"image_name": "varchar(9)"}, "image_name", "column type 'varchar\\(9\\)' is not supported: use one of text,"),
        ({"image_name": "text", "Path": "text"}, "image_name", "column name 'Path' is not usable"),
    ],
)
@on_one_shard_and_on_three
def test_a_contradicting_declaration_is_refused_with_a_sentence(
    pictures: Pictures, columns: dict[str, str], key: str, complaint: str
) -> None:
    with pytest.raises(QueueError, match=complaint):
        pictures.database.table("images", key=key, columns=columns)


@pytest.mark.parametrize(
    ("declaration", "complaint"),
    [
        ({"ready": "contains_text IS NUL"}, "cannot use ready = 'contains_text IS NUL'"),
        ({"ready": "colour IS NULL"}, 'column "colour" does not exist'),
        ({"ready": "contains_text IS NULL AND now() > '2020-01-01'"}, "IMMUTABLE"),
        ({"writes": ["colour"]}, "names the column 'colour', which table images does not have"),
        ({"writes": []}, "writes no column"),
        ({"writes": ["image_name"]}, "writes the key"),
        ({"batch": 0}, "batch 0: give 1 or more"),
        ({"lease_seconds": 0}, "lease_seconds 0"),
    ],
)
@on_one_shard_and_on_three
def test_a_wrong_stage_is_refused_with_a_sentence_and_leaves_nothing(
    pictures: Pictures, declaration: dict[str, object], complaint: str
) -> None:
    valid = {"ready": "contains_text IS NULL", "writes": ["contains_text"]}
    with pytest.raises(QueueError, match=complaint):
        pictures.table.stage("other", **{**valid, **declaration})  # type: ignore[arg-type]
    assert set(pictures.sql("SELECT name FROM pleinair.stages")) == {("ocr",)}
    assert pictures.sql("SELECT attname FROM pg_attribute WHERE attname LIKE 'other%'") == []
    assert pictures.sql("SELECT relname FROM pg_class WHERE relname LIKE 'images_other%'") == []


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"path": "/a"}, "has no key: give 'image_name'"),
        ({"image_name": "a", "colour": "red"}, "table images has no column 'colour'"),
        ({"image_name": "a", "length": "3"}, "images.length of 'a' is bigint and cannot hold '3'"),
        ({"image_name": "a", "path": "x\x00y"}, "holds a NUL character"),
        ({"image_name": "a", "path": "x\udce9"}, "surrogates not allowed"),
    ],
)
@on_one_shard_and_on_three
def test_a_row_that_does_not_fit_is_refused_with_a_sentence(
    pictures: Pictures, row: dict[str, object], complaint: str
) -> None:
    with pytest.raises(QueueError, match=complaint):
        pictures.table.upsert([row])


@on_one_shard_and_on_three
def test_unknown_columns_and_wrong_conditions_of_a_read_are_refused(pictures: Pictures) -> None:
    with pytest.raises(QueueError, match="no column 'colour'"):
        next(pictures.table.read(columns=["colour"]))
    with pytest.raises(QueueError, match="reading table images where 'colour = 1'"):
        next(pictures.table.read("colour = 1"))
    with pytest.raises(QueueError, match="counting table images"):
        pictures.table.count("colour = 1")
