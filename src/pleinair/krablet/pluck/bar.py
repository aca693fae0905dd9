"""A line that shows how a job goes on: rewritten in a terminal, an updated display in a notebook, plain lines elsewhere."""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pleinair.krablet.pluck import PluckProgress

WIDTH = 24
PLAIN_SECONDS = 10.0


class Bar:
    """Shows progress on `stream`, by default standard error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._display = _notebook_display()
        self._width = 0
        self._next_line = 0.0

    def show(self, progress: PluckProgress, *, last: bool = False) -> None:
        line = line_of(progress)
        if self._display is not None:
            self._display.update({"text/plain": line}, raw=True)
        elif self._stream.isatty():
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            self._width = len(line)
        elif last or time.monotonic() >= self._next_line:
            self._stream.write(line + "\n")
            self._next_line = time.monotonic() + PLAIN_SECONDS
        self._stream.flush()

    def leave(self) -> None:
        """Begin a new line where one was being rewritten."""
        if self._display is None and self._stream.isatty():
            self._stream.write("\n")


def line_of(progress: PluckProgress) -> str:
    """`progress` in one line."""
    share = progress.done + progress.failed
    full = WIDTH * share // progress.total if progress.total else WIDTH * (progress.state == "done")
    parts = [
        f"[{'#' * full}{'.' * (WIDTH - full)}] {progress.done}/{progress.total} rows",
        f"{progress.failed} failed" if progress.failed else "",
        f"{progress.retrying} to be tried again" if progress.retrying else "",
        f"{progress.rows_per_second:.1f} rows/s" if progress.rows_per_second else "",
        f"{_duration(progress.eta_seconds)} left" if progress.eta_seconds else "",
        progress.state if progress.reason is None else f"{progress.state}: {progress.reason}",
        f"refused by {len(progress.refusals)} workers: {progress.refusals[-1][1]}" if progress.refusals else "",
    ]
    return ", ".join(filter(None, parts))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _notebook_display() -> Any:
    """A display that can be updated, inside a notebook; else None. IPython is asked only if it is loaded already."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return importlib.import_module("IPython.display").display({"text/plain": ""}, raw=True, display_id=True)
