"""The log of preferences: what was said is there, once, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from pleinair.records.errors import ConfigError, DatabaseError
from pleinair.records.preferences import PreferenceLog, from_line, holding, read_preferences, to_line
from tests.evaluation.people.showings import event


def test_an_event_is_read_as_it_was_written(tmp_path: Path) -> None:
    events = [event(), event(answer="cannot_tell", about="fox \u201cquoted\u201d\n", control="right", repeat=True)]
    assert [from_line(to_line(one)) for one in events] == events
    PreferenceLog(tmp_path / "new" / "log.jsonl").append(events)
    assert read_preferences(tmp_path / "new" / "log.jsonl") == events
    assert read_preferences(tmp_path / "none.jsonl") == []


def test_an_event_sent_twice_is_one_also_through_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    one, other = PreferenceLog(path), PreferenceLog(path)
    first, second = event(), event(person="bo")
    one.append([first, first])
    other.append([first, second])
    one.append([second])
    assert one.events() == other.events() == read_preferences(path) == [first, second]
    assert len(path.read_bytes().splitlines()) == 2


def test_a_line_cut_short_anywhere_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first, second, third = event(), event(), event()
    line = to_line(second)
    for length in [*range(0, len(line), 29), len(line) - 1]:
        path.write_bytes(to_line(first) + line[:length])
        assert read_preferences(path) == [first]
        log = PreferenceLog(path)
        assert log.events() == [first]
        log.append([third])
        assert log.events() == read_preferences(path) == [first, third], length


WRITER = """
import sys, uuid
from pathlib import Path
from pleinair.records.preferences import PreferenceLog, from_line
from dataclasses import replace
log, one = PreferenceLog(Path(sys.argv[1])), from_line(sys.stdin.buffer.readline())
while True:
    name = str(uuid.uuid4())
    log.append([replace(one, event=name)])
    print(name, flush=True)
"""


def test_what_a_killed_writer_said_is_saved_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin
        assert writer.stdout
        writer.stdin.write(to_line(event()))
        writer.stdin.flush()
        said = [writer.stdout.readline() for _ in range(5)]
        os.kill(writer.pid, signal.SIGKILL)
        said += writer.stdout.readlines()
    promised = [line.decode().strip() for line in said if line.endswith(b"\n")]
    log = PreferenceLog(path)
    log.append([event()])
    there = [one.event for one in read_preferences(path)]
    assert len(promised) >= 5
    assert there[: len(promised)] == promised
    assert len(there) <= len(promised) + 2  # one may have been written and not told


def test_the_latest_answer_to_a_trial_holds_and_a_withdrawn_one_does_not() -> None:
    first, changed, taken_back = event(), event(answer="right"), event(answer="withdrawn")
    of_bo = event(person="bo")
    of_judge = event(origin="synthetic")
    assert holding([first, of_bo, of_judge, changed]) == [of_bo, of_judge, changed]
    assert holding([first, changed, of_bo, taken_back]) == [of_bo]
    again = event(trial="t1", answer="same")
    assert holding([first, taken_back, again]) == [again]


@pytest.mark.parametrize(
    "change", [{"answer": "like"}, {"attribute": "beauty"}, {"origin": "robot"}, {"seconds": -1}, {"event": "7"}]
)
def test_an_event_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give|make"):
        event(**change)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(to_line(event()) + b'{"version": 2}\n')
    for read in (read_preferences, lambda of: PreferenceLog(of).append([event()])):
        with pytest.raises(ConfigError, match="line 2 of .*version 2"):
            read(path)
    with pytest.raises(DatabaseError, match="--log"):
        PreferenceLog(tmp_path).append([event(event=str(uuid.uuid4()))])
