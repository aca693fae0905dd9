"""The same read on many shards at once: a thread per shard, batches through bounded queues.

    shard 0 --thread--> [ | | ] --.
    shard 1 --thread--> [ | | ] ----> whoever reads: in any order, or shard by shard for a merge
    shard 2 --thread--> [ | | ] --'

A full queue stops its thread, which stops reading its socket, which stops Postgres: a slow reader costs memory for
QUEUE_BATCHES + 2 batches per shard, whatever the size of the result. The first error ends all threads.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, TypeAlias

import pyarrow as pa

from pleinair.krablet.reading.copy_binary import Field
from pleinair.krablet.reading.copy_stream import ShardQuery, copy_batches, reading
from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.ownership import PAUSE_SECONDS, Agreement, owned_here
from pleinair.krablet.reading.requests import CancelledError

QUEUE_BATCHES = 2
_POLL_SECONDS = 0.1
JOIN_SECONDS = 10.0


class _End:
    """What a thread puts last."""


_Item: TypeAlias = Any  # a batch, the error that ended the thread, or _End


class FanOut:
    """Running reads, ended by leaving the `with` block. `batches` for any order, `per_shard` for a merge, not both."""

    def __init__(
        self, queries: Sequence[ShardQuery], fields: Sequence[Field], run: Run, agreement: Agreement | None = None
    ) -> None:
        """With an agreement, no shard gives rows before their snapshots fit together."""
        self._agreement = agreement
        self._run = run
        self._fields = fields
        self._queues: list[queue.Queue[_Item]] = [queue.Queue(QUEUE_BATCHES) for _ in queries]
        self._arrived = threading.Semaphore(0)
        self._threads = [
            threading.Thread(
                target=self._read, args=(place, query, out), name=f"read shard {query.pool.name}", daemon=True
            )
            for place, (query, out) in enumerate(zip(queries, self._queues, strict=True))
        ]

    def __enter__(self) -> FanOut:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.stop.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All batches as they come."""
        running = len(self._queues)
        while running:
            self._wait_for_any()
            item = next(out for out in self._queues if not out.empty()).get_nowait()
            if isinstance(item, _End):
                running -= 1
            else:
                yield _batch(item)

    def per_shard(self) -> list[Iterator[pa.RecordBatch]]:
        """The batches of each shard, in its order."""
        return [self._from(out) for out in self._queues]

    def _wait_for_any(self) -> None:
        while not self._arrived.acquire(timeout=_POLL_SECONDS):
            self._run.check_reader()

    def _from(self, out: queue.Queue[_Item]) -> Iterator[pa.RecordBatch]:
        while True:
            try:
                item = out.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._run.check_reader()
                continue
            if isinstance(item, _End):
                return
            yield _batch(item)

    def _read(self, place: int, query: ShardQuery, out: queue.Queue[_Item]) -> None:
        last: _Item = _End()
        try:
            while not self._copied(place, query, out):
                time.sleep(PAUSE_SECONDS)
        except BaseException as error:
            last = error
        # Only now, with the connection given up, may this wait for as long as the reader takes.
        self._put(out, last, patient=True)

    def _copied(self, place: int, query: ShardQuery, out: queue.Queue[_Item]) -> bool:
        """False if this snapshot does not fit to those of the other shards."""
        with reading(query.pool, self._run) as wire:
            if self._agreement is not None and not self._agreement.reached(place, owned_here(wire)):
                return False
            with closing(copy_batches(wire, query, self._fields)) as batches:
                for batch in batches:
                    self._put(out, batch, patient=False)
        return True

    def _put(self, out: queue.Queue[_Item], item: _Item, *, patient: bool) -> None:
        while True:
            try:
                out.put(item, timeout=_POLL_SECONDS)
                self._arrived.release()
                return
            except queue.Full:
                if not patient:
                    self._run.check()
                elif self._run.stop.is_set():
                    return


def _batch(item: _Item) -> pa.RecordBatch:
    if isinstance(item, CancelledError):
        raise CancelledError("the read was closed") from item
    if isinstance(item, BaseException):
        raise item
    return item
