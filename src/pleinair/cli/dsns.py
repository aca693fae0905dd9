"""Connection strings on a command line, where every user of the machine reads them: from a file, or without a password."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HOW = "@FILE reads them from a file, one a line; without a password libpq takes $PGPASSWORD or ~/.pgpass"


def several(text: str) -> list[str]:
    """The connection strings an argument names: itself, or the lines of @FILE."""
    if not text.startswith("@"):
        return [one(text)]
    try:
        lines = Path(text[1:]).read_text("utf-8").splitlines()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text[1:]} cannot be read: {error.strerror}") from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise argparse.ArgumentTypeError(f"{text[1:]} holds no connection string")
    return found


def one(text: str) -> str:
    """One connection string, or the only line of @FILE."""
    if text.startswith("@"):
        found = several(text)
        if len(found) != 1:
            raise argparse.ArgumentTypeError(f"{text[1:]} holds {len(found)} connection strings: one is wanted here")
        return found[0]
    if _has_password(text):
        print(f"pleinair: other users can read the password on this command line: {HOW}", file=sys.stderr)
    return text


def _has_password(text: str) -> bool:
    from pleinair.krablet.connections import parse
    from pleinair.records.errors import ConfigError

    try:
        return parse(text).get("password") is not None
    except ConfigError:
        return False  # it is refused where it is used
