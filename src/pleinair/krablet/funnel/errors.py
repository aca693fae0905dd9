"""What may go wrong between a caller and the funnel."""

from __future__ import annotations

import re

from pleinair.records.errors import DatabaseError, QueueError

_MOVED = re.compile(r"slot (\d+) is not on this shard")


class MutationError(QueueError):
    """This one mutation was refused, by the funnel or by the database; others of its flush were applied."""


class FunnelError(DatabaseError):
    """The funnel cannot serve this client any more; what was not acknowledged may or may not have been applied."""


class ProtocolError(FunnelError):
    """A peer sent something that is not the funnel's protocol."""


def moved(slot: object) -> str:
    """Why a mutation is refused whose slot is on another shard, or on its way there."""
    return f"slot {slot!s:.10} is not on this shard: give the client the addresses of all shards' funnels"


def moved_slot(reason: str) -> int | None:
    """The slot, if that is the reason."""
    found = _MOVED.match(reason)
    return None if found is None else int(found[1])
