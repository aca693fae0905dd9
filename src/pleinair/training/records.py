"""`steps.jsonl`: one line for every step of a run, with everything that was measured at it, validation included."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class StepRecord:
    """One line of `steps.jsonl`."""

    step: int
    phase: str
    loss: float
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    samples_per_second: float
    """Over all ranks."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the stage and the hooks measured; names with a slash are grouped by their first word."""

    def with_metrics(self, more: Mapping[str, float]) -> StepRecord:
        """The record with further metrics."""
        return replace(self, metrics={**self.metrics, **more}) if more else self


class RecordLog:
    """The file, open for a run that goes on at `first_step`; records of steps that will be done again are dropped."""

    def __init__(self, path: Path, first_step: int, *, writes: bool = True) -> None:
        self._file = None
        if writes:
            keep_records_before(path, first_step)
            self._file = path.open("a")

    def append(self, record: StepRecord) -> None:
        """Add a line."""
        if self._file is not None:
            self._file.write(json.dumps(asdict(record)) + "\n")

    def sync(self) -> None:
        """Force what was added to disk, so that no checkpoint is newer than its records."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def keep_records_before(path: Path, step: int) -> None:
    """Drop the records of steps that will be done again, and a half-written last line."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return
    staging = path.with_name(path.name + ".partial")
    with path.open() as old, staging.open("w") as new:
        for line in old:
            if line.endswith("\n") and json.loads(line)["step"] < step:
                new.write(line)
    os.replace(staging, path)


def read_records(path: Path) -> list[StepRecord]:
    """All records of a run, in order."""
    if not path.exists():
        return []
    return [StepRecord(**json.loads(line)) for line in path.read_text().splitlines()]
