"""One process at a time at work in a directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pleinair.records.errors import BusyError


@contextmanager
def only_one(directory: Path, name: str = "lock", patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold one of a directory's locks, which the system frees however we end. Raises BusyError naming the holder's process."""
    deadline = time.monotonic() + patience_seconds
    with (directory / name).open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as held:
                if time.monotonic() >= deadline:
                    lock.seek(0)
                    holder = lock.read().strip() or "unknown"
                    raise BusyError(
                        f"process {holder} is already working in {directory}: "
                        "wait for it, stop it, or choose another place"
                    ) from held
                time.sleep(0.1)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield
