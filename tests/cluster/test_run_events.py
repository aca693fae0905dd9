"""The event log: whole lines from many writers, and what a heartbeat writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from pleinair.records.run_events import (
    CheckpointSaved,
    Crash,
    Decided,
    Event,
    EventTail,
    Finished,
    Hang,
    Heartbeat,
    Loaded,
    Rendezvous,
    Started,
    Step,
    append,
    read_events,
)

EVENTS: list[Event] = [
    Started(at=1.0, attempt=1, world_size=2, command=("python", "train.py"), host="node-1"),
    Rendezvous(at=2.0, rank=0, world_size=2),
    Loaded(at=3.0, rank=0, step=7),
    Step(at=4.0, rank=0, step=8, compute_seconds=0.25),
    CheckpointSaved(at=5.0, rank=0, step=8, stall_seconds=0.5, write_seconds=2.0),
    Hang(at=6.0, rank=1, missing=(1,), silent_seconds=9.0, phase="training", evidence=("it is stopped",)),
    Crash(at=6.5, rank=1, exit_code=-9, cause="was ended by SIGKILL", step=8),
    Decided(at=7.0, action="stop", reason="enough", suspects=(1,)),
    Finished(at=8.0, outcome="stopped", reason="enough"),
]


def test_events_come_back_as_they_were_written(tmp_path: Path) -> None:
    for event in EVENTS:
        append(tmp_path / "events.jsonl", event)
    assert read_events(tmp_path / "events.jsonl") == EVENTS


def test_a_torn_line_and_a_kind_of_a_later_version_cost_only_themselves(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    append(log, EVENTS[0])
    with log.open("a") as file:
        file.write('{"kind": "step", "at": 3\n{"kind": "teleported", "at": 3}\n[1]\n')
    append(log, EVENTS[1])
    with log.open("a") as file:
        file.write('{"kind": "finished"')
    assert read_events(log) == EVENTS[:2]


def test_a_tail_gives_every_line_once_and_waits_for_its_end(tmp_path: Path) -> None:
    log, tail = tmp_path / "events.jsonl", EventTail(tmp_path / "events.jsonl")
    assert tail.read() == []
    append(log, EVENTS[0])
    with log.open("a") as file:
        file.write('{"kind": "loaded", "at": 3.0, "rank": 0,')
    assert tail.read() == EVENTS[:1]
    with log.open("a") as file:
        file.write(' "step": 7}\n')
    assert tail.read() == [EVENTS[2]]
    assert EventTail(log, from_end=True).read() == []


def test_lines_of_processes_that_write_at_once_do_not_mix(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    script = (
        "import sys; from pathlib import Path; from pleinair.records.run_events import *\n"
        "for step in range(500): append(Path(sys.argv[1]), Crash(rank=int(sys.argv[2]), exit_code=1, cause='x' * 3000))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(log), str(rank)]) for rank in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == len(read_events(log)) == 1500


def test_a_heartbeat_loses_no_step_between_the_events_it_writes(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    beat = Heartbeat(log, rank=1, every_seconds=3600.0)
    for step, seconds in ((1, 0.1), (2, 0.2), (3, 0.4)):
        beat(step, seconds)
    beat.close()
    beat.close()
    steps = [event for event in read_events(log) if isinstance(event, Step)]
    assert [(one.rank, one.step, one.num_steps, one.compute_seconds) for one in steps] == [
        (1, 1, 1, 0.1),
        (1, 3, 2, pytest.approx(0.3)),
    ]
    assert [event.kind for event in read_events(log)] == ["step", "step", "entered"]


def test_a_log_that_cannot_be_written_costs_the_line_and_not_the_run(tmp_path: Path) -> None:
    log = tmp_path / "no folder" / "events.jsonl"
    beat = Heartbeat(log, rank=0)
    beat(1)
    log.parent.mkdir()
    beat.saved(1, stall_seconds=0.1, write_seconds=0.2)
    assert [event.kind for event in read_events(log)] == ["checkpoint"]


def test_the_events_and_the_launcher_come_without_torch() -> None:
    modules = "launcher, rank, missing, goodput, exporter, post_mortem, simulator, stragglers"
    script = f"import sys; from pleinair.cluster import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
