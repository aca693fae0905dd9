"""`pleinair krablet key` and `pleinair krablet pluck-worker`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pleinair.cli.main import main
from tests.krablet.pluck_jobs_of_tests import Numbers, double, wait_until


def test_key_writes_one_file_or_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, pair = tmp_path / "one", tmp_path / "pair"
    assert main(["krablet", "key", str(one)]) == 0
    assert main(["krablet", "key", str(pair), "--pair"]) == 0
    assert capsys.readouterr().out == f"{one}\n{pair}\n{pair}.pub\n"
    assert main(["krablet", "key", str(one)]) == 1
    assert "exists: choose another file" in capsys.readouterr().err


def test_a_worker_does_signed_jobs_until_it_is_told_to_stop(numbers: Numbers, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.write_text(numbers.database.dsn)
    command = [sys.executable, "-m", "pleinair.cli.main", "krablet", "pluck-worker", "--dsn", f"@{shards}"]
    command += ["--key-file", str(numbers.key_file)]
    command += ["--child-user", "root"] if os.geteuid() == 0 else []
    numbers.add(40)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as worker:
        first = numbers.job(double).wait(60, bar=False)
        numbers.sql("UPDATE numbers SET doubled = NULL WHERE value < 10")
        second = numbers.job(double)
        progress = second.wait(60, bar=False)
        ledger = numbers.key_file.with_name("key.jobs")
        wait_until(lambda: ledger.exists() and second.id in ledger.read_text())
        worker.send_signal(signal.SIGTERM)
        errors = worker.communicate(timeout=60)[1]
    assert (first.done, progress.done, worker.returncode) == (40, 10, 0)
    assert numbers.done() == numbers.doubles(40)
    assert "giving batches back" in errors


def test_a_worker_says_when_its_user_cannot_run_functions(numbers: Numbers, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dsn", numbers.database.dsn, "--key-file", str(numbers.key_file), "--python", "/no/python"]
    assert main(["krablet", "pluck-worker", *options]) == 1
    assert "cannot run functions with /no/python" in capsys.readouterr().err
