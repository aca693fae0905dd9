"""What may go wrong between a caller and the funnel."""

from __future__ import annotations

from pleinair.records.errors import DatabaseError, QueueError


class MutationError(QueueError):
    """This one mutation was refused, by the funnel or by the database; others of its flush were applied."""


class FunnelError(DatabaseError):
    """The funnel cannot serve this client any more; what was not acknowledged may or may not have been applied."""


class ProtocolError(FunnelError):
    """A peer sent something that is not the funnel's protocol."""
