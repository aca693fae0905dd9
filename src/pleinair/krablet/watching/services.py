"""What the funnel and the read service count, in the text format of Prometheus; each serves its own /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pleinair.krablet.watching.prometheus import family

_FUNNEL_COUNTERS = {
    "received": ("mutations_received", "Mutations accepted."),
    "applied": ("mutations_applied", "Mutations applied and durable."),
    "failed": ("mutations_failed", "Mutations refused."),
    "duplicates": ("duplicates_dropped", "Mutations that were sent again and had arrived before."),
    "rows_written": ("rows_written", "Rows written; applied over written is how many mutations met in a row."),
    "flushes": ("flushes", "Commits."),
    "fenced": ("flushes_fenced", "Flushes that found a client moved by somebody else."),
    "outages": ("outages", "Times that Postgres did not answer."),
    "held_back_seconds": ("held_back_seconds", "How long the buffer was so full that clients had to wait."),
}
_FUNNEL_GAUGES = {
    "applied_per_second": ("mutations_per_second", "Mutations settled a second, over the latest flushes."),
    "commits_per_second": ("flushes_per_second", "Commits a second, over the latest flushes."),
    "coalescing": ("coalescing", "Mutations applied per row written, since the funnel began."),
    "buffered": ("buffered_mutations", "Mutations in the buffer or in a flush."),
    "buffered_bytes": ("buffered_bytes", "Their size."),
    "peak_buffered_bytes": ("buffered_bytes_peak", "The most there ever were."),
    "clients": ("clients", "Clients connected or with mutations under way."),
}


def funnel_text(stats: Mapping[str, Any]) -> str:
    """The fields of `FunnelStats` as metrics."""
    counters = [
        family(f"funnel_{name}_total", told, [({}, stats[field])], "counter")
        for field, (name, told) in _FUNNEL_COUNTERS.items()
    ]
    gauges = [family(f"funnel_{name}", told, [({}, stats[field])]) for field, (name, told) in _FUNNEL_GAUGES.items()]
    return "".join([*counters, *gauges, _latencies(stats)])


def _latencies(stats: Mapping[str, Any]) -> str:
    """A histogram of runs, which are consecutive mutations of one client."""
    name, buckets = "funnel_latency_seconds", stats["latency_buckets"]
    text = family(name, "From arrival to commit, by runs of mutations.", [], "histogram")
    lines = [f'pleinair_{name}_bucket{{le="{bound}"}} {count}' for bound, count in buckets.items()]
    lines += [f"pleinair_{name}_sum {stats['latency_seconds']:.10g}"]
    lines += [f"pleinair_{name}_count {buckets['+Inf']}"]
    return text + "\n".join(lines) + "\n"


def reads_text(stats: Mapping[str, Any]) -> str:
    """The counters of the read service as metrics."""
    reads, shards = stats["reads"], stats["shards"]
    held = [({"shard": name, "state": state}, pool[state]) for name, pool in shards.items() for state in pool]
    ended = [({"outcome": outcome}, reads[outcome]) for outcome in ("done", "failed")]
    return "".join(
        [
            family("reads_running", "Reads that run now.", [({}, reads["running"])]),
            family("reads_total", "Reads that ended.", ended, "counter"),
            family("read_rows_total", "Rows handed out.", [({}, stats["rows"])], "counter"),
            family("read_bytes_total", "Bytes of Arrow data handed out.", [({}, stats["bytes"])], "counter"),
            family("read_rows_per_second", "Rows a second, over the last minute.", [({}, stats["rows_per_second"])]),
            family("read_connections", "Connections to each shard.", held),
            family("read_connections_limit", "The most there are to a shard.", [({}, stats["pool_size"])]),
        ]
    )
