"""What the krablet tests share: a small declared table, rows for it, and hands on the database's clock."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pleinair import krablet
from pleinair.krablet import Stage, Table
from pleinair.krablet.connections import Connection
from pleinair.krablet.pluck.signing import write_keys
from pleinair.krablet.postgres.embedded import stop_server
from tests.krablet.pluck_jobs_of_tests import Numbers

COLUMNS = {"image_name": "text", "path": "text", "contains_text": "boolean", "length": "bigint"}


@dataclass(frozen=True)
class Pictures:
    """A table of pictures with one stage, `ocr`, that writes `contains_text`."""

    database: krablet.Database
    table: Table
    ocr: Stage

    def add(self, count: int, start: int = 0) -> list[str]:
        names = [f"picture-{number:05d}" for number in range(start, start + count)]
        self.table.upsert({"image_name": name, "path": f"/pictures/{name}.png"} for name in names)
        return names

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        def execute(connection: Connection) -> list[tuple[object, ...]]:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

        return self.database.session.run(execute)

    def expire_leases(self) -> None:
        self.sql("UPDATE images SET ocr_leased_until = now() - interval '1 s' WHERE ocr_leased_until IS NOT NULL")

    def end_delays(self) -> None:
        self.sql("UPDATE images SET ocr_not_before = now() - interval '1 s' WHERE ocr_not_before IS NOT NULL")

    def results(self) -> dict[object, object]:
        return dict(self.sql("SELECT image_name, contains_text FROM images"))  # type: ignore[arg-type]


@pytest.fixture
def pictures(database: krablet.Database) -> Pictures:
    table = database.table("images", key="image_name", columns=COLUMNS)
    ocr = table.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"], batch=8, lease_seconds=60)
    return Pictures(database, table, ocr)


@pytest.fixture
def functions_on_path(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of worker functions, importable here and so in worker processes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return "krablet_worker_functions"


@pytest.fixture(scope="session")
def embedded_directory() -> Iterator[Path]:
    """A directory with an embedded server of its own, created once; tests start, kill and stop it."""
    directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    krablet.connect(directory=directory).close()
    yield directory
    stop_server(directory)
    shutil.rmtree(directory)


@pytest.fixture
def stopped_server(embedded_directory: Path) -> Iterator[Path]:
    """That directory with its server stopped."""
    stop_server(embedded_directory)
    yield embedded_directory
    stop_server(embedded_directory)


@contextmanager
def empty_databases(postgres: krablet.Database, count: int) -> Iterator[list[str]]:
    """DSNs of databases on one server, which play several servers."""
    names = [f"shard_{uuid.uuid4().hex[:12]}" for _ in range(count)]
    with postgres.connection() as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"')
        yield [postgres.dsn.replace("/postgres?", f"/{name}?") for name in names]
        for name in names:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def shard_dsns(postgres: krablet.Database) -> Iterator[list[str]]:
    with empty_databases(postgres, 3) as dsns:
        yield dsns


@pytest.fixture
def numbers(database: krablet.Database, tmp_path: Path) -> Numbers:
    """A table of numbers for jobs of pluck."""
    columns = {"name": "text", "value": "bigint", "doubled": "bigint", "vector": "real[]", "seen_at": "timestamptz"}
    return Numbers(database, database.table("numbers", key="name", columns=columns), write_keys(tmp_path / "key")[0])
