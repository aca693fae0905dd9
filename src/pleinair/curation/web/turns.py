"""Turns at a host: few requests at a time and a pause between them, over all processes of one machine.

A host has `per_host` files; who holds the lock of one may send a request, and the file says when the next one may be
sent. A process that dies drops its locks, so nothing needs clearing up.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pleinair.records.errors import SourceError

_LOOK_AGAIN_SECONDS = 0.05


@contextmanager
def turn(folder: Path, host: str, *, per_host: int, delay_seconds: float, max_wait_seconds: float) -> Iterator[None]:
    """Wait until this host may be asked, and hold others back meanwhile.

    Raises SourceError when the host wants to be left alone for longer than `max_wait_seconds`.
    """
    if delay_seconds > max_wait_seconds:
        raise _later(host, delay_seconds)
    slot = _free_slot(folder, host, per_host)
    try:
        wait = max(_read(slot), _read_path(_pause_path(folder, host))) - time.time()
        if wait > max_wait_seconds:
            raise _later(host, wait)
        time.sleep(max(0.0, wait))
        try:
            yield
        finally:
            _write(slot, time.time() + delay_seconds)
    finally:
        os.close(slot)


def hold_back(folder: Path, host: str, seconds: float) -> None:
    """Nobody on this machine asks `host` again for so long."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(_pause_path(folder, host), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _write(handle, max(_read(handle), time.time() + seconds))
    finally:
        os.close(handle)


def _later(host: str, seconds: float) -> SourceError:
    return SourceError(f"{host} asks to be left alone for {seconds:.0f} s: its pictures are tried again later")


def _free_slot(folder: Path, host: str, count: int) -> int:
    """File handle of a slot of the host, locked by us."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in range(count):
            handle = os.open(folder / f"{_file_name(host)}.{number}", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except BlockingIOError:
                os.close(handle)
        time.sleep(_LOOK_AGAIN_SECONDS)


def _file_name(host: str) -> str:
    return hashlib.sha256(host.encode()).hexdigest()[:32]


def _pause_path(folder: Path, host: str) -> Path:
    return folder / f"{_file_name(host)}.pause"


def _read_path(path: Path) -> float:
    try:
        return float(path.read_text() or 0)
    except (OSError, ValueError):
        return 0.0


def _read(handle: int) -> float:
    try:
        return float(os.pread(handle, 32, 0) or 0)
    except ValueError:
        return 0.0


def _write(handle: int, moment: float) -> None:
    os.pwrite(handle, f"{moment:<32.3f}".encode(), 0)
