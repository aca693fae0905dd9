"""Reading a warehouse this process has open: its shards as the catalog knows them now, with the login it has.

A shard that joined, or slots that move, after the read was asked for and before its first batch begin it anew.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

import pyarrow as pa

from pleinair.krablet.connections import UnreachableError
from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.requests import MovingError, ScanRequest
from pleinair.krablet.reading.scan import BatchStream, scan
from pleinair.krablet.shards import TRANSIT_SECONDS, Shards

_LOOK_AGAIN_SECONDS = 0.5  # then the catalog is asked whether a shard has joined


@dataclass(frozen=True)
class _Server:
    """One shard as pools take it; their errors say "shard" themselves."""

    name: str
    dsn: str


def read_shards(shards: Shards, request: ScanRequest) -> BatchStream:
    """The rows of a warehouse that match, each once. Raises ReadError, UnreachableError."""
    try:
        pools, stream = _opened(shards, request)
    except UnreachableError:  # an embedded server that was killed is started again by its session
        shards.each(lambda connection: connection.execute("SELECT 1"))
        pools, stream = _opened(shards, request)
    return BatchStream(stream.schema, _batches(shards, request, pools, stream), Run())


def _opened(shards: Shards, request: ScanRequest) -> tuple[ReadPools, BatchStream]:
    servers = [_Server(str(shard.number), shard.dsn) for shard in shards.all]
    pools = ReadPools(servers, size=1, whole=True, moving_seconds=_LOOK_AGAIN_SECONDS)
    try:
        return pools, scan(pools, request)
    except BaseException:
        pools.close()
        raise


def _batches(
    shards: Shards, request: ScanRequest, pools: ReadPools, stream: BatchStream
) -> Generator[pa.RecordBatch, None, None]:
    deadline = time.monotonic() + TRANSIT_SECONDS
    while True:
        began = False
        try:
            with pools, stream:
                for batch in stream:
                    began = True
                    yield batch
            return
        except MovingError:
            if began or time.monotonic() > deadline:
                raise
        shards.heal()
        pools, stream = _opened(shards, request)
