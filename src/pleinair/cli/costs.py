"""What curation cost: a line per stage and run in HOME/costs.jsonl, and their sums.

Processor time is that of the workers, without Postgres. A run that was killed leaves no line.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pleinair.krablet import RunSummary

FILE = "costs.jsonl"


@dataclass(frozen=True)
class StageCost:
    """All runs of one stage together."""

    stage: str
    """As `images.fetch`."""
    num_results: int
    """Pictures that the stage settled."""
    cpu_seconds: float
    """Of the workers."""

    @property
    def core_hours_per_million(self) -> float:
        """Hours of one core for a million pictures."""
        return self.cpu_seconds / self.num_results * 1e6 / 3600.0


def note_costs(home: Path, run: RunSummary) -> None:
    """Append what a run of workers cost."""
    lines = [
        {"at": round(time.time()), "stage": stage, "results": run.completed[stage], "cpu_seconds": round(seconds, 3)}
        for stage, seconds in run.cpu_seconds.items()
        if run.completed[stage]
    ]
    home.mkdir(parents=True, exist_ok=True)
    with (home / FILE).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read_costs(home: Path) -> list[StageCost]:
    """The sum per stage, in the order in which they first ran; empty where nothing was noted."""
    path = home / FILE
    results: defaultdict[str, int] = defaultdict(int)
    seconds: defaultdict[str, float] = defaultdict(float)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        entry = json.loads(line)
        results[entry["stage"]] += entry["results"]
        seconds[entry["stage"]] += entry["cpu_seconds"]
    return [StageCost(stage, results[stage], seconds[stage]) for stage in results]
