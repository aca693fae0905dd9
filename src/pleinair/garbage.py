"""When Python looks for cyclic garbage: seldom, and never at its end.

By default it looks after every 700 new objects, and through all of them once more before a process ends. torch alone makes
half a million that stay: to look through them takes longer than to load them.
"""

from __future__ import annotations

import atexit
import functools
import gc

_NEW_OBJECTS, _YOUNG, _MIDDLE = 20_000, 20, 20


@functools.cache
def look_seldom() -> None:
    """For a whole process, before its imports. What the system takes back anyway is not looked for when it ends."""
    gc.set_threshold(_NEW_OBJECTS, _YOUNG, _MIDDLE)
    atexit.register(gc.freeze)
