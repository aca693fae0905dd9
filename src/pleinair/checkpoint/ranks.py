"""How the writing threads of several ranks agree, through files in the hidden directory they all write into.

rank r:  its shards, then rank-0000r.json: their hashes and pieces, or why it could not
rank 0:  waits for all of them, publishes; the others see the hidden directory go, and whether a checkpoint came of it
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pleinair.checkpoint.drafts import readable_manifests, to_json
from pleinair.checkpoint.pieces import TensorPieces, index_from_document, index_to_document
from pleinair.checkpoint.shards import write_durably
from pleinair.config import from_document, to_document
from pleinair.records.checkpoint import FileDigest
from pleinair.records.errors import CheckpointError

POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What one rank has written."""

    files: Mapping[str, FileDigest] = field(default_factory=dict)
    pieces: Mapping[str, Mapping[str, TensorPieces]] = field(default_factory=dict)
    refused: str | None = None
    """Why it could not write, if so."""


def report_path(draft: Path, rank: int) -> Path:
    """Where a rank's report is; it appears by rename, after the rank's shards are durable."""
    return draft / f"rank-{rank:05d}.json"


def write_report(draft: Path, rank: int, report: RankReport) -> None:
    """Tell rank 0. Raises OSError."""
    document = {
        "files": to_document(report.files),
        "pieces": index_to_document(report.pieces),
        "refused": report.refused,
    }
    path = report_path(draft, rank)
    staging = path.with_suffix(".partial")
    write_durably(staging, [memoryview(to_json(document))])
    os.replace(staging, path)


def read_reports(draft: Path, ranks: range, timeout_seconds: float) -> list[RankReport]:
    """The reports of all these ranks, waited for, then removed.

    Raises CheckpointError naming a rank that could not write, or that has not within the time.
    """
    deadline = time.monotonic() + timeout_seconds
    reports: list[RankReport] = []
    for rank in ranks:
        path = report_path(draft, rank)
        while not path.exists():
            if time.monotonic() > deadline:
                raise CheckpointError(f"rank {rank} has not written its part after {timeout_seconds:g} s")
            time.sleep(POLL_SECONDS)
        report = _read_report(path)
        if report.refused is not None:
            raise CheckpointError(f"rank {rank} could not write its part: {report.refused}")
        reports.append(report)
    for rank in ranks:
        report_path(draft, rank).unlink()
    return reports


def _read_report(path: Path) -> RankReport:
    document = json.loads(path.read_text())
    files = {name: from_document(FileDigest, entry) for name, entry in document["files"].items()}
    return RankReport(files=files, pieces=index_from_document(document["pieces"]), refused=document["refused"])


def outcome_of_rank_zero(draft: Path, token: str, timeout_seconds: float) -> Path:
    """The checkpoint that came of a draft, waited for. Raises CheckpointError when none did."""
    deadline = time.monotonic() + timeout_seconds
    while draft.exists():
        if time.monotonic() > deadline:
            raise CheckpointError(f"rank 0 has not finished the checkpoint after {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)
    for path, manifest in readable_manifests(draft.parent).items():
        if manifest.token == token:
            return path
    raise CheckpointError("rank 0 gave the checkpoint up; its own message says why")
