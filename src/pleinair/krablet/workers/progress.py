"""What a run of workers did so far and what is left: per stage, with the rate of the last seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pleinair.krablet.stages import Depth, Stage, StuckRow

RATE_WINDOW_SECONDS = 30.0


@dataclass(frozen=True)
class StageProgress:
    """One stage of a run, as it is now. `completed` and `failed` count this run's results; the rest is the queue."""

    table: str
    stage: str
    claimable: int
    leased: int
    waiting: int
    stuck: int
    completed: int
    failed: int
    rows_per_second: float
    eta_seconds: float | None
    """None while the rate is unknown."""

    @property
    def pending(self) -> int:
        return self.claimable + self.leased + self.waiting


@dataclass(frozen=True)
class Progress:
    """A run, as it is now."""

    stages: tuple[StageProgress, ...]
    seconds: float
    worker_pids: tuple[int, ...]
    deaths: int

    @property
    def workers(self) -> int:
        return len(self.worker_pids)


@dataclass(frozen=True)
class RunSummary:
    """A run that ended: results by "table.stage", the rows given up on, and how often a worker died."""

    completed: dict[str, int]
    failed: dict[str, int]
    stuck: dict[str, list[StuckRow]]
    seconds: float
    deaths: int
    retired: int = 0
    """Workers replaced because they had grown above the memory ceiling."""
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    """Processor time of the workers by stage; of those that work on several stages at once, about."""


class Tally:
    """What the workers reported, and the rate over the last seconds."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._began = time.monotonic()
        self._completed = {stage.label: 0 for stage in stages}
        self._failed = {stage.label: 0 for stage in stages}
        self._cpu_seconds = {stage.label: 0.0 for stage in stages}
        self._samples: deque[tuple[float, dict[str, int]]] = deque([(self._began, dict(self._completed))])

    def add(self, label: str, completed: int, failed: int, cpu_seconds: float) -> None:
        self._completed[label] += completed
        self._failed[label] += failed
        self._cpu_seconds[label] += cpu_seconds

    def progress(self, depths: Sequence[Depth], pids: tuple[int, ...], deaths: int) -> Progress:
        now = time.monotonic()
        self._samples.append((now, dict(self._completed)))
        while len(self._samples) > 2 and self._samples[1][0] < now - RATE_WINDOW_SECONDS:
            self._samples.popleft()
        stages = tuple(self._stage(stage, depth, now) for stage, depth in zip(self._stages, depths, strict=True))
        return Progress(stages, now - self._began, pids, deaths)

    def _stage(self, stage: Stage, depth: Depth, now: float) -> StageProgress:
        then, completed_then = self._samples[0]
        completed = self._completed[stage.label]
        rate = (completed - completed_then[stage.label]) / (now - then) if now > then else 0.0
        eta = 0.0 if depth.pending == 0 else depth.pending / rate if rate > 0 else None
        return StageProgress(
            stage.table.name, stage.name, **asdict(depth), completed=completed, failed=self._failed[stage.label],
            rows_per_second=rate, eta_seconds=eta,
        )  # fmt: skip

    def summary(self, stuck: dict[str, list[StuckRow]], deaths: int, retired: int) -> RunSummary:
        spent = time.monotonic() - self._began
        return RunSummary(self._completed, self._failed, stuck, spent, deaths, retired, self._cpu_seconds)
