"""What every shard is and holds, for people and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pleinair.krablet.connections import Connection
from pleinair.krablet.queries import query
from pleinair.krablet.shards import Shard, Shards
from pleinair.records.errors import DatabaseError


@dataclass(frozen=True)
class ShardStatus:
    """One server, as it is now; without facts when it cannot be reached."""

    number: int
    place: str
    slots: int
    version: str = ""
    size_bytes: int = 0
    lag_seconds: float | None = None
    """How far the slowest replica is behind; None without replicas."""
    connections: int = 0
    error: str = ""


def shard_statuses(shards: Shards, place_of: Callable[[Shard], str]) -> list[ShardStatus]:
    """Every shard's version, size, lag, connections and slots; a shard that is away says why."""
    shards.reload()
    return [_status(shards, shard, place_of(shard)) for shard in shards]


def _status(shards: Shards, shard: Shard, place: str) -> ShardStatus:
    slots = len(shards.slots(shard.number))
    try:
        version, size_bytes, lag, connections = shard.session.run(_facts)
    except DatabaseError as away:
        return ShardStatus(shard.number, place, slots, error=str(away))
    return ShardStatus(shard.number, place, slots, version.split()[0], size_bytes, lag, connections)


def _facts(connection: Connection) -> tuple[str, int, float | None, int]:
    found = connection.execute(query("shards", "shard_facts")).fetchone()
    assert found is not None
    return found
