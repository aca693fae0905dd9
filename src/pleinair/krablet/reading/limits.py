"""What one read may cost, and the clock it runs against."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pleinair.krablet.reading.requests import CancelledError, LimitError
from pleinair.records.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one read; None is no bound. A read that comes to one ends with LimitError, never with fewer rows."""

    rows: int | None = None
    bytes: int | None = None
    """Of the Arrow data, before compression."""
    seconds: float | None = None
    """From the request to the last row, time in which the reader does not read included."""

    def __post_init__(self) -> None:
        for name in ("rows", "bytes", "seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"the limit of {name} is {value}: give a positive number, or None for no limit")


def _never() -> bool:
    return False


@dataclass
class Run:
    """One read while it runs: every wait of its threads asks `check` whether to go on."""

    limits: Limits = Limits()
    gone: Callable[[], bool] = _never
    """True when whoever asked no longer listens; asked only by the thread that hands out the batches."""
    started: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    rows: int = 0
    bytes: int = 0

    @property
    def seconds_left(self) -> float | None:
        return None if self.limits.seconds is None else self.started + self.limits.seconds - time.monotonic()

    def again(self) -> Run:
        """The same read tried once more: its clock goes on."""
        return Run(self.limits, self.gone, self.started)

    def check(self) -> None:
        if self.stop.is_set():
            raise CancelledError("the read was closed")
        left = self.seconds_left
        if left is not None and left <= 0:
            raise self.out_of_time()

    def check_reader(self) -> None:
        self.check()
        if self.gone():
            raise CancelledError("the reader has gone")

    def out_of_time(self) -> LimitError:
        return LimitError(
            f"the read came to its time limit of {self.limits.seconds:g} s: "
            "narrow `where`, name fewer columns, read faster, or raise the limit"
        )

    def counted(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches until one would pass the limit of rows or bytes; that one is not handed out."""
        for batch in batches:
            self.rows += batch.num_rows
            self.bytes += batch.nbytes
            if self.limits.rows is not None and self.rows > self.limits.rows:
                raise LimitError(
                    f"the read came to its limit of {self.limits.rows:,} rows: narrow `where`, give `limit`, "
                    "aggregate, or raise the limit"
                )
            if self.limits.bytes is not None and self.bytes > self.limits.bytes:
                raise LimitError(
                    f"the read came to its limit of {self.limits.bytes:,} bytes: name fewer columns, narrow `where`, "
                    "or raise the limit"
                )
            yield batch
