"""When a failed request is worth another try, and after how long."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers that another moment may change; all others are about the request itself."""
FIRST_WAIT_SECONDS = 0.5


def wait_seconds(attempt: int, longest_seconds: float) -> float:
    """Wait before try `attempt` + 1: doubling from half a second, up to `longest_seconds`, at random within its upper half."""
    # All workers lose a dying server at one moment; without the random part they would come back at one moment too.
    return float(min(longest_seconds, FIRST_WAIT_SECONDS * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """A Retry-After header in seconds, whether it gives seconds or a date; None when it says nothing one can read."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - (now or datetime.now(UTC))).total_seconds())
