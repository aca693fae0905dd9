"""What a funnel has done and how fast, as counters it keeps and a snapshot it gives."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pleinair.krablet.funnel.batch import Run
    from pleinair.krablet.funnel.ledger import Flush

LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SAMPLES = 4096
_WINDOW_FLUSHES = 512


@dataclass(frozen=True)
class FunnelStats:
    """A snapshot. Counts are since the funnel began; rates and latencies are of the latest flushes."""

    received: int
    applied: int
    failed: int
    duplicates: int
    rows_written: int
    coalescing: float
    """Mutations applied per row written."""
    flushes: int
    flush_mutations: float
    """Mutations per flush, of the latest."""
    commits_per_second: float
    applied_per_second: float
    latency_p50_ms: float
    """From arrival to commit, of the latest runs of mutations."""
    latency_p99_ms: float
    latency_buckets: dict[str, int]
    """Runs by the seconds from arrival to commit, up to and with each bound, as Prometheus counts them."""
    latency_seconds: float
    """The sum of these latencies."""
    held_back_seconds: float
    """How long the buffer was so full that somebody had to wait."""
    buffered: int
    """Mutations in the buffer or in a flush now."""
    buffered_bytes: int
    peak_buffered: int
    peak_buffered_bytes: int
    clients: int
    fenced: int
    """Flushes that found a client moved by somebody else, or by a commit whose answer was lost."""
    outages: int
    last_outage: str
    seconds: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass
class Counters:
    """What the funnel counts as it goes; written by its flusher and, under its lock, by its callers."""

    received: int = 0
    applied: int = 0
    failed: int = 0
    duplicates: int = 0
    rows_written: int = 0
    flushes: int = 0
    fenced: int = 0
    outages: int = 0
    last_outage: str = ""
    held_back_seconds: float = 0.0
    latency_seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    """Runs by the first of the bounds that is not below their latency; the last beyond all."""
    began: float = field(default_factory=time.monotonic)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW_FLUSHES))
    """When the latest flushes were committed, and how many mutations each settled."""

    def count_flush(self, runs: Sequence[Run], flush: Flush) -> None:
        now = time.monotonic()
        settled = sum(map(len, runs))
        self.flushes += 1
        self.failed += len(flush.failures)
        self.applied += settled - len(flush.failures)
        self.rows_written += sum(statement.num_rows for statement in flush.statements)
        self.recent.append((now, settled))
        latencies = [now - run.arrived for run in runs]
        self.latencies.extend(latencies)
        self.latency_seconds += sum(latencies)
        for latency in latencies:
            self.buckets[bisect_left(LATENCY_BOUNDS, latency)] += 1

    def note_outage(self, reason: str) -> None:
        self.outages += 1
        self.last_outage = reason

    def snapshot(self, *, buffered: tuple[int, int], peak: tuple[int, int], clients: int) -> FunnelStats:
        ordered = sorted(self.latencies)
        settled = sum(count for _, count in self.recent)
        span = time.monotonic() - self.recent[0][0] if self.recent else 0.0
        return FunnelStats(
            received=self.received,
            applied=self.applied,
            failed=self.failed,
            duplicates=self.duplicates,
            rows_written=self.rows_written,
            coalescing=self.applied / max(1, self.rows_written),
            flushes=self.flushes,
            flush_mutations=settled / max(1, len(self.recent)),
            commits_per_second=len(self.recent) / max(span, 1e-3),
            applied_per_second=settled / max(span, 1e-3),
            latency_p50_ms=_quantile(ordered, 0.50) * 1e3,
            latency_p99_ms=_quantile(ordered, 0.99) * 1e3,
            latency_buckets=dict(zip([*map(str, LATENCY_BOUNDS), "+Inf"], accumulate(self.buckets), strict=True)),
            latency_seconds=self.latency_seconds,
            held_back_seconds=self.held_back_seconds,
            buffered=buffered[0],
            buffered_bytes=buffered[1],
            peak_buffered=peak[0],
            peak_buffered_bytes=peak[1],
            clients=clients,
            fenced=self.fenced,
            outages=self.outages,
            last_outage=self.last_outage,
            seconds=time.monotonic() - self.began,
        )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0
