"""Fixtures every part's tests may use: one real Postgres per test session, one thread for every process's products."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pleinair import krablet
from pleinair.garbage import look_seldom

look_seldom()

# Tests start Python hundreds of times: told to keep no bytecode, each would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A job in a shell's background ignores SIGINT, and its children would too: tests of Ctrl-C send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow for seconds at a time: what an example takes says nothing of the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole run first: it takes minutes, and beside it the many short files fill the other processes."""
    items.sort(key=lambda item: item.path.name != "test_run.py")


def pytest_unconfigure() -> None:
    """What DuckDB's bindings hold is looked for at the end after all: they would report it as lost, below the tests' last line."""
    atexit.unregister(gc.freeze)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny products are faster so, and the same from run to run; a trainer in an earlier test has set its own number."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[krablet.Database]:
    """An embedded server in a temporary directory of its own. Not pytest's: root's is closed to the server's user."""
    directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    try:
        with krablet.connect(directory=directory) as database:
            with database.connection() as connection:
                # Tests kill processes, not the machine; waiting for the disk would be most of their time.
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("SELECT pg_reload_conf()")
            yield database
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def database(postgres: krablet.Database) -> Iterator[krablet.Database]:
    """An empty database on that server, for one test."""
    name = f"test_{next(_numbers)}"
    with postgres.connection() as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        with krablet.connect(postgres.dsn.replace("/postgres?", f"/{name}?")) as database:
            yield database
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
