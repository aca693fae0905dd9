"""A declaration changes a table that others are using: nothing is rewritten, nobody waits for long, a killed one heals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pleinair import krablet
from pleinair.krablet import Stage, declarations
from pleinair.krablet.connections import Connection
from pleinair.records.errors import BusyError, QueueError
from tests.krablet.conftest import Pictures

ROWS = 150_000
"""Of 300 bytes and more: beyond what counts as a small table."""
YES = {"contains_text": True}
INDEXES = """
SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE relname LIKE 'images_measure%' ORDER BY relname
"""
BUILT = [("images_measure_again", True), ("images_measure_ready", True)]
DECLARE = """
import sys
from pleinair import krablet
from pleinair.krablet import declarations
declarations.SMALL_TABLE_BYTES = 0
table = krablet.connect(sys.argv[1]).declared_table("images")
table.stage("measure", ready="length IS NULL", writes=["length"])
"""


@contextmanager
def held_snapshot(pictures: Pictures) -> Iterator[Connection]:
    """A transaction that looks at the database as it was: a concurrent build waits for its end, however small the table."""
    with pictures.database.connection() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT 1")
        yield connection


def wait_for_a_build(pictures: Pictures) -> None:
    """Until a concurrent build has nothing left to do but wait."""
    deadline = time.monotonic() + 120
    phase = "SELECT phase FROM pg_stat_progress_create_index WHERE datname = current_database()"
    while pictures.sql(phase) != [("waiting for old snapshots",)]:
        assert time.monotonic() < deadline, "no index is being built"
        time.sleep(0.02)


def measure(pictures: Pictures) -> Stage:
    return pictures.table.stage("measure", ready="length IS NULL", writes=["length"])


class Declarer(threading.Thread):
    """Declares the stage `name` from a process's point of view: over connections of its own."""

    def __init__(self, dsn: str, name: str) -> None:
        super().__init__()
        self._dsn, self._name = dsn, name
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with krablet.connect(self._dsn) as database:
                database.declared_table("images").stage(self._name, ready="length IS NULL", writes=["length"])
        except BaseException as failure:
            self.failure = failure

    def finish(self) -> None:
        self.join(120)
        assert not self.is_alive()
        assert self.failure is None, self.failure


def test_a_stage_added_to_a_large_table_rewrites_nothing_and_holds_no_writer_back(pictures: Pictures) -> None:
    rows = "SELECT 'p' || i, repeat('x', 300) FROM generate_series(1, %s) AS i"
    pictures.sql(f"INSERT INTO images (image_name, path) {rows}", ROWS)
    assert pictures.sql("SELECT pg_relation_size('images') > %s", declarations.SMALL_TABLE_BYTES) == [(True,)]
    file = "SELECT relfilenode FROM pg_class WHERE relname = 'images'"
    before = pictures.sql(file)
    pictures.sql("SET statement_timeout = '10s'")
    with held_snapshot(pictures) as reader:
        declarer = Declarer(pictures.database.dsn, "measure")
        declarer.start()
        wait_for_a_build(pictures)
        pictures.table.upsert([{"image_name": "new", "path": "while it is built"}])
        assert pictures.ocr.complete(pictures.ocr.claim(1), [YES]).completed == 1
        assert [stage.name for stage in pictures.database.declared_stages()] == ["ocr"], "not before it is usable"
        reader.execute("ROLLBACK")
    declarer.finish()
    assert pictures.sql(file) == before
    assert pictures.sql(INDEXES) == BUILT
    pictures.table.update([{"image_name": "p1", "length": 1}])
    assert pictures.sql("SELECT count(*) FROM images WHERE length IS NULL") == [(ROWS,)], (
        "the row written meanwhile too"
    )


def test_a_killed_build_heals_at_the_next_declaration(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    names = pictures.add(3)
    with held_snapshot(pictures):
        process = subprocess.Popen([sys.executable, "-c", DECLARE, pictures.database.dsn])
        wait_for_a_build(pictures)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 30
        while pictures.sql("SELECT 1 FROM pg_stat_progress_create_index WHERE datname = current_database()"):
            assert time.monotonic() < deadline, "the server goes on building for nobody"
            time.sleep(0.05)
    assert ("images_measure_new_r", False) in pictures.sql(INDEXES)
    monkeypatch.setattr(declarations, "SMALL_TABLE_BYTES", 0)
    stage = measure(pictures)
    assert pictures.sql(INDEXES) == BUILT
    assert stage.claim().keys == names


def test_an_index_that_is_not_whole_is_built_again(pictures: Pictures) -> None:
    measure(pictures)
    pictures.sql("UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'images_measure_again'::regclass")
    measure(pictures)
    assert pictures.sql(INDEXES) == BUILT


def test_processes_that_declare_stages_of_a_large_table_at_once_take_turns(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declarations, "SMALL_TABLE_BYTES", 0)
    pictures.add(100)
    declarers = [Declarer(pictures.database.dsn, name) for name in ("measure", "measure", "weigh", "count")]
    for declarer in declarers:
        declarer.start()
    pictures.database.table("images", key="image_name", columns={"image_name": "text", "sharpness": "real"})
    for declarer in declarers:
        declarer.finish()
    assert {stage.name for stage in pictures.database.declared_stages()} == {"ocr", "measure", "weigh", "count"}
    assert pictures.sql(INDEXES) == BUILT


def test_a_declaration_that_waits_for_a_reader_makes_no_writer_wait(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.add(1)
    pictures.sql("SET statement_timeout = '10s'")
    with held_snapshot(pictures) as reader:
        reader.execute("SELECT * FROM images")
        declarer = Declarer(pictures.database.dsn, "measure")
        declarer.start()
        for number in range(8):
            pictures.table.upsert([{"image_name": f"new-{number}"}])
            time.sleep(0.05)
        with monkeypatch.context() as impatient:
            impatient.setattr(declarations, "LOCK_PATIENCE_SECONDS", 0.0)
            with pytest.raises(BusyError, match="table images has been in use by one transaction or index build"):
                pictures.table.stage("weigh", ready="length IS NULL", writes=["length"])
        assert declarer.is_alive()
        reader.execute("ROLLBACK")
    declarer.finish()
    assert pictures.sql(INDEXES) == BUILT


def test_a_wrong_condition_on_a_large_table_leaves_nothing(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declarations, "SMALL_TABLE_BYTES", 0)
    pictures.add(1)
    with pytest.raises(QueueError, match="IMMUTABLE"):
        pictures.table.stage("measure", ready="length IS NULL AND now() > '2020-01-01'", writes=["length"])
    assert pictures.sql("SELECT attname FROM pg_attribute WHERE attname LIKE 'measure%'") == []
    pictures.table.update([{"image_name": "picture-00000", "length": 0}])
    with pytest.raises(QueueError, match="division by zero"):
        pictures.table.stage("measure", ready="1 / length > 0", writes=["path"])
    assert pictures.sql(INDEXES) == []
    assert [stage.name for stage in pictures.database.declared_stages()] == ["ocr"]
