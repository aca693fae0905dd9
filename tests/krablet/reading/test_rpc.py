"""The read service over real sockets: what it gives, whom it refuses, and what it survives."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import conninfo
from pyarrow import flight

from pleinair import krablet
from pleinair.cli.sql import register_sql
from pleinair.krablet import rpc
from pleinair.krablet.connections import UnreachableError
from pleinair.krablet.postgres.embedded import running
from pleinair.krablet.reading.limits import Limits
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.reader import READER, make_reader
from pleinair.krablet.reading.requests import LimitError, ReadError, SqlRequest
from pleinair.krablet.reading.scan import sql
from pleinair.krablet.rpc.server import ReadService, ServiceConfig
from pleinair.records.errors import ConfigError, DatabaseError
from tests.krablet.reading.conftest import Shards, Wide

TOKEN = "canary-0123456789abcdef"
LONG = "CREATE TABLE long (key bigint PRIMARY KEY, pad text)"
FILL = "INSERT INTO long SELECT i, repeat('x', {}) FROM generate_series(1, {}) AS i"


@contextmanager
def serving(pools: ReadPools, **options: Any) -> Iterator[ReadService]:
    service = ReadService(pools, ServiceConfig(port=0, drain_seconds=0.5, **options))
    try:
        yield service
    finally:
        service.close()


@contextmanager
def service_process(shards: Shards, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`pleinair krablet rpc` as a process of its own, and its address."""
    dsns = [argument for dsn in shards.readers for argument in ("--dsn", dsn)]
    command = [
        sys.executable,
        "-m",
        "pleinair.cli.main",
        "krablet",
        "rpc",
        "--listen",
        "127.0.0.1:0",
        *dsns,
        *arguments,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "are served at" in line, line + process.stdout.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def client(wide: Wide) -> Iterator[rpc.Client]:
    with (
        wide.shards.pools() as pools,
        serving(pools) as service,
        rpc.connect(service.address) as client,
    ):
        yield client


def test_a_client_reads_gets_and_queries_what_the_shards_hold(wide: Wide, client: rpc.Client) -> None:
    table = client.read("wide", where="small > %s", params=[1], columns=["key", "small"], order_by="key").to_table()
    expected = sorted(row["key"] for row in wide.rows if (row["small"] or 0) > 1)
    assert table["key"].to_pylist() == sorted(expected, key=str.encode)
    assert table.schema == pa.schema({"key": pa.string(), "small": pa.int32()})
    assert client.schema("wide").field("v") == pa.field("v", pa.list_(pa.float32()))
    some = [row["key"] for row in wide.rows[5:0:-1]]
    assert client.get("wide", some, ["small"])["key"].to_pylist() == some
    assert client.sql("SELECT key FROM wide WHERE small > 1").to_table().num_rows == len(expected)
    counted = client.read("wide", aggregate={"rows": "count(*)"}).to_table().to_pylist()
    assert counted == [{"rows": len(wide.rows)}]
    assert client.read("wide", where="FALSE").to_table().schema == client.schema("wide")


def test_tables_and_stats_are_told(shards: Shards) -> None:
    for dsn in shards.dsns:
        with krablet.connect(dsn) as database:
            table = database.table("t", key="key", columns={"key": "text", "n": "bigint"})
            table.stage("measure", ready="n IS NULL", writes=["n"])
            table.upsert({"key": f"{dsn}-{number}"} for number in range(3))
    with shards.pools() as pools, serving(pools) as service, rpc.connect(service.address) as client:
        stage = {"name": "measure", "ready": "n IS NULL", "writes": ["n"]}
        columns = {"key": "text", "n": "bigint"}
        assert client.tables() == [{"name": "t", "key": "key", "columns": columns, "stages": [stage]}]
        client.read("t", columns=["n"]).to_table()
        stats = client.stats()
        assert (stats["rows"], stats["reads"]["done"], stats["reads"]["running"]) == (3 * len(shards.dsns), 1, 0)
        assert stats["shards"] == {str(place): {"in_use": 0, "idle": 1} for place in range(len(shards.dsns))}


def test_limits_are_the_services_and_name_themselves(wide: Wide) -> None:
    with wide.shards.pools() as pools, serving(pools, limits=Limits(rows=2, seconds=30)) as service:
        client = rpc.connect(service.address)
        assert client.read("wide", limit=2).to_table().num_rows == 2
        with pytest.raises(LimitError, match="^the read came to its limit of 2 rows: narrow `where`"):
            client.read("wide").to_table()


def test_errors_arrive_as_they_were_raised(client: rpc.Client) -> None:
    with pytest.raises(ReadError, match="^there is no table 'nowhere': [^[]*$"):
        client.read("nowhere")
    with pytest.raises(ReadError, match="division by zero"):
        client.read("wide", where="1 / (small - small) > 0").to_table()
    with pytest.raises(ReadError, match="a value cannot be sent"):
        client.read("wide", where="raw = %s", params=[b"x"])
    with pytest.raises(UnreachableError, match="cannot be reached: .*start it or correct the address"):
        rpc.connect("grpc://127.0.0.1:1").read("wide")
    with pytest.raises(ConfigError, match="'http://localhost' is not an address of a read service"):
        rpc.connect("http://localhost")


@pytest.mark.parametrize(
    "where",
    [
        "1=1); DROP TABLE wide; --",
        "1=1); DELETE FROM wide WHERE (1=1",
        "TRUE; COMMIT; DROP TABLE wide",
        "TRUE) TO STDOUT; DROP TABLE wide; COPY (SELECT * FROM wide WHERE (TRUE",
        "TRUE) TO PROGRAM 'touch /tmp/pleinair-canary' --",
        "EXISTS (DELETE FROM wide RETURNING key)",
        "pg_read_file('/etc/passwd') IS NOT NULL",
        "pg_ls_dir('/') IS NOT NULL",
        "lo_import('/etc/passwd') > 0",
        "lo_create(0) > 0",
        "query_to_xml('DROP TABLE wide', true, true, '') IS NOT NULL",
        "query_to_xml('SET TRANSACTION READ WRITE', true, true, '') IS NOT NULL",
        "query_to_xml('COMMIT', true, true, '') IS NOT NULL",
        "set_config('transaction_read_only', 'off', false) IS NOT NULL",
        "set_config('role', 'pleinair', false) IS NOT NULL",
        "set_config('session_authorization', 'pleinair', false) IS NOT NULL",
        "dblink_exec('dbname=postgres', 'DROP TABLE wide') IS NOT NULL",
        "(SELECT passwd FROM pg_shadow LIMIT 1) IS NOT NULL",
        "(SELECT rolpassword FROM pg_authid LIMIT 1) IS NOT NULL",
    ],
)
def test_no_condition_and_no_query_writes_or_reaches_beyond_the_tables(
    wide: Wide, client: rpc.Client, where: str
) -> None:
    before = wide.shards.execute("SELECT count(*), max(key) FROM wide")
    with pytest.raises(ReadError):
        client.read("wide", where=where).to_table()
    with pytest.raises(ReadError):
        client.sql(f"SELECT key FROM wide WHERE ({where})").to_table()
    assert wide.shards.execute("SELECT count(*), max(key) FROM wide") == before
    assert wide.shards.execute("SELECT count(*) FROM pg_largeobject_metadata") == [(0,)] * len(wide.shards.dsns)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE wide",
        "SELECT 1; DROP TABLE wide",
        "COPY wide TO PROGRAM 'touch /tmp/pleinair-canary'",
        "COPY wide TO '/tmp/pleinair-canary'",
        "SET default_transaction_read_only = off",
        "COMMIT",
        "INSERT INTO wide (key) VALUES ('x') RETURNING key",
        "WITH gone AS (DELETE FROM wide RETURNING key) SELECT * FROM gone",
        "SELECT key INTO other FROM wide",
        "SELECT key FROM wide FOR UPDATE",
        "CREATE TEMP TABLE t AS SELECT 1",
        "DO $$ BEGIN DROP TABLE wide; END $$",
        "SELECT nextval('pleinair.claim_tokens')",
        "EXPLAIN ANALYZE DELETE FROM wide",
        "SHOW ALL",
        "",
    ],
)
def test_a_statement_that_is_not_one_select_is_refused(wide: Wide, client: rpc.Client, statement: str) -> None:
    with pytest.raises(ReadError):
        client.sql(statement).to_table()
    assert not Path("/tmp/pleinair-canary").exists()
    assert client.read("wide").to_table().num_rows == len(wide.rows)


def test_not_even_the_owner_writes_whatever_an_earlier_query_set(wide: Wide) -> None:
    with ReadPools(wide.shards.dsns, size=1) as pools:
        change = "SELECT set_config('default_transaction_read_only', 'off', false)"
        sql(pools, SqlRequest(query=change)).to_table()
        for attempt in (
            "query_to_xml('DELETE FROM wide', true, true, '') IS NULL",
            "nextval('pleinair.claim_tokens') > 0",
        ):
            with pytest.raises(ReadError, match="read-only transaction|non-volatile"):
                sql(pools, SqlRequest(query=f"SELECT key FROM wide WHERE {attempt}")).to_table()
    assert sum(count for (count,) in wide.shards.execute("SELECT count(*) FROM wide")) == len(wide.rows)


def test_the_service_takes_no_login_that_is_more_than_a_reader(wide: Wide) -> None:
    with (
        ReadPools(wide.shards.dsns) as pools,
        pytest.raises(ReadError, match="the role pleinair is a superuser, and this service runs other people's SQL"),
    ):
        ReadService(pools, ServiceConfig(port=0))


def refused_everything(client: rpc.Client) -> None:
    for attempt in (lambda: client.read("wide"), client.tables, client.stats, lambda: client.schema("wide")):
        with pytest.raises(ReadError, match="refuses this client: no token, or one that is not known here"):
            attempt()


def test_only_a_known_token_lets_in_and_none_is_ever_logged(
    wide: Wide, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# readers\n{TOKEN}\n")
    with wide.shards.pools() as pools, serving(pools, token_file=tokens) as service:
        for wrong in (None, "", TOKEN[:-1], TOKEN + "x", "Bearer " + TOKEN, "another-" + TOKEN):
            refused_everything(rpc.connect(service.address, token=wrong))
        assert rpc.connect(service.address, token=TOKEN).read("wide").to_table().num_rows == len(wide.rows)
        tokens.write_text("a-token-that-replaces-it\n")
        with pytest.raises(ReadError, match="no token"):
            rpc.connect(service.address, token=TOKEN).read("wide")
        assert rpc.connect(service.address, token="a-token-that-replaces-it").tables() is not None
        tokens.unlink()
        with pytest.raises(ReadError, match="no token"):
            rpc.connect(service.address, token="a-token-that-replaces-it").read("wide")
    printed = capfd.readouterr()
    assert "canary" not in printed.out + printed.err


def test_tokens_are_checked_before_the_service_starts(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; correct --token-file"):
        rpc_tokens(tokens)
    tokens.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="holds no token: write one a line"):
        rpc_tokens(tokens)
    tokens.write_text("short\n")
    with pytest.raises(ConfigError, match="fewer than 16 characters") as refused:
        rpc_tokens(tokens)
    assert "short\n" not in str(refused.value)


def rpc_tokens(path: Path) -> Any:
    from pleinair.krablet.rpc.tokens import TokenFile

    return TokenFile(path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"host": "0.0.0.0"}, "would listen on 0.0.0.0 without tokens: give --token-file"),
        ({"host": "0.0.0.0", "token_file": Path("t")}, "would listen on 0.0.0.0 without TLS"),
        ({"tls_key": Path("k")}, "one of TLS certificate and key is given"),
    ],
)
def test_a_service_that_would_be_open_to_anyone_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ServiceConfig(**options)
    assert ServiceConfig(host="0.0.0.0", insecure=True).location == "grpc://0.0.0.0:8815"
    with pytest.raises(ConfigError, match="the token would be sent to grpc://rpc.example:1 in the clear"):
        rpc.connect("grpc://rpc.example:1", token=TOKEN)


def test_tls_serves_those_who_know_the_certificate_and_nobody_in_the_clear(wide: Wide, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *names], check=True, capture_output=True)
    with (
        wide.shards.pools() as pools,
        serving(pools, host="localhost", tls_certificate=certificate, tls_key=key) as service,
    ):
        assert service.address.startswith("grpc+tls://localhost:")
        with rpc.connect(service.address, tls_roots=certificate, token=TOKEN) as client:
            assert client.read("wide").to_table().num_rows == len(wide.rows)
        for address in (service.address, service.address.replace("+tls", "")):
            with pytest.raises(UnreachableError, match="cannot be reached"):
                rpc.connect(address).read("wide")


def test_a_reader_that_leaves_ends_its_queries_on_the_servers(shards: Shards) -> None:
    shards.execute(LONG)
    shards.execute(FILL.format(2000, 20_000))
    with shards.pools() as pools, serving(pools) as service:
        with rpc.connect(service.address).read("long") as reading:
            next(reading)
            assert shards.running() > 0
        shards.wait_until_idle()
        start = f"from pleinair.krablet import rpc; reading = rpc.connect({service.address!r}).read('long')"
        program = f"{start}; next(reading); print(1, flush=True); input()"
        reader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"1\n"
        assert shards.running() > 0
        reader.kill()
        reader.communicate()
        shards.wait_until_idle()
        waiting = rpc.connect(service.address).read("long", where="pg_sleep(600) IS NULL")
        threading.Timer(0.5, waiting.close).start()
        with pytest.raises(Exception, match="(?i)cancel"):
            next(waiting)
        shards.wait_until_idle()


def test_a_slow_reader_costs_the_service_bounded_memory(three_servers: tuple[str, ...], three_shards: Shards) -> None:
    three_shards.execute(LONG)
    three_shards.execute(FILL.format(300, 170_000))
    with service_process(three_shards) as (process, address):
        rpc.connect(address).read("long", limit=1000).to_table()
        before = _resident_megabytes(process.pid)
        reading = rpc.connect(address).read("long")
        rows = most = 0
        for number, batch in enumerate(reading):
            rows += batch.num_rows
            most = max(most, _resident_megabytes(process.pid))
            if number < 10:
                time.sleep(0.2)
        assert rows == 3 * 170_000, "160 MB of Arrow data went through"
        assert most - before < 100


def _resident_megabytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def read_until_refused(address: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rpc.connect(address).read("long", limit=1).to_table()


def test_sigterm_lets_running_reads_end_and_takes_no_new_ones(shards: Shards) -> None:
    shards.execute(LONG)
    shards.execute(FILL.format(2000, 20_000))
    with service_process(shards, "--drain-seconds", "60") as (process, address):
        reading = rpc.connect(address).read("long")
        rows = next(reading).num_rows
        process.send_signal(signal.SIGTERM)
        with pytest.raises(UnreachableError):
            read_until_refused(address)
        rows += reading.to_table().num_rows
        assert rows == 20_000 * len(shards.dsns)
        assert process.wait(60) == 0


def test_sigterm_cuts_off_a_reader_that_does_not_read(three_shards: Shards) -> None:
    three_shards.execute(LONG)
    three_shards.execute(FILL.format(2000, 20_000))
    with service_process(three_shards, "--drain-seconds", "0.2") as (process, address):
        reading = rpc.connect(address).read("long")
        next(reading)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        three_shards.wait_until_idle()
        with pytest.raises(DatabaseError):
            reading.to_table()


def test_a_shard_that_dies_is_named_and_used_again_when_it_is_back(three_shards: Shards, tmp_path: Path) -> None:
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    try:
        with krablet.connect(directory=directory) as database:
            with database.connection() as connection:
                connection.execute(LONG)
                connection.execute(FILL.format(2000, 20_000))
                make_reader(connection)
            three_shards.execute(LONG)
            three_shards.execute(FILL.format(2000, 1000))
            mortal = conninfo.make_conninfo(database.dsn, user=READER)
            with ReadPools([three_shards.readers[0], mortal]) as pools, serving(pools) as service:
                client = rpc.connect(service.address)
                reading = client.read("long", order_by="key")
                rows = next(reading).num_rows
                server = running(directory)
                assert server is not None
                os.kill(server.pid, signal.SIGQUIT)  # immediate: all its backends go, like in a crash
                with pytest.raises(UnreachableError, match="shard 1"):
                    rows += reading.to_table().num_rows
                with pytest.raises(UnreachableError, match="shard 1: Postgres cannot be reached"):
                    client.read("long").to_table()
                assert database.servers
                deadline = time.monotonic() + 60
                while running(directory) is not None:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                database.servers[0].ensure_running()
                assert client.read("long", columns=["key"]).to_table().num_rows == 21_000
    finally:
        shutil.rmtree(directory)


def test_the_documented_lines_for_duckdb_polars_and_pandas_work(shards: Shards) -> None:
    shards.execute("CREATE TABLE images (image_name text PRIMARY KEY, length bigint, contains_text boolean)")
    shards.execute("INSERT INTO images SELECT current_database() || i, i, i % 2 = 0 FROM generate_series(1, 10) AS i")
    text = Path(__file__).parents[3].joinpath("docs", "krablet-rpc.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("duckdb.", "polars.", "pandas."))]
    assert {line.split(".")[0] for line in lines} == {"duckdb", "polars", "pandas"}
    with shards.pools() as pools, serving(pools) as service, rpc.connect(service.address) as client:
        for line in lines:
            library = line.split(".")[0]
            names = {library: __import__(library), "client": client, "images": client.read("images")}
            assert len(eval(line.split("  #")[0], names)) > 0, line


def pleinair(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="pleinair")
    register_sql(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    return int(args.run(args))


def test_sql_on_the_command_line_goes_to_several_shards_or_through_the_service(
    wide: Wide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT key, small FROM wide WHERE small > 0"
    count = sum((row["small"] or 0) > 0 for row in wide.rows)
    tokens, written = tmp_path / "token", tmp_path / "out.parquet"
    tokens.write_text(TOKEN)
    dsns = [argument for dsn in wide.shards.dsns for argument in ("--dsn", dsn)]
    assert pleinair("sql", query, "-o", str(written), *dsns) == 0
    assert pq.read_table(written).num_rows == count
    assert capsys.readouterr().out == f"{count} rows: {written}\n"
    with wide.shards.pools() as pools, serving(pools, token_file=tokens) as service:
        through = ("--rpc", service.address, "--token-file", str(tokens))
        assert pleinair("sql", query, "--limit", "3", *through) == 0
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == 5
        assert printed.err == "... and more rows; raise --limit to see more than 3\n"
        written.unlink()
        with pytest.raises(ReadError, match="division by zero"):
            pleinair("sql", "SELECT 1 / (small - small) FROM wide", "-o", str(written), *through)
        assert list(tmp_path.iterdir()) == [tokens], "nothing half-written stays"


def test_the_service_without_a_dsn_serves_the_embedded_server_as_its_reader(embedded_directory: Path) -> None:
    arguments = ["krablet", "rpc", "--listen", "127.0.0.1:0", "--directory", str(embedded_directory)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pleinair.cli.main", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        found = rpc.connect(address).sql("SELECT current_user::text AS role").to_table().to_pylist()
        assert found == [{"role": READER}]
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.communicate()


def test_a_port_in_use_is_refused_in_one_sentence(wide: Wide) -> None:
    with socket.socket() as taken, wide.shards.pools() as pools:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"the service cannot listen on grpc://127.0.0.1:{port}"):
            ReadService(pools, ServiceConfig(port=port))


def test_any_flight_client_finds_tables_by_path_and_reads_by_ticket(wide: Wide) -> None:
    with wide.shards.pools() as pools, serving(pools) as service, flight.connect(service.address) as client:
        info = client.get_flight_info(flight.FlightDescriptor.for_path("wide"))
        assert client.do_get(info.endpoints[0].ticket).read_all().num_rows == len(wide.rows)
        assert [action.type for action in client.list_actions()] == ["tables", "stats"]
        for ticket in (b"", b"[]", b'{"scan": {"table": "wide", "unknown": 1}}', b'{"drop": {}}'):
            with pytest.raises(pa.ArrowInvalid, match="is not understood: use the client of the same version"):
                client.do_get(flight.Ticket(ticket))


def test_prometheus_finds_what_the_service_counts_under_documented_names(three_shards: Shards) -> None:
    three_shards.execute("CREATE TABLE t (key text PRIMARY KEY)")
    with service_process(three_shards, "--metrics", "127.0.0.1:0") as (process, address):
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with rpc.connect(address) as client:
            client.read("t").to_table()
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
    assert 'pleinair_reads_total{outcome="done"} 1\n' in text
    assert 'pleinair_read_connections{shard="2",state="idle"} 1\n' in text
    page = (Path(__file__).parents[3] / "docs/krablet-rpc.md").read_text()
    names = {line.split()[2].removeprefix("pleinair_") for line in text.splitlines() if "# HELP" in line}
    assert len(names) == 7
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
