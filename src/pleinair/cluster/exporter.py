"""A run's event log as Prometheus metrics: a file for node_exporter's textfile collector, or an endpoint to scrape.

RUN/events.jsonl -> run_metrics(RUN) -> write_metrics(RUN, folder/pleinair_run.prom)     renamed into place
                                     -> krablet.watching.prometheus.metrics_served       http://HOST:PORT/metrics
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pleinair.cluster.goodput import REPAIR_PARTS, Goodput, measure_goodput
from pleinair.cluster.post_mortem import saving_cost
from pleinair.krablet.watching.prometheus import Sample, family
from pleinair.records.run_events import (
    EVENTS,
    LAUNCHER,
    CheckpointSaved,
    Crash,
    Event,
    Finished,
    Hang,
    Restarted,
    Started,
    Step,
    Straggler,
    read_events,
)


def run_metrics(run_dir: Path) -> str:
    """Every metric of a run in the text exposition format; only `run_up` when it has no events yet."""
    events = read_events(run_dir / EVENTS)
    name = {"run": _label(run_dir.resolve().name)}
    if not events:
        return family("run_up", "Whether a launcher is at work.", [(name, 0.0)])
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    families = [
        *_of_goodput(name, measure_goodput(events)),
        *_of_events(name, events, time.time()),
        *_of_checkpoints(name, saved),
    ]
    return "".join(families)


def write_metrics(run_dir: Path, target: Path) -> None:
    """Write the metrics by rename, so that a collector never reads half a file."""
    staging = target.with_name(f".{target.name}.partial")
    staging.write_text(run_metrics(run_dir))
    os.replace(staging, target)


def _of_goodput(name: dict[str, str], goodput: Goodput) -> Iterator[str]:
    buckets: list[Sample] = [({**name, "bucket": bucket}, spent) for bucket, spent in goodput.seconds.items()]
    parts: list[Sample] = [({**name, "part": part}, goodput.mttr_seconds(part)) for part in REPAIR_PARTS]
    yield family("run_goodput_ratio", "Productive over wall time.", [(name, goodput.share)])
    yield family("run_time_seconds", "Wall time by what it went into; steps become lost by a failure.", buckets)
    yield family("run_mttr_seconds", "Mean time to repair by part.", parts)
    if goodput.repairs:
        yield family("run_mtbf_seconds", "Time under a launcher per failure.", [(name, goodput.mtbf_seconds)])
    if goodput.step_seconds is not None:
        yield family("run_step_seconds", "Median duration of a step.", [(name, goodput.step_seconds)])
    yield family("run_steps", "Steps done.", [(name, goodput.steps)])
    yield family("run_lost_steps_total", "Steps thrown away by failures.", [(name, goodput.lost_steps)], "counter")


def _of_events(name: dict[str, str], events: Sequence[Event], now: float) -> Iterator[str]:
    up = next(
        (not isinstance(e, Finished) for e in reversed(events) if isinstance(e, Started | Restarted | Finished)), 0
    )
    failures: list[Sample] = [
        ({**name, "cause": kind.kind}, sum(isinstance(event, kind) for event in events)) for kind in (Crash, Hang)
    ]
    heard = {event.rank: event.at for event in events if event.rank != LAUNCHER and not isinstance(event, Crash | Hang)}
    ages: list[Sample] = [({**name, "rank": str(rank)}, max(0.0, now - at)) for rank, at in sorted(heard.items())]
    yield family("run_up", "Whether a launcher is at work.", [(name, float(up))])
    yield family("run_failures_total", "Crashes and hangs.", failures, "counter")
    yield family("run_rank_silent_seconds", "Since a rank was heard of.", ages)
    saved = [event.at for event in events if isinstance(event, CheckpointSaved)]
    if saved:
        yield family(
            "run_checkpoint_age_seconds", "Since a checkpoint was durable.", [(name, max(0.0, now - saved[-1]))]
        )
    yield family("run_rank_slowdown_ratio", "Compute time over the others', of flagged ranks.", _slow(name, events))


def _of_checkpoints(name: dict[str, str], saved: Sequence[CheckpointSaved]) -> Iterator[str]:
    """What saving costs; a stall alone would flatter, as writing in the background moves the cost into the steps."""
    cost = saving_cost(saved)
    yield family("run_checkpoints_total", "Durable ones.", [(name, cost.num_saves if cost else 0)], "counter")
    if cost is None:
        return
    parts: list[Sample] = [({**name, "part": "stall"}, cost.stall_seconds)]
    if cost.slowed_seconds is not None:
        parts.append(({**name, "part": "slowed"}, cost.slowed_seconds))
    told = "Median a checkpoint: training stood still (stall), the steps beside the write took longer (slowed)."
    yield family("run_checkpoint_cost_seconds", told, parts)
    yield family("run_checkpoint_write_seconds", "Median until durable.", [(name, cost.write_seconds)])
    yield family("run_checkpoint_cost_ratio", "Stall and slowed steps over the time.", [(name, cost.share)])


def _slow(name: dict[str, str], events: Sequence[Event]) -> list[Sample]:
    """Ranks flagged in the current attempt; there is a sample for every rank, so that the metric never vanishes."""
    slow: dict[int, float] = {}
    for event in events:
        if isinstance(event, Started | Restarted):
            slow = dict.fromkeys(slow, 1.0)
        elif isinstance(event, Step):
            slow.setdefault(event.rank, 1.0)
        elif isinstance(event, Straggler):
            slow[event.rank] = event.slowdown
    return [({**name, "rank": str(rank)}, times) for rank, times in sorted(slow.items())]


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
