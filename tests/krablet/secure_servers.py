"""A Postgres as one has it in another building: TCP, TLS with a certificate of a CA of one's own, passwords by SCRAM."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg import conninfo

from pleinair import krablet
from pleinair.krablet.postgres.accounts import account_for, give_to, run_as
from pleinair.krablet.postgres.binaries import find_binaries

PASSWORD = "canary-word-4e7d"
HBA = """
local   all all                trust
hostssl all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True)
class SecureServer:
    """Its port, the certificate of its CA and one of another CA, its socket for the administrator, and its log."""

    port: int
    authority: Path
    stranger: Path
    admin: str
    log: Path

    def dsn(self, **parts: str) -> str:
        """How its owner connects from afar; `parts` change that."""
        given = {
            "host": "localhost", "hostaddr": "127.0.0.1", "port": str(self.port), "dbname": "postgres", "user": "ada",
            "password": PASSWORD, "sslmode": "verify-full", "sslrootcert": str(self.authority),
        }  # fmt: skip
        return conninfo.make_conninfo("", **{name: value for name, value in {**given, **parts}.items() if value})


@contextmanager
def secure_server() -> Iterator[SecureServer]:
    """A server of its own, stopped and removed at the end; the role `ada` owns its database."""
    directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    try:
        with krablet.connect(directory=directory) as database:
            database.create_role("owner", "ada", PASSWORD)
        port, authority = _free_port(), _certificates(directory)
        _configure(directory / "data")
        _control(
            directory / "data",
            "start",
            "-o",
            f"-p {port} -h 127.0.0.1 -k {directory}/socket",
            "-l",
            directory / "postgres.log",
        )
        admin = f"postgresql://pleinair@/postgres?host={directory}/socket&port={port}"
        yield SecureServer(port, authority, directory / "server.stranger.pem", admin, directory / "postgres.log")
    finally:
        _control(directory / "data", "stop", "-m", "immediate")
        shutil.rmtree(directory)


def _control(data: Path, *arguments: str) -> None:
    binaries = find_binaries(int((data / "PG_VERSION").read_text()))
    run_as(account_for(data), [binaries.directory / "pg_ctl", "-w", "-D", data, *arguments], data.parent)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _certificates(directory: Path) -> Path:
    """Certificates of two CAs, and in the data directory one of the first for `localhost`."""
    authority, key = directory / "server.ca.pem", directory / "server.ca.key"
    _openssl("req", "-x509", "-subj", "/CN=our CA", "-keyout", key, "-out", authority)
    stranger = directory / "server.stranger.pem"
    _openssl("req", "-x509", "-subj", "/CN=another CA", "-keyout", directory / "server.x.key", "-out", stranger)
    data = directory / "data"
    of_ours = ["-CA", authority, "-CAkey", key, "-addext", "subjectAltName=DNS:localhost"]
    _openssl(
        "req", "-x509", "-subj", "/CN=localhost", *of_ours, "-keyout", data / "server.key", "-out", data / "server.crt"
    )
    authority.chmod(0o644)
    stranger.chmod(0o644)
    directory.chmod(0o711)  # clients read the CA's certificate; the data stays closed
    return authority


def _openssl(*arguments: str | Path) -> None:
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(["openssl", arguments[0], *kind, *arguments[1:]], check=True, capture_output=True)


def _configure(data: Path) -> None:
    account = account_for(data)
    for name in ("server.key", "server.crt"):
        os.chmod(data / name, 0o600)
        give_to(account, data / name)
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write("ssl = on\nlog_statement = all\nfsync = off\n")
    (data / "pg_hba.conf").write_text(HBA)
