"""Funnel services as processes of their own, for the fault drills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pleinair import krablet

TOKEN = "canary-8f1c-never-in-a-log"
COLUMNS = {"name": "text", "hits": "bigint", "latest": "bigint", "tags": "text[]"}
MERGE = {"hits": "sum", "tags": "union"}


def stats_table(database: krablet.Database) -> krablet.Table:
    """Counters by name: `hits` adds up, `latest` is overwritten, `tags` are collected."""
    return database.table("stats", key="name", columns=COLUMNS, merge=MERGE)


def column(database: krablet.Database, name: str) -> dict[str, Any]:
    """One column of that table, by key."""
    with database.connection() as connection:
        return dict(connection.execute(f"SELECT name, {name} FROM stats").fetchall())


class Service:
    """`pleinair krablet funnel` as a process; `output` is all it said, on both streams."""

    def __init__(self, dsn: str, listen: str, *more: str, token: str = TOKEN) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "pleinair.cli.main", "krablet", "funnel", "--dsn", dsn, "--listen", listen]
        self.process = subprocess.Popen(
            [*command, *more],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PLEINAIR_FUNNEL_TOKEN": token},
        )
        assert self.process.stdout is not None
        self._first_line = self.process.stdout.readline()
        assert self._first_line, f"the service did not start: {self.output}"
        self.address = self._first_line.split()[-1]

    @property
    def output(self) -> str:
        self._log.seek(0)
        return self._first_line + self._log.read().decode()

    def kill(self) -> None:
        self.process.kill()
        self._close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self._close()

    def _close(self) -> int:
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            print(self.output)  # pytest shows it with the failure
        if self.process.poll() is None:
            self.kill()
        self._log.close()


def self_made_certificate(directory: Path, names: Sequence[str] = ("IP:127.0.0.1",)) -> tuple[Path, Path]:
    """A certificate for these names and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=funnel", "-addext", f"subjectAltName={','.join(names)}", "-days", "2"]
    subprocess.run([*request, *subject, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key
