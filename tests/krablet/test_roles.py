"""What each role may do: every operation by every role on a real server, and the product itself under each role."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from pleinair import krablet
from pleinair.cli.main import main
from pleinair.krablet import rpc
from pleinair.krablet.connections import Session
from pleinair.krablet.funnel.client import FunnelClient
from pleinair.krablet.funnel.funnel import Funnel
from pleinair.krablet.moves import rebalance
from pleinair.krablet.pluck import pluck
from pleinair.krablet.pluck.signing import load_key, write_keys
from pleinair.krablet.pluck.worker import Worker, WorkerSettings
from pleinair.krablet.queries import query
from pleinair.krablet.roles import KINDS, Kind, list_roles
from pleinair.krablet.watching.gauges import Watcher
from pleinair.krablet.watching.work_log import WorkLog
from pleinair.records.errors import ConfigError, DatabaseError
from tests.krablet.conftest import COLUMNS
from tests.krablet.funnels import TOKEN, Service
from tests.krablet.pluck_jobs_of_tests import double

YES = {"contains_text": True}
REFUSED = (psycopg.errors.InsufficientPrivilege, DatabaseError)


@dataclass
class Warehouse:
    """A warehouse that belongs to a mere owner, with one login of every other kind."""

    dsn: str
    tag: str
    keys: Path
    opened: dict[str, krablet.Database] = field(default_factory=dict)

    def login(self, kind: str) -> str:
        return f"{kind}_{self.tag}"

    def dsn_of(self, kind: str) -> str:
        return conninfo.make_conninfo(self.dsn, user=self.login(kind))

    def database(self, kind: str) -> krablet.Database:
        if kind not in self.opened:
            self.opened[kind] = krablet.connect(self.dsn_of(kind))
        return self.opened[kind]

    def stage(self, kind: str) -> krablet.Stage:
        return self.database(kind).declared_stages()[0]

    def run(self, kind: str, statement: str) -> None:
        """Run by a role in a transaction that is undone; a reader's is not read-only here, as that is no guard."""
        with psycopg.connect(self.dsn_of(kind)) as connection:
            connection.read_only = False
            connection.execute(statement.format(**{name: self.login(name) for name in KINDS}))
            connection.rollback()

    def add_rows(self) -> list[str]:
        names = [f"picture-{uuid.uuid4()}" for _ in range(8)]
        self.database("owner").declared_table("images").upsert({"image_name": name, "length": 1} for name in names)
        return names


def declare(database: krablet.Database) -> krablet.Table:
    images = database.table("images", key="image_name", columns=COLUMNS)
    images.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"], batch=2)
    return images


@pytest.fixture(scope="module")
def warehouse(postgres: krablet.Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    tag = uuid.uuid4().hex[:8]
    made = Warehouse(
        postgres.dsn.replace("/postgres?", f"/roles_{tag}?"), tag, tmp_path_factory.mktemp("keys") / "pluck"
    )
    write_keys(made.keys)
    with postgres.connection() as admin:
        admin.execute(f"CREATE DATABASE roles_{tag}")
        with krablet.connect(made.dsn) as database:
            database.create_role("owner", made.login("owner"))
        for kind in KINDS[1:]:
            admin.execute(f"CREATE ROLE {made.login(kind)} LOGIN")
        owner = made.database("owner")
        declare(owner)
        owner.table("notes", key="id", columns={"id": "bigint", "text": "text"})
        with owner.connection() as connection:
            connection.execute("CREATE TABLE secrets (word text)")
        for kind in KINDS[1:]:
            owner.create_role(kind, made.login(kind))
        yield made
        for database in made.opened.values():
            database.close()
        admin.execute(f"DROP DATABASE roles_{tag} WITH (FORCE)")
        for kind in KINDS:
            admin.execute(f"DROP ROLE {made.login(kind)}")


def settle_by(warehouse: Warehouse, kind: str, how: Callable[[krablet.Stage, krablet.Claim], object]) -> None:
    """Let a role end a claim that the owner made."""
    warehouse.add_rows()
    claim = warehouse.stage("owner").claim(1)
    assert claim is not None
    how(warehouse.stage(kind), claim)


def claim(warehouse: Warehouse, kind: str) -> None:
    warehouse.add_rows()
    assert warehouse.stage(kind).claim(1) is not None


def claim_under_a_limit(warehouse: Warehouse, kind: str) -> None:
    warehouse.add_rows()
    warehouse.stage("owner").limit(1000)
    stage = warehouse.stage(kind)
    stage.control()
    stage.claim(1)


def write_work_log(warehouse: Warehouse, kind: str) -> None:
    log = WorkLog([warehouse.stage(kind)])
    warehouse.database(kind).session.run(log.write)
    warehouse.database(kind).session.run(log.close)


def flush_a_funnel(warehouse: Warehouse, kind: str) -> None:
    with Funnel(warehouse.dsn_of(kind)) as funnel:
        funnel.submit("images", {"image_name": "a", "length": 5}).result(30)


def read_rows(warehouse: Warehouse, kind: str) -> None:
    warehouse.add_rows()
    assert next(warehouse.database(kind).declared_table("images").read()).num_rows > 0


def look(warehouse: Warehouse, kind: str) -> None:
    with closing(Watcher(warehouse.database(kind))) as watcher:
        assert [gauge.stage for gauge in watcher.look().gauges] == ["ocr"]


def submit_and_do_a_job(warehouse: Warehouse, kind: str, output: Any = "length") -> None:
    names = warehouse.add_rows()
    rows = pluck(warehouse.database(kind), "images", "image_name", f"image_name = '{names[0]}'")
    handle = rows.map(lambda batch: [{"n": 7} if isinstance(output, tuple) else 7 for _ in batch], output=output,
                      key_file=warehouse.keys)  # fmt: skip
    session = Session(warehouse.dsn_of(kind))
    settings = WorkerSettings(keys=[load_key(warehouse.keys)], job=handle.id, report=lambda line: None)
    assert Worker({"0": session}, settings).run()
    session.close()
    assert handle.progress().done == 1


def upsert(warehouse: Warehouse, kind: str) -> None:
    warehouse.database(kind).declared_table("images").upsert([{"image_name": "a", "length": 3}])


def redeclare_stage(warehouse: Warehouse, kind: str, ready: str) -> None:
    table = warehouse.database(kind).declared_table("images")
    table.stage("ocr", ready=ready, writes=["contains_text"], batch=2)


Operation = Callable[[Warehouse, str], object]
OPERATIONS: dict[str, tuple[str, Operation]] = {
    "claim": ("owner worker", claim),
    "claim under a limit": ("owner worker", claim_under_a_limit),
    "complete": ("owner worker", lambda w, k: settle_by(w, k, lambda stage, held: stage.complete(held, [YES]))),
    "fail": ("owner worker", lambda w, k: settle_by(w, k, lambda stage, held: stage.fail(held, ValueError("bad")))),
    "heartbeat": ("owner worker", lambda w, k: settle_by(w, k, lambda stage, held: stage.renew(held))),
    "release": ("owner worker", lambda w, k: settle_by(w, k, lambda stage, held: stage.release(held))),
    "retry": ("owner worker", lambda w, k: w.stage(k).retry()),
    "write the work log": ("owner worker", write_work_log),
    "upsert": ("owner funnel pluck", upsert),
    "flush a funnel": ("owner funnel", flush_a_funnel),
    "read rows": ("owner worker funnel pluck reader", read_rows),
    "count what is to do": ("owner worker pluck reader metrics", lambda w, k: w.stage(k).depth()),
    "look at everything": ("owner worker reader metrics", look),
    "submit and do a job of pluck": ("owner pluck", submit_and_do_a_job),
    "submit a job with a table of its own": (
        "owner", lambda w, k: submit_and_do_a_job(w, k, (f"out_{k}", {"n": "bigint"})),
    ),
    "declare the same": ("owner worker funnel pluck reader metrics", lambda w, k: declare(w.database(k))),
    "declare another table": ("owner", lambda w, k: w.database(k).table(f"more_{k}", key="id", columns={"id": "text"})),
    "declare another column": (
        "owner", lambda w, k: w.database(k).table("notes", key="id", columns={"id": "bigint", f"by_{k}": "text"}),
    ),
    "change a stage": ("owner", lambda w, k: redeclare_stage(w, k, f"contains_text IS NULL AND '{k}' <> ''")),
    "declare a stage as it is": (
        "owner worker funnel pluck reader metrics", lambda w, k: redeclare_stage(w, k, w.stage("owner").ready),
    ),
    "pause a stage": ("owner", lambda w, k: (w.stage(k).pause(), w.stage(k).resume())),
    "give a role its rights": (
        "owner", lambda w, k: w.database(k).create_role("worker", w.login("funnel" if k == "worker" else "worker")),
    ),
}  # fmt: skip
STATEMENTS: dict[str, tuple[str, str]] = {
    "read a table without stages": ("owner funnel pluck reader", "SELECT id, text FROM notes"),
    "read a table nobody declared": ("owner reader", "SELECT * FROM secrets"),
    "read the roles": ("owner", "SELECT * FROM pleinair.roles"),
    "read functions of pluck": ("owner pluck", "SELECT function FROM pleinair.pluck_jobs"),
    "read clients of the funnel": ("owner funnel", "SELECT * FROM pleinair.funnel_clients"),
    "read password hashes": ("", "SELECT rolpassword FROM pg_authid"),
    "read a file": ("", "SELECT pg_read_file('/etc/passwd')"),
    "list a folder": ("", "SELECT pg_ls_dir('/')"),
    "import a file": ("", "SELECT lo_import('/etc/passwd')"),
    "copy from a file": ("", "COPY images (image_name) FROM '/etc/passwd'"),
    "copy to a file": ("", "COPY images (image_name) TO '/tmp/pleinair-canary'"),
    "copy to a program": ("", "COPY images (image_name) TO PROGRAM 'touch /tmp/pleinair-canary'"),
    "be the owner": ("owner", "SET ROLE {owner}"),
    "be the superuser": ("", "SET ROLE pleinair"),
    "log in anew as the superuser": ("", "SET SESSION AUTHORIZATION pleinair"),
    "set another's password": ("", "ALTER ROLE pleinair PASSWORD 'x'"),
    "make a login": ("", "CREATE ROLE nobody_{worker}"),
    "insert a row": ("owner funnel pluck", "INSERT INTO images (image_name) VALUES ('new')"),
    "delete rows": ("owner", "DELETE FROM images"),
    "empty a table": ("owner", "TRUNCATE images"),
    "write a result": ("owner worker funnel pluck", "UPDATE images SET contains_text = TRUE"),
    "write a column that is no result": ("owner funnel pluck", "UPDATE images SET path = NULL"),
    "write the state of claims": ("owner worker", "UPDATE images SET ocr_token = NULL"),
    "change keys": ("owner", "UPDATE images SET image_name = image_name || '!'"),
    "change a table": ("owner", "ALTER TABLE images ADD COLUMN mine text"),
    "drop a table": ("owner", "DROP TABLE images"),
    "lock writers out": ("owner", "LOCK TABLE images IN ACCESS EXCLUSIVE MODE"),
    "create a table": ("owner", "CREATE TABLE mine (a int)"),
    "create a table in the catalog": ("owner", "CREATE TABLE pleinair.mine (a int)"),
    "create a function": ("owner", "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1"),
    "create a schema": ("owner", "CREATE SCHEMA mine"),
    "set a trigger": (
        "owner", "CREATE TRIGGER mine AFTER INSERT ON images FOR EACH ROW EXECUTE FUNCTION pleinair.note_change('a')",
    ),
    "replace a function of the catalog": (
        "owner", "CREATE OR REPLACE FUNCTION pleinair.retry_delay(attempts integer) RETURNS interval "
        "LANGUAGE sql RETURN interval '0 s'",
    ),
    "own slots": ("owner", "UPDATE pleinair.here SET owned = 0::bit(1024)"),
    "change the slot map": ("owner", "INSERT INTO pleinair.slots (slot, shard) VALUES (0, 1)"),
    "send others to another server": ("owner", "INSERT INTO pleinair.shards (shard, place) VALUES (1, 'host=evil')"),
    "begin a move": ("owner", "INSERT INTO pleinair.moves (slot, source, target) VALUES (0, 0, 1)"),
    "change a condition": ("owner", "UPDATE pleinair.stages SET ready = 'TRUE'"),
    "change a declaration": ("owner", "UPDATE pleinair.tables SET columns = '[]'"),
    "forge a migration": ("owner", "INSERT INTO pleinair.migrations (name) VALUES ('9999')"),
    "draw tokens": ("owner worker", "SELECT nextval('pleinair.claim_tokens')"),
    "reset tokens": ("owner", "ALTER SEQUENCE pleinair.claim_tokens RESTART"),
    "forge clients of the funnel": ("owner funnel", "UPDATE pleinair.funnel_clients SET applied = 0"),
    "swap a job's function": ("owner", "UPDATE pleinair.pluck_jobs SET function = ''"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_allowed_to_those_it_is_for(warehouse: Warehouse, name: str, kind: Kind) -> None:
    allowed, operation = OPERATIONS[name]
    if kind in allowed.split():
        operation(warehouse, kind)
    else:
        with pytest.raises(REFUSED, match="permission denied|must be owner|may not"):
            operation(warehouse, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_allowed_to_those_it_is_for(warehouse: Warehouse, name: str, kind: Kind) -> None:
    allowed, statement = STATEMENTS[name]
    if kind in allowed.split():
        warehouse.run(kind, statement)
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            warehouse.run(kind, statement)


def test_a_worker_process_works_under_the_workers_login(warehouse: Warehouse, functions_on_path: str) -> None:
    owner = warehouse.database("owner")
    table = owner.table("later", key="image_name", columns=COLUMNS)
    stage = table.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"])
    names = [f"picture-{number:05d}" for number in range(60)]
    table.upsert({"image_name": name} for name in names)
    spec = stage.spec(f"{functions_on_path}:has_odd_number")
    summary = krablet.run_workers(warehouse.dsn_of("worker"), [spec], processes=1, interval_seconds=0.1)
    assert (summary.stuck, summary.deaths) == ({"later.ocr": []}, 0), "a table declared after the role was made"
    read = [row for batch in table.read(columns=["image_name", "contains_text"]) for row in batch.to_pylist()]
    assert {row["image_name"]: row["contains_text"] for row in read} == {
        name: int(name[-5:]) % 2 == 1 for name in names
    }


def test_a_worker_without_rights_ends_the_run_in_one_sentence(warehouse: Warehouse, functions_on_path: str) -> None:
    spec = krablet.StageSpec("images", "ocr", f"{functions_on_path}:has_odd_number")
    with pytest.raises(REFUSED, match="permission denied"):
        krablet.run_workers(warehouse.dsn_of("metrics"), [spec], processes=1, interval_seconds=0.1)


def test_the_funnel_service_runs_under_the_funnels_login(warehouse: Warehouse, tmp_path: Path) -> None:
    counters = warehouse.database("owner").table(
        "counters", key="name", columns={"name": "text", "hits": "bigint"}, merge={"hits": "sum"}
    )
    with Service(warehouse.dsn_of("funnel"), f"unix:{tmp_path}/f") as service:
        with FunnelClient(service.address, token=TOKEN) as client:
            for done in [client.upsert("counters", {"name": "a", "hits": 1}) for _ in range(50)]:
                done.result(30)
        assert service.stop() == 0
    assert next(counters.read()).to_pylist() == [{"name": "a", "hits": 50}]


def test_metrics_are_scraped_under_their_own_login(warehouse: Warehouse) -> None:
    warehouse.add_rows()
    command = [sys.executable, "-m", "pleinair.cli.main", "krablet", "metrics", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--dsn", warehouse.dsn_of("metrics")], stdout=subprocess.PIPE, text=True
    ) as served:
        assert served.stdout is not None
        address = served.stdout.readline().split()[-1]
        with urllib.request.urlopen(address) as answer:
            page = answer.read().decode()
        served.terminate()
        assert served.wait(30) == 0, "SIGTERM ends it, also as the first process of a container"
    assert 'pleinair_stage_depth_rows{table="images",stage="ocr",shard="0",state="claimable"}' in page
    assert 'pleinair_shard_up{shard="0"} 1' in page


def test_the_read_service_reads_under_the_readers_login(warehouse: Warehouse) -> None:
    command = [sys.executable, "-m", "pleinair.cli.main", "krablet", "rpc", "--listen", "127.0.0.1:0"]
    warehouse.add_rows()
    with subprocess.Popen([*command, "--dsn", warehouse.dsn_of("reader")], stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        client = rpc.connect(served.stdout.readline().split()[-1])
        assert client.read("images", limit=3).to_table().num_rows == 3
        served.terminate()
        assert served.wait(30) == 0


def test_a_role_made_again_as_another_kind_keeps_nothing_of_the_old(warehouse: Warehouse) -> None:
    owner, login = warehouse.database("owner"), warehouse.login("worker")
    owner.create_role("metrics", login)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        warehouse.run("worker", "UPDATE images SET ocr_token = NULL")
    assert ("metrics", login) in owner.session.run(list_roles)
    owner.create_role("worker", login)
    warehouse.run("worker", "UPDATE images SET ocr_token = NULL")


@pytest.mark.parametrize("kind", ["worker", "reader"])
def test_a_login_with_more_power_is_made_no_lesser_role(warehouse: Warehouse, kind: Kind) -> None:
    with pytest.raises(ConfigError, match=f"the role pleinair is a superuser, and a {kind} may do less"):
        warehouse.database("owner").create_role(kind, "pleinair")
    with pytest.raises(ConfigError, match="is the one that gives the rights"):
        warehouse.database("owner").create_role(kind, warehouse.login("owner"))


def test_a_second_owner_is_refused(warehouse: Warehouse) -> None:
    with (
        krablet.connect(warehouse.dsn) as database,
        pytest.raises(ConfigError, match=f"this warehouse belongs to the role {warehouse.login('owner')}"),
    ):
        database.create_role("owner", f"second_{warehouse.tag}")


def test_an_owner_that_may_create_no_roles_is_told_who_may(warehouse: Warehouse) -> None:
    with pytest.raises(DatabaseError, match="let an administrator run CREATE ROLE nobody_yet LOGIN first"):
        warehouse.database("owner").create_role("worker", "nobody_yet")


def test_a_login_that_was_given_nothing_is_told_what_to_do(warehouse: Warehouse, postgres: krablet.Database) -> None:
    stranger = f"stranger_{warehouse.tag}"
    with postgres.connection() as admin:
        admin.execute(f"CREATE ROLE {stranger} LOGIN")
        try:
            with pytest.raises(DatabaseError, match="permission denied for schema pleinair; connect as the owner"):
                krablet.connect(conninfo.make_conninfo(warehouse.dsn, user=stranger))
        finally:
            admin.execute(f"DROP ROLE {stranger}")


def test_roles_are_made_on_every_server_and_on_those_that_join_later(
    postgres: krablet.Database, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = uuid.uuid4().hex[:8]
    dsns = [postgres.dsn.replace("/postgres?", f"/many_{tag}_{place}?") for place in range(3)]
    with postgres.connection() as admin:
        for place in range(3):
            admin.execute(f"CREATE DATABASE many_{tag}_{place}")
        with krablet.connect(dsns[:2]) as database:
            images = declare(database)
            assert main(["krablet", "role", "create", "worker", f"w_{tag}", "--no-password", "--dsn", dsns[0]]) == 0
            database.add_server(dsns[2])
            rebalance(database.shards)
            images.upsert({"image_name": f"picture-{number}"} for number in range(90))
            with krablet.connect(conninfo.make_conninfo(dsns[0], user=f"w_{tag}")) as theirs:
                stage = theirs.declared_stages()[0]
                assert krablet.work(stage, lambda rows: [YES] * len(rows)).completed == 90
                assert theirs.shards.each(lambda connection: connection.info.user) == [f"w_{tag}"] * 3
        assert main(["krablet", "role", "list", "--dsn", dsns[0]]) == 0
        assert capsys.readouterr().out.count(f"w_{tag}") == 4, "created once, and listed on three servers"
        for place in range(3):
            admin.execute(f"DROP DATABASE many_{tag}_{place} WITH (FORCE)")
        admin.execute(f"DROP ROLE w_{tag}")


@pytest.mark.parametrize(("kind", "write"), [("worker", claim), ("funnel", flush_a_funnel), ("pluck", upsert)])
def test_those_who_write_rows_may_do_so_while_slots_move(warehouse: Warehouse, kind: str, write: Operation) -> None:
    """The trigger that notes changes runs with their rights."""
    parts = {
        "table": sql.Identifier("images"), "key": sql.Identifier("image_name"), "key_name": sql.Literal("image_name"),
        "slots": sql.Literal(list(range(1024))),
    }  # fmt: skip
    noted = "SELECT count(*) > 0 FROM pleinair.changes"
    with warehouse.database("owner").connection() as owner:
        owner.execute(query("shards", "create_watch").format(**parts))
        try:
            warehouse.add_rows()
            owner.execute(query("shards", "forget_changes"))
            write(warehouse, kind)
            assert owner.execute(noted).fetchone() == (True,)
        finally:
            owner.execute(query("shards", "drop_watch").format(**parts))
            owner.execute(query("shards", "forget_changes"))


def test_a_condition_of_pluck_reads_no_more_than_its_login(warehouse: Warehouse) -> None:
    with pytest.raises(DatabaseError, match="permission denied for table secrets"):
        pluck(warehouse.database("pluck"), "images", "image_name", "EXISTS (SELECT FROM secrets)").map(
            double, output="length", key_file=warehouse.keys
        )


@pytest.mark.parametrize("login", ["owner", "pleinair"])
def test_a_condition_of_pluck_does_not_become_somebody_else(warehouse: Warehouse, login: str) -> None:
    name = warehouse.login("owner") if login == "owner" else login
    for where in (
        f"set_config('role', '{name}', TRUE) = '{name}'",
        f"set_config('session_authorization', '{name}', TRUE) = ''",
    ):
        with pytest.raises(DatabaseError, match="permission denied"):
            pluck(warehouse.database("pluck"), "images", "image_name", where).map(
                double, output="length", key_file=warehouse.keys
            )


@pytest.mark.parametrize("ready", ["length < (SELECT count(*) FROM secrets)", "pg_read_file('/etc/passwd') IS NULL"])
def test_a_condition_of_a_stage_reaches_nothing_but_its_row(warehouse: Warehouse, ready: str) -> None:
    images = warehouse.database("owner").declared_table("images")
    with pytest.raises(DatabaseError, match="cannot use subquery|must be marked IMMUTABLE"):
        images.stage("escape", ready=ready, writes=["contains_text"])
