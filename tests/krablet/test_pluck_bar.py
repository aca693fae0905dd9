"""The line that shows how a job goes on, in a terminal and in a file."""

from __future__ import annotations

import io

from pleinair.krablet.pluck import PluckProgress, ShardProgress
from pleinair.krablet.pluck.bar import Bar, line_of


def progress(done: int, remaining: int, **changes: object) -> PluckProgress:
    part = ShardProgress("0", "running", None, done, 2, 1, remaining, 3, 2, 10.0)
    given = {"state": "running", "reason": None, "shards": (part,), "rows_per_second": 4.0, "refusals": (), **changes}
    return PluckProgress(**given)  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_says_what_is_done_failed_and_left() -> None:
    assert line_of(progress(10, 12)) == (
        "[############............] 10/24 rows, 2 failed, 1 to be tried again, 4.0 rows/s, 0:03 left, running"
    )


def test_a_line_says_why_a_job_stands_still() -> None:
    line = line_of(
        progress(0, 0, state="paused", reason="too many rows failed", refusals=(("a:1", "it is not signed"),))
    )
    assert line.endswith("paused: too many rows failed, refused by 1 workers: it is not signed")


def test_a_job_without_rows_is_full_when_it_is_done() -> None:
    nothing = PluckProgress("done", None, (), 0.0, ())
    assert line_of(nothing) == f"[{'#' * 24}] 0/0 rows, done"


def test_a_terminal_shows_one_line_that_is_rewritten() -> None:
    terminal = Terminal()
    bar = Bar(terminal)
    bar.show(progress(10, 12, rows_per_second=100.0))
    bar.show(progress(22, 0, rows_per_second=0.0), last=True)
    first, second = terminal.getvalue().split("\r")[1:]
    assert first == line_of(progress(10, 12, rows_per_second=100.0))
    assert second.rstrip("\n ") == line_of(progress(22, 0, rows_per_second=0.0))
    assert len(second.rstrip("\n")) >= len(first)


def test_a_file_gets_a_line_now_and_then_and_the_last() -> None:
    file = io.StringIO()
    bar = Bar(file)
    for done in range(5):
        bar.show(progress(done, 10 - done), last=done == 4)
    assert file.getvalue().splitlines() == [line_of(progress(0, 10)), line_of(progress(4, 6))]
