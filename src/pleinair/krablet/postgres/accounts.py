"""Who runs the embedded server. PostgreSQL refuses to run as root, so root lends it an existing ordinary user."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.records.errors import DatabaseError

_UNPRIVILEGED = ("postgres", "nobody")
# PG* and LD_* variables of the caller must not reach the server; the C locale keeps its messages in English.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """A user of this machine; `lent` when root runs programs as this user."""

    name: str
    uid: int
    gid: int
    lent: bool


def account_for(data: Path) -> Account:
    """Ourselves; for root, the owner of existing data or else an unprivileged user."""
    if os.geteuid() != 0:
        return _account(os.geteuid(), lent=False)
    if data.exists() and (owner := data.stat().st_uid) != 0:
        return _account(owner, lent=True)
    for name in _UNPRIVILEGED:
        try:
            return _account(pwd.getpwnam(name).pw_uid, lent=True)
        except KeyError:
            continue
    raise DatabaseError(
        f"PostgreSQL refuses to run as root and none of the users {', '.join(_UNPRIVILEGED)} exists: "
        "run this as an ordinary user, or give a DSN"
    )


def _account(uid: int, lent: bool) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), uid, uid if lent else os.getegid(), lent)
    return Account(entry.pw_name, uid, entry.pw_gid if lent else os.getegid(), lent)


def run_as(account: Account, command: Sequence[str | Path], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as `account` in `directory`, in a session of its own, and return its text output.

    Raises PermissionError when the user cannot reach the program or the directory.
    """
    return subprocess.run(
        [str(part) for part in command],
        cwd=directory,
        env=_ENVIRONMENT,
        user=account.uid if account.lent else None,
        group=account.gid if account.lent else None,
        extra_groups=[] if account.lent else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        start_new_session=True,
        check=False,
    )


def can_run(account: Account, program: Path) -> bool:
    """True when `account` can start `program` and load its libraries."""
    try:
        return run_as(account, [program, "--version"], Path("/")).returncode == 0
    except PermissionError:
        return False


def give_to(account: Account, path: Path) -> None:
    """Make `account` the owner of a path we created."""
    if account.lent:
        os.chown(path, account.uid, account.gid)
