"""A client as a running funnel knows it.

number:   1 ........ confirmed ........ applied ........ received
          the client knows its answer | committed, told | in the buffer or in a flush
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Sink(Protocol):
    """Where a client's answers go. Called by the funnel's own threads: be short, never block."""

    def answered(self, through: int, failures: Mapping[int, str]) -> None:
        """Every mutation up to number `through` is settled: applied and durable, or refused and among `failures`."""

    def dismissed(self, reason: str) -> None:
        """The funnel serves this client no more."""


@dataclass(slots=True, eq=False)
class ClientState:
    """One client program. Its numbers are written under the funnel's lock."""

    name: str
    incarnation: str
    sink: Sink | None
    applied: int = 0
    received: int = 0
    confirmed: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    """Refused mutations that the client may not know of yet."""
    dismissed: str | None = None

    def settle(self, applied: int, failures: Mapping[int, str]) -> None:
        """Note what is committed; tell it afterwards, without the lock."""
        self.applied = applied
        self.received = max(self.received, applied)
        self.failures.update(failures)

    def tell(self, failures: Mapping[int, str]) -> None:
        """Answer what is applied. Never under the funnel's lock: a caller's callback may submit again."""
        if (sink := self.sink) is not None:
            sink.answered(self.applied, failures)

    def confirm(self, number: int) -> None:
        """The client knows its answers up to `number`."""
        self.confirmed = max(self.confirmed, min(number, self.applied))

    def dismiss(self, reason: str) -> None:
        """Serve this client no more, and tell it so. Not under the funnel's lock either."""
        self.dismissed = reason
        if (sink := self.sink) is not None:
            sink.dismissed(reason)
