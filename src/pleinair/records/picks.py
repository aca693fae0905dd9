"""What people choose by hand, as events: nothing is ever changed, so nothing can be lost; the set is a fold over them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

PickDecision = Literal["keep", "discard", "clear", "move"]
PICK_DECISIONS: tuple[PickDecision, ...] = ("keep", "discard", "clear", "move")


@dataclass(frozen=True, kw_only=True)
class PickEvent:
    """One decision on one picture for one domain's set."""

    event: str
    """UUID, made by whoever decided, so that an event sent twice is one event."""
    image_name: str
    domain: str
    decision: PickDecision
    """`clear` takes a decision back (undo); `move` says where in the set a picture stands, not whether."""
    position: float | None
    """Of `keep` and `move`: pictures of a set are ordered by it. None otherwise."""
    person: str
    origin: Literal["human", "script"]
    at: datetime
    """Later than every event its author had seen, whatever the clocks of two machines say."""
