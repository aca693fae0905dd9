"""Answers kept on disk by the digest of their question, so that a repeated run asks nothing twice."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from pleinair.endpoints.messages import Reply
from pleinair.endpoints.sqlite_file import open_sqlite

_TABLE = "CREATE TABLE IF NOT EXISTS replies (digest TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"


class ReplyCache:
    """One file; processes of one machine may share it. It holds answers, never questions, pictures or keys."""

    def __init__(self, path: Path) -> None:
        self._connection = open_sqlite(path, _TABLE)

    def get(self, digest: str) -> Reply | None:
        """The answer kept, marked as cached and free."""
        found = self._connection.execute("SELECT reply FROM replies WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            return None
        return replace(Reply(**json.loads(found[0])), cached=True)

    def put(self, digest: str, reply: Reply) -> None:
        """Keep an answer."""
        # Escaped JSON holds even lone surrogates, which SQLite's UTF-8 would refuse.
        text = json.dumps(asdict(reply))
        self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (digest, text))

    def close(self) -> None:
        self._connection.close()
