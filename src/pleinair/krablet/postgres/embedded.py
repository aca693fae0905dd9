"""A PostgreSQL server of our own: started when first needed, shared by processes, stopped by the last to leave.

    <directory>/data          the cluster; appears by rename, so a killed initdb leaves nothing half-made
               /socket        a 0700 directory: only its owner and root can connect, so no password is needed
               /server.json   process id, DSN, whether it was told to stay (`pleinair krablet up`)
               /server.lock   held while starting or stopping: of two processes at once, one starts, one attaches
               /server.users  locked, shared, by every process that has the server open

Who stops it: `leave` stops the server when nobody else holds `server.users` and it was not told to stay. The lock dies
with its process, so a server whose starter was killed is adopted by the next process and stopped by it in turn.
Programs that were only given the DSN (workers, psql) do not count: they are to end before the process that gave it.

The trade-off: no TCP port, hence no clash and no password, but no access from another machine; give a DSN for that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from pleinair.krablet.connections import UnreachableError, open_connection
from pleinair.krablet.postgres.accounts import Account, account_for, can_run, give_to, run_as
from pleinair.krablet.postgres.binaries import Binaries, find_binaries
from pleinair.records.errors import BusyError, DatabaseError

START_SECONDS = 60.0
RECOVERY_SECONDS = 1800.0
STOP_SECONDS = 60.0
LOCK_SECONDS = 600.0
_LONGEST_SOCKET_DIRECTORY = 85  # a socket address holds 107 bytes (103 on macOS), "/.s.PGSQL.5432" included
_NO_PROCESS = 2**22 + 1  # above the highest process id of Linux and macOS
_OURS = ("data", "socket", "binaries", "server.", "postgres.log")  # beginnings of names
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A queue updates every row a few times: vacuum early, or claims wade through dead index entries.
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_scale_factor": "0.02",
}


@dataclass(frozen=True)
class Running:
    """A server that runs in a directory now."""

    pid: int
    dsn: str
    stays: bool


class EmbeddedServer:
    """A running server that this process has open."""

    def __init__(self, directory: Path, dsn: str, users: TextIO) -> None:
        self.directory = directory
        self.dsn = dsn
        self._users = users

    def ensure_running(self) -> None:
        """Start the server again if it died; waits for its crash recovery."""
        if not self._users.closed and running(self.directory) is None:
            with _start_lock(self.directory):
                _ensure_started(self.directory, stays=False)

    def leave(self) -> None:
        """Close the server here; the last process to leave stops it, unless it was told to stay."""
        if self._users.closed:
            return
        with closing(self._users), _start_lock(self.directory):
            found = running(self.directory)
            if found is not None and not found.stays and _alone(self._users):
                _stop(self.directory, found.pid)


def default_directory() -> Path:
    """Where the embedded server keeps its data: /var/lib/pleinair/postgres for root, else the user's data directory.

    Follows XDG_DATA_HOME here, not in the command line, so that a script and the command line meet in one server.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/pleinair/postgres")
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "pleinair" / "postgres"


def open_server(directory: Path | None = None, *, stays: bool = False) -> EmbeddedServer:
    """Attach to the server of a directory, starting it first if need be; `stays` keeps it running when all have left.

    Raises DatabaseError when the directory or a program cannot be used, BusyError when another process is starting it
    and does not finish, MissingExtraError when there is no PostgreSQL.
    """
    directory = (default_directory() if directory is None else Path(directory)).resolve()
    account = account_for(directory / "data")
    _prepare_directory(directory, account)
    with _start_lock(directory):
        dsn = _ensure_started(directory, stays=stays)
        users = (directory / "server.users").open("a")
        fcntl.flock(users, fcntl.LOCK_SH)
    return EmbeddedServer(directory, dsn, users)


def keep_running(server: EmbeddedServer) -> None:
    """Have a server stay when all have left."""
    with _start_lock(server.directory):
        _ensure_started(server.directory, stays=True)


def stop_server(directory: Path | None = None) -> bool:
    """Stop the server of a directory whoever uses it; False when none was running."""
    directory = (default_directory() if directory is None else Path(directory)).resolve()
    if running(directory) is None:
        return False
    with _start_lock(directory):
        found = running(directory)
        if found is not None:
            _stop(directory, found.pid)
    return found is not None


def running(directory: Path) -> Running | None:
    """The server of a directory, if it lives; a stale process id of a killed server is seen through."""
    directory = directory.resolve()
    pid = _postmaster(directory / "data")
    if pid is None:
        return None
    return Running(pid, _dsn(_socket_directory(directory)), _told_to_stay(directory))


def _told_to_stay(directory: Path) -> bool:
    try:
        return bool(json.loads((directory / "server.json").read_text("ascii"))["stays"])
    except FileNotFoundError:
        return False


def _postmaster(data: Path) -> int | None:
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    except PermissionError as error:
        raise DatabaseError(f"{data.parent} belongs to another user: give a directory of your own") from error
    return pid if _is_postmaster(pid, data) else None


def _is_postmaster(pid: int, data: Path) -> bool:
    """True when the process is a live server on this data: process ids are reused, after a reboot even soon."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        told = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False).stdout
        return b"postgres" in told and os.fsencode(data) in told
    program, *arguments = command.split(b"\0")  # a zombie has an empty one
    return program.endswith(b"postgres") and os.fsencode(data) in arguments


def _ensure_started(directory: Path, *, stays: bool) -> str:
    """The DSN of the running server; called with the start lock held."""
    found = running(directory)
    if found is None:
        _start(directory)
        found = running(directory)
        assert found is not None, "a server that answered has a process id"
        # The file of a server that was killed, not stopped, still says whether it was to stay.
        _write_server_json(directory, found, stays=stays or found.stays)
    elif stays and not found.stays:
        _write_server_json(directory, found, stays=True)
    return found.dsn


def _write_server_json(directory: Path, server: Running, *, stays: bool) -> None:
    new = directory / "server.json.new"
    new.write_text(json.dumps({"pid": server.pid, "dsn": server.dsn, "stays": stays}) + "\n", "ascii")
    new.replace(directory / "server.json")


@contextmanager
def _start_lock(directory: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_SECONDS
    with (directory / "server.lock").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"another process has been starting or stopping the server in {directory} for "
                        f"{LOCK_SECONDS:.0f} seconds: end it and run this again"
                    ) from None
                time.sleep(0.05)
        yield


def _alone(users: TextIO) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prepare_directory(directory: Path, account: Account) -> None:
    """Make the directory, or take an empty one; refuse one that holds other things or that the server cannot reach."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _check_access(account, "-x", directory.parent)
        directory.mkdir(exist_ok=True)
        strangers = [entry.name for entry in directory.iterdir() if not entry.name.startswith(_OURS)]
    except OSError as error:
        raise DatabaseError(
            f"the directory {directory} cannot be used for Postgres: {error.strerror}; give another"
        ) from error
    if not (directory / "data").exists():
        if strangers:
            raise DatabaseError(
                f"the directory {directory} holds other files ({min(strangers)}): give an empty or a new directory"
            )
        give_to(account, directory)
        directory.chmod(0o700)
    _check_access(account, "-w", directory)


def _check_access(account: Account, access: str, path: Path) -> None:
    if run_as(account, ["/bin/sh", "-c", f'test {access} "$0"', path], Path("/")).returncode != 0:
        lent = " (PostgreSQL refuses to run as root, so it runs as that user)" if account.lent else ""
        raise DatabaseError(
            f"the user {account.name} cannot {'enter' if access == '-x' else 'write to'} {path}{lent}: "
            f"give a directory whose parents that user can enter, such as {default_directory()}"
        )


def _start(directory: Path) -> None:
    account = account_for(directory / "data")
    binaries = _usable_binaries(directory, account)
    if not (directory / "data").exists():
        _create_data(directory, binaries, account)
    socket = _socket_directory(directory)
    _make_private(socket, account)
    for lock_file in (directory / "data" / "postmaster.pid", socket / ".s.PGSQL.5432.lock"):
        _disown(lock_file, directory / "data")
    deadline = time.monotonic() + 20.0
    while True:
        failure = _launch_and_wait(directory, socket, binaries, account)
        if failure is None:
            return
        # Children of a killed server take a moment to notice; until then its shared memory is in use.
        if "shared memory block" not in failure or time.monotonic() > deadline:
            raise DatabaseError(f"PostgreSQL in {directory} does not start: {failure}; see {directory}/postgres.log")
        time.sleep(0.2)


def _disown(lock_file: Path, data: Path) -> None:
    """Take a process that is not our server out of a lock file, or Postgres would refuse to start beside it.

    The id may have been given to another program, or be a zombie nobody reaps. The file itself must stay: it names the
    shared memory by which Postgres sees that children of a killed server still run.
    """
    try:
        pid, rest = lock_file.read_text().split("\n", 1)
    except (FileNotFoundError, ValueError):
        return
    if not _is_postmaster(int(pid), data):
        lock_file.write_text(f"{_NO_PROCESS}\n{rest}")


def _usable_binaries(directory: Path, account: Account) -> Binaries:
    version_file = directory / "data" / "PG_VERSION"
    binaries = find_binaries(int(version_file.read_text()) if version_file.exists() else None)
    if can_run(account, binaries.directory / "postgres"):
        return binaries
    if not binaries.from_wheel:
        raise DatabaseError(
            f"the user {account.name} cannot run {binaries.directory}/postgres: make it executable for all"
        )
    return _copy_binaries(directory, binaries, account)


def _copy_binaries(directory: Path, binaries: Binaries, account: Account) -> Binaries:
    """A copy of the wheel's programs where the server's user can run them; made once per version."""
    prefix = binaries.directory.parent
    package, copy = prefix.parent, directory / "binaries" / str(binaries.version)
    if not copy.exists():
        new = Path(tempfile.mkdtemp(prefix="binaries.new-", dir=directory))
        shutil.copytree(prefix, new / package.name / prefix.name, symlinks=True)
        # Wheels keep shared libraries beside the package, where the programs look for them by relative path.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, new / libraries.name)
        new.chmod(0o755)
        copy.parent.mkdir(exist_ok=True)
        give_to(account, copy.parent)
        new.rename(copy)
    return Binaries(copy / package.name / prefix.name / "bin", binaries.version)


def _create_data(directory: Path, binaries: Binaries, account: Account) -> None:
    for abandoned in directory.glob("data.new*"):
        shutil.rmtree(abandoned)
    new = directory / "data.new"
    command: list[str | Path] = [
        binaries.directory / "initdb",
        "-D",
        new,
        "-U",
        "pleinair",
        "--auth=trust",
        "--encoding=UTF8",
    ]
    made = run_as(account, [*command, "--locale=C", "--data-checksums", "--no-instructions"], directory)
    if made.returncode != 0:
        shutil.rmtree(new, ignore_errors=True)
        raise DatabaseError(
            f"initdb failed in {directory}: {_last_line(made.stderr)}; free space or give another directory"
        )
    new.rename(directory / "data")


def _launch_and_wait(directory: Path, socket: Path, binaries: Binaries, account: Account) -> str | None:
    """Start the server and wait until it answers; what its log says if it ends instead."""
    log = directory / "postgres.log"
    log_start = log.stat().st_size if log.exists() else 0
    settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    server: list[str | Path] = [binaries.directory / "postgres", "-D", directory / "data", "-k", socket, *settings]
    # The shell leaves the server to init: it outlives us, and whoever stops it leaves no zombie behind here.
    launched = run_as(account, ["/bin/sh", "-c", '"$@" >>"$0" 2>&1 </dev/null & echo $!', log, *server], directory)
    if not launched.stdout.strip().isdigit():
        return _last_line(launched.stderr)
    if _wait_until_it_answers(int(launched.stdout), directory / "data", _dsn(socket)):
        return None
    with log.open(errors="replace") as lines:
        lines.seek(log_start)
        return _reason(lines.read())


def _wait_until_it_answers(pid: int, data: Path, dsn: str) -> bool:
    began, pause = time.monotonic(), 0.02
    while True:
        try:
            open_connection(dsn).close()
            return True
        except UnreachableError as error:
            if not _is_postmaster(pid, data):
                return False
            recovering = "starting up" in str(error) or "not yet accepting" in str(error)
            if time.monotonic() - began > (RECOVERY_SECONDS if recovering else START_SECONDS):
                raise DatabaseError(f"PostgreSQL in {data.parent} does not answer: {error}") from error
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)


def _reason(log: str) -> str:
    fatal = [line for line in log.splitlines() if "FATAL" in line or "PANIC" in line]
    return _last_line("\n".join(fatal) or log)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _stop(directory: Path, pid: int) -> None:
    """Stop the server in an orderly way, dropping connections; without a clean-up if it takes too long."""
    began = time.monotonic()
    for wanted in (signal.SIGINT, signal.SIGQUIT):
        with suppress(ProcessLookupError):
            os.kill(pid, wanted)
        while time.monotonic() - began < STOP_SECONDS:
            if _postmaster(directory / "data") is None:
                (directory / "server.json").unlink(missing_ok=True)
                return
            time.sleep(0.02)
        began = time.monotonic()
    raise DatabaseError(f"PostgreSQL in {directory} (process {pid}) does not stop: end it by hand")


def _socket_directory(directory: Path) -> Path:
    inside = directory / "socket"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET_DIRECTORY:
        return inside
    # Not the caller's temporary directory: every process must come to the same place.
    return Path("/tmp") / f"pleinair-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"


def _make_private(socket: Path, account: Account) -> None:
    """A directory only the server's user can enter; in /tmp somebody else may have made it first."""
    with suppress(FileExistsError):
        socket.mkdir(mode=0o700)
        give_to(account, socket)
    found = socket.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or stat.S_IMODE(found.st_mode) != 0o700:
        raise DatabaseError(
            f"the socket directory {socket} is not private to the user {account.name}: remove it and run this again"
        )


def _dsn(socket: Path) -> str:
    return f"postgresql://pleinair@/postgres?host={quote(str(socket), safe='')}"
