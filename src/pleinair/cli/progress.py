"""One line of live progress: rewritten in place on a terminal, printed every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

PLAIN_INTERVAL_SECONDS = 10.0
TERMINAL_INTERVAL_SECONDS = 0.2


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2 h 31 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressLine:
    """Shows `label 120/3200 4% <note> ETA 6 min`; `update` may be called as often as one likes."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.terminal = sys.stderr.isatty()
        self.first: tuple[float, int] | None = None
        self.shown_at = 0.0
        self.width = 0

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show this state, unless the last one was shown a moment ago."""
        now = time.monotonic()
        if self.first is None:
            self.first = (now, done)
        interval = TERMINAL_INTERVAL_SECONDS if self.terminal else PLAIN_INTERVAL_SECONDS
        if done < total and now - self.shown_at < interval:
            return
        self.shown_at = now
        share = f"{100 * done // max(1, total)}%"
        self._show(f"  {self.label} {done}/{total} {share:>4} {note} {self._eta(now, done, total)}".rstrip())

    def close(self) -> None:
        """End the line."""
        if self.terminal and self.width:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _eta(self, now: float, done: int, total: int) -> str:
        assert self.first is not None
        began, first_done = self.first
        if done <= first_done or done >= total:
            return ""
        return f"ETA {duration((now - began) / (done - first_done) * (total - done))}"

    def _show(self, text: str) -> None:
        if self.terminal:
            sys.stderr.write("\r" + text.ljust(self.width))
            self.width = len(text)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
