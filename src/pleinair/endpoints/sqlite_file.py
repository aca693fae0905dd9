"""One SQLite file that several worker processes of a machine share."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from pleinair.records.errors import EndpointError

_PATIENCE_SECONDS = 30.0


def open_sqlite(path: Path, tables: str) -> sqlite3.Connection:
    """Open or create it, in autocommit mode. Raises EndpointError when it is damaged or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The client's event loop runs in a thread of its own, which alone uses the connection.
        connection = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(tables)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise EndpointError(
            f"{path} cannot be used ({error}): remove it or fix its permissions; a new one is made"
        ) from error
    return connection
