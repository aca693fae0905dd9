"""Decisions on clusters, kept as events: who decided what, when and why; the latest of a person counts.

    flagged clusters --a person: keep or drop--> cluster_reviews (events) --apply_reviews--> images.cluster_drop

A rule or a model may only flag. A decision holds for a cluster and all below it, and a decision further down overrides
one further up: a person may drop a heap and keep one leaf of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from pleinair.curation.clusters.warehouse import ClusterRow, clustered_table, clusters_table
from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError

Decision = Literal["keep", "drop", "flag"]
Origin = Literal["human", "rule"]
EVENT_COLUMNS: Mapping[str, str] = {
    "review": "uuid",
    "cluster_id": "text",
    "decision": "text",
    "origin": "text",
    "reason": "text",
    "reviewed_at": "timestamptz",
}


@dataclass(frozen=True, kw_only=True)
class ReviewEvent:
    """One decision on one cluster."""

    cluster_id: str
    decision: Decision
    origin: Origin
    reason: str
    reviewed_at: datetime


def reviews_table(db: Database) -> Table:
    """The declared `cluster_reviews` table."""
    return db.table("cluster_reviews", key="review", columns=EVENT_COLUMNS)


def newest_run(db: Database) -> str:
    """The run that pictures are clustered by. Raises ConfigError when there is none."""
    images = clustered_table(db)
    for batch in images.read(where="cluster_run IS NOT NULL", columns=["cluster_run"], batch_rows=1):
        return str(batch.column("cluster_run")[0].as_py())
    raise ConfigError("no picture is in a cluster: run 'pleinair cluster' first")


def read_clusters(db: Database, run: str) -> list[ClusterRow]:
    """All clusters of a run, the largest first."""
    found = clusters_table(db).read(where="run = %(run)s", params={"run": run})
    rows = [ClusterRow(**row) for batch in found for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: (-row.size, row.cluster))


def record(db: Database, events: Sequence[ReviewEvent]) -> None:
    """Append events; durable on return."""
    reviews_table(db).upsert({"review": str(uuid.uuid4()), **asdict(event)} for event in events)


def record_flags(db: Database, clusters: Sequence[ClusterRow]) -> int:
    """An event of origin `rule` for every flagged cluster that has none yet; how many were new."""
    known = {event.cluster_id for event in read_events(db) if event.origin == "rule"}
    now = datetime.now(UTC)
    new = [
        ReviewEvent(
            cluster_id=row.cluster_id, decision="flag", origin="rule", reason="; ".join(row.flags), reviewed_at=now
        )
        for row in clusters
        if row.flags and row.cluster_id not in known
    ]
    record(db, new)
    return len(new)


def read_events(db: Database) -> list[ReviewEvent]:
    """All events, oldest first."""
    columns = [name for name in EVENT_COLUMNS if name != "review"]
    rows = [row for batch in reviews_table(db).read(columns=columns) for row in batch.to_pylist()]
    return sorted((ReviewEvent(**row) for row in rows), key=lambda event: event.reviewed_at)


def decisions(events: Sequence[ReviewEvent]) -> dict[str, ReviewEvent]:
    """By cluster, the latest decision of a person."""
    return {event.cluster_id: event for event in events if event.origin == "human" and event.decision != "flag"}


def to_review(clusters: Sequence[ClusterRow], decided: Mapping[str, ReviewEvent]) -> list[ClusterRow]:
    """Flagged clusters no person has decided on."""
    return [row for row in clusters if row.flags and row.cluster_id not in decided]


def decide(db: Database, cluster: str, decision: Literal["keep", "drop"], reason: str) -> int:
    """Record a person's decision on a cluster of the newest run and apply it; how many pictures changed sides."""
    run = newest_run(db)
    clusters = {row.cluster: row for row in read_clusters(db, run)}
    if cluster not in clusters:
        raise ConfigError(
            f"run {run} has no cluster {cluster!r}: give one such as {min(clusters)!r}, as its page prints it"
        )
    event = ReviewEvent(
        cluster_id=clusters[cluster].cluster_id,
        decision=decision,
        origin="human",
        reason=reason,
        reviewed_at=datetime.now(UTC),
    )
    record(db, [event])
    return apply_reviews(db)


def apply_reviews(db: Database) -> int:
    """Write `cluster_drop` of every clustered picture from the decisions there are; how many changed."""
    run, images = newest_run(db), clustered_table(db)
    names = {row.cluster: row.name for row in read_clusters(db, run)}
    decided = {
        cluster_id.partition(":")[2]: event
        for cluster_id, event in decisions(read_events(db)).items()
        if cluster_id.startswith(f"{run}:")
    }
    verdicts = {path: _verdict(path, names, decided) for path in names}
    return images.update(_changed(images, run, verdicts))


def _changed(images: Table, run: str, verdicts: Mapping[str, str]) -> Iterator[dict[str, object]]:
    columns = ["image_name", "cluster", "cluster_drop"]
    for batch in images.read(where="cluster_run = %(run)s", params={"run": run}, columns=columns):
        for row in batch.to_pylist():
            verdict = verdicts[row["cluster"]]
            if verdict != row["cluster_drop"]:
                yield {"image_name": row["image_name"], "cluster_drop": verdict}


def _verdict(path: str, names: Mapping[str, str], decided: Mapping[str, ReviewEvent]) -> str:
    """Empty, or why a person dropped the picture's cluster or one above it."""
    at = path
    while at:
        if event := decided.get(at):
            if event.decision == "keep":
                return ""
            return f"cluster: {names[at]} ({at}), dropped by a person{': ' + event.reason if event.reason else ''}"
        at = at.rpartition("/")[0]
    return ""
