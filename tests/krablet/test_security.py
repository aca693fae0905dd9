"""A server in another building: who may connect, and that no password is found anywhere afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from pleinair import krablet
from pleinair.cli.main import main
from pleinair.krablet.connections import Session
from pleinair.krablet.funnel.client import ClientSettings
from pleinair.krablet.funnel.funnel import Funnel
from pleinair.krablet.funnel.service import ServiceSettings
from pleinair.krablet.reading.pools import ReadPools
from pleinair.records.errors import ConfigError, DatabaseError
from tests.krablet.conftest import COLUMNS
from tests.krablet.secure_servers import PASSWORD, SecureServer, secure_server

ROLES_PASSWORD = "canary-of-a-role-91b3"
YES = {"contains_text": True}


@pytest.fixture(scope="module")
def server() -> Iterator[SecureServer]:
    with secure_server() as made:
        yield made


def declare(database: krablet.Database, rows: int = 0) -> krablet.Stage:
    images = database.table("images", key="image_name", columns=COLUMNS)
    images.upsert({"image_name": f"picture-{number:05d}", "contains_text": None} for number in range(rows))
    return images.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"])


def test_a_server_is_verified_and_a_password_goes_by_scram(server: SecureServer) -> None:
    with krablet.connect(server.dsn()) as database, database.connection() as connection:
        assert declare(database, rows=3).depth().claimable == 3
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)
    with psycopg.connect(server.admin) as admin:
        stored = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'ada'").fetchone()
    assert stored is not None
    assert stored[0].startswith("SCRAM-SHA-256$")


REFUSALS = {
    "another CA": ({"sslrootcert": "{stranger}"}, "certificate verify failed; .*: give its CA as sslrootcert"),
    "another name": ({"host": "elsewhere"}, "does not match host name .*; .* as host the name in its certificate"),
    "no CA": ({"sslrootcert": "/nowhere/ca.pem"}, 'root certificate file "/nowhere/ca.pem" .* give its CA'),
    "no TLS": ({"sslmode": "disable"}, "no encryption; the server wants TLS: give sslmode=verify-full"),
    "a wrong password": ({"password": "wrong-canary-word"}, "authentication failed .*; correct user or password"),
    "no password": ({"password": ""}, r"no password supplied; give it in \$PGPASSWORD, in ~/.pgpass or in the DSN"),
    "nobody there": ({"port": "1"}, "start the server or correct host and port of the DSN"),
    "no such database": ({"dbname": "nowhere"}, '"nowhere" does not exist; correct the DSN'),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_connection_that_is_not_safe_is_refused_with_the_remedy(server: SecureServer, name: str) -> None:
    changed, told = REFUSALS[name]
    dsn = server.dsn(**{part: value.format(stranger=server.stranger) for part, value in changed.items()})
    with pytest.raises(DatabaseError, match=told) as refused:
        Session(dsn, patience_seconds=0).run(lambda connection: connection.execute("SELECT 1"))
    shown = "".join(traceback.format_exception(refused.value))
    assert PASSWORD not in shown
    assert "canary" not in shown


def test_the_password_may_come_from_the_environment_also_for_worker_processes(
    server: SecureServer, monkeypatch: pytest.MonkeyPatch, functions_on_path: str
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with krablet.connect(server.dsn(password="")) as database:
        stage = declare(database, rows=20)
        spec = stage.spec(f"{functions_on_path}:has_odd_number")
        assert krablet.run_workers(database, [spec], processes=1, interval_seconds=0.1).deaths == 0
        assert stage.depth().pending == 0


def test_the_password_may_come_from_a_file(
    server: SecureServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = tmp_path / "words"
    words.write_text(f"localhost:{server.port}:*:ada:{PASSWORD}\n")
    words.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(words))
    with krablet.connect(server.dsn(password="")) as database:
        assert database.session.run(lambda connection: connection.info.user) == "ada"


def seen_in_the_database(dsn: str) -> str:
    """Every row of the catalog and what the server shows of its sessions, as text."""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'pleinair'::regnamespace "
                                    "AND relkind = 'r'").fetchall()  # fmt: skip
        shown = [connection.execute(f"SELECT t::text FROM pleinair.{name} AS t").fetchall() for (name,) in tables]
        return repr([shown, connection.execute("SELECT t::text FROM pg_stat_activity AS t").fetchall()])


def seen_of_process(pid: int) -> str:
    """What other users, and those of the same one, can read of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text(errors="replace")


def test_no_command_prints_a_password(
    server: SecureServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLES_PASSWORD", ROLES_PASSWORD)
    second, files = "second", {name: tmp_path / name for name in ("dsn", "second", "wrong", "away", "bad", "word")}
    with psycopg.connect(server.admin, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {second} OWNER ada")
    for name, dsn in {
        "dsn": server.dsn(), "second": server.dsn(dbname=second), "wrong": server.dsn(password="wrong-canary"),
        "away": server.dsn(port="1"), "bad": f"postgresql//ada:{PASSWORD}@host", "word": ROLES_PASSWORD,
    }.items():  # fmt: skip
        files[name].write_text(dsn)
    with krablet.connect(server.dsn()) as database:
        claim = declare(database, rows=9).claim(1)
        assert claim is not None
        database.declared_stages()[0].fail(claim, ValueError("no such file"))
    create = ["role", "create", "worker", "w"]
    for words in (["--password-file", str(files["word"])], ["--password-env", "ROLES_PASSWORD"]):
        assert main(["krablet", *create, *words, "--dsn", server.admin]) == 0
    right = [
        ["shard", "add", "--server", f"@{files['second']}"], ["status"], ["shards"], ["top", "--once"], ["stuck"],
        ["errors"], ["dag"], ["role", "list"], ["stage", "pause", "images.ocr"], ["stage", "resume", "images.ocr"],
    ]  # fmt: skip
    codes = [main(["krablet", *words, "--dsn", f"@{files['dsn']}"]) for words in right]
    assert codes == [0] * len(right)
    for name in ("wrong", "away", "bad"):
        assert main(["krablet", "status", "--dsn", f"@{files[name]}"]) == 1
    assert main(["krablet", *create, "--password-env", "ROLES_PASSWORD", "--dsn", f"@{files['dsn']}"]) == 1
    assert main(["sql", "SELECT nothing", "--dsn", f"@{files['dsn']}"]) == 1
    shown = "".join(capfd.readouterr())
    assert "Postgres refuses this login" in shown
    for place, text in {
        "what was printed": shown, "the catalog": seen_in_the_database(server.admin), "the log": server.log.read_text(),
        "the second catalog": seen_in_the_database(conninfo.make_conninfo(server.admin, dbname=second)),
    }.items():  # fmt: skip
        assert "canary" not in text, place
    with krablet.connect(server.dsn(user="w", password=ROLES_PASSWORD)) as theirs:
        ours = theirs.declared_stages()[0].claim(1)
        assert ours is not None, "the password was set all the same"
        assert theirs.declared_stages()[0].release(ours) == 1
        logins = theirs.shards.each(lambda connection: connection.info.user)
    assert logins == ["w", "w"], "also on the shard that the owner took in"


def test_no_service_and_no_worker_shows_a_password(
    server: SecureServer, tmp_path: Path, functions_on_path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    dsn = tmp_path / "dsn"
    dsn.write_text(server.dsn())
    seen: list[str] = []
    command = [sys.executable, "-m", "pleinair.cli.main", "krablet"]
    for words in (["metrics", "--listen", "127.0.0.1:0"], ["funnel", "--listen", f"unix:{tmp_path}/f"]):
        with subprocess.Popen(
            [*command, *words, "--dsn", f"@{dsn}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as served:
            assert served.stdout is not None
            seen += [line := served.stdout.readline(), seen_of_process(served.pid)]
            if "metrics" in words:
                with urllib.request.urlopen(line.split()[-1]) as answer:
                    seen.append(answer.read().decode())
            served.send_signal(signal.SIGTERM)
            seen.append(served.communicate(timeout=30)[0])
            assert served.returncode == 0, seen
    with krablet.connect(server.dsn()) as database:
        stage = declare(database, rows=40)
        spec = stage.spec(f"{functions_on_path}:has_odd_number", sleep_seconds=0.02)
        krablet.run_workers(
            database, [spec], processes=1, interval_seconds=0.1,
            on_progress=lambda progress: seen.extend(map(seen_of_process, progress.worker_pids)),
        )  # fmt: skip
    seen += [seen_in_the_database(server.admin), *capfd.readouterr(), server.log.read_text()]
    assert "pleinair_stage_depth_rows" in "".join(seen)
    assert "workers.process" in "".join(seen)
    assert "canary" not in "".join(seen)


def test_no_object_shows_a_password_when_it_is_printed(server: SecureServer) -> None:
    client = ClientSettings(token=PASSWORD)
    with (
        krablet.connect(server.dsn()) as database,
        ReadPools(database.shards.dsns) as pools,
        Funnel(database.session) as funnel,
    ):
        shown = [database, database.session, database.shards, *database.shards.all, pools, *pools.shards, funnel]
        shown += [ServiceSettings(listen="unix:/tmp/x", token=PASSWORD), client, client.link()]
        assert "canary" not in repr(shown)
        assert "canary" not in "".join(map(str, shown))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--password-env", "NOT_SET_ANYWHERE"], "the variable NOT_SET_ANYWHERE holds no password: write it there"),
        (["--password-file", "/nowhere/word"], "/nowhere/word cannot be read: No such file or directory"),
        ([], "w needs a password: give --password-file, --password-env or --no-password"),
    ],
)
def test_a_password_that_is_not_there_is_asked_for_in_a_sentence(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["krablet", "role", "create", "worker", "w", *words]) == 1
    assert told in capsys.readouterr().err


def test_an_unknown_kind_of_role_is_refused(database: krablet.Database) -> None:
    with pytest.raises(ConfigError, match="no kind of role 'king': use one of owner, worker"):
        database.create_role("king", "w")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["workers", "tables", "images"])
def test_the_embedded_logins_tables_lie_apart_from_the_catalog_whatever_their_names(
    database: krablet.Database, name: str
) -> None:
    table = database.table(name, key="id", columns={"id": "bigint", "done": "boolean"})
    table.upsert([{"id": 1}])
    table.stage("finish", ready="done IS NULL", writes=["done"])
    where = "SELECT schemaname FROM pg_tables WHERE tablename = %s AND schemaname <> 'pleinair'"
    with database.connection() as connection:
        assert connection.execute(where, [name]).fetchall() == [("public",)]
        assert connection.execute("SELECT current_schemas(FALSE)").fetchone() == (["public"],)
    assert table.count() == 1


def test_tables_that_lay_among_the_catalogs_move_out_with_their_rows_and_indexes(database: krablet.Database) -> None:
    images = database.table("images", key="image_name", columns=COLUMNS)
    images.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"])
    images.upsert([{"image_name": "a"}])
    with database.connection() as connection:  # as it was before migration 0007
        connection.execute("CREATE TABLE byhand (id serial PRIMARY KEY); CREATE VIEW seen AS SELECT * FROM images")
        connection.execute("CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql RETURN 2 * n")
        for kind, moved in (("TABLE", "images"), ("TABLE", "byhand"), ("VIEW", "seen"), ("FUNCTION", "twice(int)")):
            connection.execute(f"ALTER {kind} {moved} SET SCHEMA pleinair")
        connection.execute(f"ALTER ROLE pleinair IN DATABASE {connection.info.dbname} RESET search_path")
        connection.execute("DELETE FROM pleinair.migrations WHERE name ~ '^000[78]'; DROP TABLE pleinair.roles")
    with krablet.connect(database.dsn) as again, again.connection() as connection:
        assert again.declared_stages()[0].claim(1) is not None
        left = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'i')"
        there = {name for (name,) in connection.execute(left)}
        assert there >= {"images", "byhand", "seen", "images_ocr_ready", "images_pkey"}
        assert connection.execute("SELECT twice(2)").fetchone() == (4,)
        assert connection.execute("SELECT nextval('byhand_id_seq')").fetchone() == (1,)


def test_this_tests_secrets_would_be_seen(server: SecureServer) -> None:
    """What the tests above look for is where they look, if it is put there."""
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "WORD": PASSWORD}) as sleeping:
        while "sleep" not in (seen := seen_of_process(sleeping.pid)):
            time.sleep(0.01)  # it is not yet what it will be
        assert "canary" in seen
        sleeping.kill()
    with psycopg.connect(server.admin, application_name=PASSWORD):
        assert "canary" in seen_in_the_database(server.admin)
