"""What the krablet tests share: a small declared table, rows for it, and hands on the database's clock."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import pytest

from pleinair import krablet
from pleinair.krablet import Stage, Table
from pleinair.krablet.connections import Connection
from pleinair.krablet.pluck.signing import write_keys
from pleinair.krablet.postgres.embedded import stop_server
from pleinair.krablet.shards import Shard
from tests.krablet.pluck_jobs_of_tests import Numbers

COLUMNS = {"image_name": "text", "path": "text", "contains_text": "boolean", "length": "bigint"}


@dataclass(frozen=True)
class Pictures:
    """A table of pictures with one stage, `ocr`, that writes `contains_text`."""

    database: krablet.Database
    table: Table
    ocr: Stage

    def add(self, count: int, start: int = 0) -> list[str]:
        return self.upsert([f"picture-{number:05d}" for number in range(start, start + count)])

    def add_together(self, count: int, start: int = 0) -> list[str]:
        """Rows that one claim can take: all on the last shard."""
        names = (f"picture-{number:05d}" for number in itertools.count(start))
        of_shard = (name for name in names if self.database.shards.of(name) == self.last_shard)
        return self.upsert(list(islice(of_shard, count)))

    def upsert(self, names: list[str]) -> list[str]:
        self.table.upsert({"image_name": name, "path": f"/pictures/{name}.png"} for name in names)
        return names

    @property
    def last_shard(self) -> Shard:
        return self.database.shards.all[-1]

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Run a statement on every shard; the rows of all."""

        def execute(connection: Connection) -> list[tuple[object, ...]]:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

        return list(chain(*self.database.shards.each(execute)))

    def expire_leases(self) -> None:
        self.sql("UPDATE images SET ocr_leased_until = now() - interval '1 s' WHERE ocr_leased_until IS NOT NULL")

    def end_delays(self) -> None:
        self.sql("UPDATE images SET ocr_not_before = now() - interval '1 s' WHERE ocr_not_before IS NOT NULL")

    def results(self) -> dict[object, object]:
        return dict(self.sql("SELECT image_name, contains_text FROM images"))  # type: ignore[arg-type]


def pictures_in(database: krablet.Database) -> Pictures:
    table = database.table("images", key="image_name", columns=COLUMNS)
    ocr = table.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"], batch=8, lease_seconds=60)
    return Pictures(database, table, ocr)


on_one_shard_and_on_three = pytest.mark.parametrize(
    "pictures", [1, 3], indirect=True, ids=["one-shard", "three-shards"]
)
"""The contract: what a test says of a warehouse holds whether it is one server or several."""


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Iterator[Pictures]:
    """An empty table of pictures, on one shard unless the test says `on_one_shard_and_on_three`."""
    if getattr(request, "param", 1) == 1:
        yield pictures_in(request.getfixturevalue("database"))
    else:
        with closing(krablet.connect(request.getfixturevalue("spread_warehouse"))) as database:
            yield pictures_in(database)
            database.shards.each(_empty)


@pytest.fixture(scope="session")
def spread_warehouse(postgres: krablet.Database) -> Iterator[list[str]]:
    """DSNs of a warehouse of three shards; every test leaves it empty, as making one takes half a second."""
    with three_databases(postgres) as dsns:
        krablet.connect(dsns).close()
        yield dsns


@pytest.fixture
def three(postgres: krablet.Database) -> Iterator[list[str]]:
    """DSNs of three empty databases, which play three servers."""
    with three_databases(postgres) as dsns:
        yield dsns


@contextmanager
def three_databases(postgres: krablet.Database) -> Iterator[list[str]]:
    names = [f"shard_{uuid.uuid4().hex[:12]}" for _ in range(3)]
    with postgres.connection() as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"')
        yield [postgres.dsn.replace("/postgres?", f"/{name}?") for name in names]
        for name in names:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _empty(connection: Connection) -> None:
    connection.execute("DROP TABLE IF EXISTS images CASCADE")
    connection.execute("TRUNCATE pleinair.tables, pleinair.stages, pleinair.workers, pleinair.work_log")


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
