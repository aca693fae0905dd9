"""However a launch of the command line ends, it says what the time went into."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pleinair.cli.main import main
from pleinair.records.run_events import EVENTS, Finished, read_events


def ending(run_dir: Path) -> str:
    last = read_events(run_dir / EVENTS)[-1]
    assert isinstance(last, Finished)
    return last.outcome


def interrupt_once_started(run_dir: Path) -> None:
    """Ctrl-C as soon as there is a rank to be stopped."""
    deadline = time.monotonic() + 60
    while not (run_dir / "logs" / "attempt-01").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_launch_that_gives_up_prints_its_goodput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no pack, which every try would meet again."""
    assert main(["train", "demo", "--supervise", "--runs", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "training stopped" in said.err
    assert said.out.splitlines()[-2].startswith("goodput 0.0% of ")
    assert said.out.splitlines()[-1].startswith("1 failures, 0 steps lost")
    assert ending(tmp_path / "demo") == "stopped"


def test_a_launch_that_is_interrupted_prints_its_goodput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threading.Thread(target=interrupt_once_started, args=[tmp_path / "demo"], daemon=True).start()
    assert main(["train", "demo", "--supervise", "--runs", str(tmp_path)]) == 130
    assert capsys.readouterr().out.splitlines()[-1].startswith("goodput 0.0% of ")
    assert ending(tmp_path / "demo") == "interrupted"
