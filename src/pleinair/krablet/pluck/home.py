"""A private directory for a function's process; that of a worker that was killed is removed by the next worker."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "pleinair-pluck-"
_SETTLED_SECONDS = 60.0  # a younger directory may be about to be locked by its maker


class Home:
    """A new empty directory, locked for as long as this process lives or until `remove`."""

    def __init__(self, owner: tuple[int, int] | None) -> None:
        remove_abandoned()
        self.path = tempfile.mkdtemp(prefix=PREFIX)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if owner is not None:
            os.chown(self.path, *owner)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned() -> None:
    """Remove the directories whose lock nobody holds: their workers are dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone, or not ours to look at
            continue
        try:
            if time.time() - os.fstat(descriptor).st_mtime > _SETTLED_SECONDS:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
