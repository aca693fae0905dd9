"""Who may read: bearer tokens from a file, one a line, and the middleware that asks for them.

Only hashes are kept in memory and nothing of a token is ever logged. The file is read again when it changes, so tokens
are added and withdrawn without a restart; if it then cannot be read, nobody is let in.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

from pyarrow import flight

from pleinair.records.errors import ConfigError

SHORTEST = 16


class TokenFile:
    """The tokens of a file; lines that begin with # are comments."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._hashes: list[bytes] = []
        self._refresh()

    def admits(self, token: str) -> bool:
        try:
            self._refresh()
        except ConfigError:
            return False
        given = _hashed(token)
        matches = [hmac.compare_digest(given, known) for known in self._hashes]  # all of them: no early end to time
        return True in matches

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
            if (found.st_mtime_ns, found.st_size) != self._seen:
                self._hashes = _read(self._path)
                self._seen = (found.st_mtime_ns, found.st_size)
        except OSError as error:
            self._seen = None
            raise ConfigError(
                f"the token file {self._path} cannot be read: {error.strerror}; correct --token-file"
            ) from error


def _read(path: Path) -> list[bytes]:
    tokens = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"the token file {path} holds no token: write one a line, `openssl rand -hex 32` makes one")
    if any(len(token) < SHORTEST for token in tokens):
        raise ConfigError(f"a token in {path} has fewer than {SHORTEST} characters: `openssl rand -hex 32` makes one")
    return [_hashed(token) for token in tokens]


def read_token(path: Path) -> str:
    """The first token of a file, for a client. Raises ConfigError."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be read: {error.strerror}; correct --token-file") from error
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"the token file {path} holds no token: write the one you were given into it")
    return tokens[0]


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


class RequireToken(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses every call, actions included, whose Authorization header does not bear a known token."""

    def __init__(self, tokens: TokenFile) -> None:
        super().__init__()
        self._tokens = tokens

    def start_call(self, info: Any, headers: dict[str, list[str | bytes]]) -> None:
        given = next((values for name, values in headers.items() if name.lower() == "authorization"), [])
        for value in given:
            scheme, _, token = (value if isinstance(value, str) else value.decode(errors="replace")).partition(" ")
            if scheme.lower() == "bearer" and self._tokens.admits(token.strip()):
                return
        raise flight.FlightUnauthenticatedError(
            "no token, or one that is not known here: give token=... or --token-file with the token of this service"
        )
