"""What a worker does when it is asked to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_sigterm(react: Callable[[], None]) -> Iterator[None]:
    """Call `react` on SIGTERM instead of ending; it may raise. In a thread other than the main one nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: react())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
