"""Drills: real ranks that are killed, stopped and put to sleep, and a launcher that is."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pleinair.cluster.goodput import measure_goodput
from pleinair.cluster.launcher import LaunchConfig, Outcome, launch
from pleinair.cluster.restarts import RestartConfig
from pleinair.cluster.watchdog import WatchdogConfig
from pleinair.records.run_events import Crash, Decided, Event, Finished, Hang, Loaded, Straggler, read_events

DRILL = Path(__file__).with_name("drill.py")
NUM_STEPS = 70
SLOW_FROM = 45
HANG_SECONDS = 5.0


def config(run_dir: Path, **settings: object) -> LaunchConfig:
    watchdog = WatchdogConfig(training_floor_seconds=HANG_SECONDS)
    defaults = {"nproc": 2, "heartbeat_seconds": 0.0, "watchdog": watchdog, "show_rank": None}
    return LaunchConfig(run_dir=run_dir, **{**defaults, **settings})  # type: ignore[arg-type]


def losses(run_dir: Path) -> dict[int, set[float]]:
    """Every loss that was ever computed for a step: one, if all attempts agree to the bit."""
    found: dict[int, set[float]] = {}
    for line in (run_dir / "losses.jsonl").read_text().splitlines():
        step, loss = json.loads(line)
        found.setdefault(step, set()).add(loss)
    return found


@dataclass(frozen=True)
class Drilled:
    """A run that met every fault in turn."""

    run_dir: Path
    outcome: Outcome
    events: list[Event]
    kill_step: int


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Drilled:
    """Killed, then stopped, then asleep in Python, then with a batch that cannot be read, then slow to the end."""
    run_dir, kill_step = tmp_path_factory.mktemp("rough"), random.randrange(1, 20)
    faults = [f"kill:1:{kill_step}:1", "stop:1:22:2", "sleep:0:28:3", "raise:1:33:4", f"slow:0:{SLOW_FROM}:5"]
    command = [sys.executable, str(DRILL), str(run_dir), str(NUM_STEPS)]
    command += [word for fault in faults for word in ("--fault", fault)]
    outcome = launch(command, config(run_dir))
    return Drilled(run_dir, outcome, read_events(run_dir / "events.jsonl"), kill_step)


def test_a_run_that_meets_every_fault_ends_with_the_losses_of_an_undisturbed_one(
    rough: Drilled, tmp_path: Path
) -> None:
    assert rough.outcome == Outcome(outcome="done", reason="", attempts=5)
    assert launch([sys.executable, str(DRILL), str(tmp_path), str(NUM_STEPS)], config(tmp_path)).attempts == 1
    assert losses(rough.run_dir) == losses(tmp_path), f"killed at step {rough.kill_step}"
    assert len(losses(tmp_path)) == NUM_STEPS


def test_the_killed_rank_is_named_and_not_the_one_that_failed_because_of_it(rough: Drilled) -> None:
    crash = next(event for event in rough.events if isinstance(event, Crash))
    assert (crash.rank, crash.exit_code, crash.cause) == (1, -signal.SIGKILL, "was ended by SIGKILL")
    assert crash.step in (rough.kill_step, rough.kill_step - 1)  # the last heartbeat may not have been read


def test_the_stopped_rank_and_the_sleeping_one_are_named_with_what_the_others_wait_in(rough: Drilled) -> None:
    stopped, asleep = (event for event in rough.events if isinstance(event, Hang))
    assert (stopped.missing, stopped.step, stopped.phase) == ((1,), 22, "training")
    assert stopped.evidence == ("rank 1 gave no answer while rank 0 waits", "rank 1 is in state T (stopped)")
    assert stopped.collective.startswith("gloo:all_reduce number ")
    assert (asleep.missing, asleep.step) == ((0,), 28)
    assert "in asleep_in_python (drill.py:" in asleep.evidence[1]
    assert all(hang.silent_seconds < HANG_SECONDS + 1.0 for hang in (stopped, asleep))


def test_the_rank_that_raised_is_blamed_and_told_in_its_own_words(rough: Drilled) -> None:
    crash = [event for event in rough.events if isinstance(event, Crash)][-1]
    assert (crash.rank, crash.cause) == (1, "ended with RuntimeError: this batch cannot be read")


def test_the_slow_rank_is_flagged_within_twenty_steps(rough: Drilled) -> None:
    flagged = [event for event in rough.events if isinstance(event, Straggler) and event.step > SLOW_FROM]
    assert [event.rank for event in flagged] == [0]
    assert flagged[0].step <= SLOW_FROM + 20


def test_every_attempt_goes_on_from_a_checkpoint_and_every_failure_is_accounted_for(rough: Drilled) -> None:
    loaded = [event.step for event in rough.events if isinstance(event, Loaded) and event.rank == 0]
    assert loaded == [0, rough.kill_step // 5 * 5, 20, 25, 30]
    goodput = measure_goodput(rough.events)
    assert [repair.lost_steps for repair in goodput.repairs] == [rough.kill_step % 5, 2, 3, 3]
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall_seconds, abs=1e-6)
    assert [event.action for event in rough.events if isinstance(event, Decided)] == ["restart"] * 4


def test_logs_are_kept_by_rank_and_attempt(rough: Drilled) -> None:
    logs = sorted(str(path.relative_to(rough.run_dir / "logs")) for path in rough.run_dir.rglob("rank-*.log"))
    assert logs == [f"attempt-0{attempt}/rank-{rank}.log" for attempt in range(1, 6) for rank in range(2)]
    assert "this batch cannot be read" in (rough.run_dir / "logs/attempt-04/rank-1.log").read_text()


def test_a_crash_loop_is_stopped_with_a_sentence(tmp_path: Path) -> None:
    said: list[str] = []
    rule = RestartConfig(first_pause_seconds=0.0)
    outcome = launch(
        [sys.executable, "-c", "raise SystemExit(3)"], config(tmp_path, restarts=rule), on_message=said.append
    )
    assert outcome == Outcome(
        outcome="stopped",
        reason="3 attempts in a row made no progress beyond step 0: "
        "find the cause in the logs, then give the same command",
        attempts=3,
    )
    assert len(said) == 3
    assert said[0].startswith("rank 0 ended with exit code 3 after step 0: restart unchanged from the last checkpoint")
    assert read_events(tmp_path / "events.jsonl")[-1].kind == "finished"


def test_a_rank_that_asks_for_it_is_not_started_again(tmp_path: Path) -> None:
    outcome = launch([sys.executable, "-c", "raise SystemExit(93)"], config(tmp_path))
    assert (outcome.outcome, outcome.attempts, outcome.gave_up) == ("stopped", 1, True)


def test_attempts_are_numbered_on_over_launches(tmp_path: Path) -> None:
    for _ in range(2):
        assert launch([sys.executable, "-c", ""], config(tmp_path)).outcome == "done"
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["attempt-01", "attempt-02"]


def test_ranks_get_what_torchrun_would_give_them(tmp_path: Path) -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "MORE"]
    script = f"import os; print([os.environ[name] for name in {names}], int(os.environ['MASTER_PORT']) > 0)"
    launch([sys.executable, "-c", script], config(tmp_path, environment={"OMP_NUM_THREADS": "3", "MORE": "x"}))
    logs = [(tmp_path / f"logs/attempt-01/rank-{rank}.log").read_text() for rank in range(2)]
    assert logs == [f"['{rank}', '{rank}', '2', '2', '127.0.0.1', '3', 'x'] True\n" for rank in range(2)]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def start_launcher(run_dir: Path, script: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A launcher in a process of its own, and the process ids of its two ranks."""
    code = (
        "import sys; from pathlib import Path; from pleinair.cluster.launcher import *\n"
        f"print(launch([sys.executable, '-c', {script!r}], LaunchConfig(run_dir=Path({str(run_dir)!r}), nproc=2)).outcome)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pids = [run_dir / f"pid-{rank}" for rank in range(2)]
    wait_for(lambda: all(path.exists() for path in pids))
    return launcher, [int(path.read_text()) for path in pids]


def own_pid(run_dir: Path, then: str) -> str:
    return (
        "import os, signal, sys, time; from pathlib import Path\n"
        f"place = Path({str(run_dir)!r}); rank = os.environ['RANK']\n"
        "def tell(): (place / f'.{rank}').write_text(str(os.getpid())); os.replace(place / f'.{rank}', place / f'pid-{rank}')\n"
        f"{then}"
    )


def test_no_rank_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher, ranks = start_launcher(tmp_path, own_pid(tmp_path, "tell(); time.sleep(600)"))
    assert all(alive(rank) for rank in ranks)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate()
    wait_for(lambda: not any(alive(rank) for rank in ranks), seconds=5.0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_the_ranks_end_in_their_own_way(tmp_path: Path, how: signal.Signals) -> None:
    script = own_pid(
        tmp_path,
        "def stop(number, frame): (place / f'clean-{rank}').touch(); sys.exit(0)\n"
        f"signal.signal({int(how)}, stop); tell()\nwhile True: time.sleep(0.05)",
    )
    launcher, ranks = start_launcher(tmp_path, script)
    launcher.send_signal(how)
    said, _ = launcher.communicate(timeout=60)
    assert said.decode().splitlines() == ["interrupted"]
    assert all((tmp_path / f"clean-{rank}").exists() for rank in range(2))
    assert not any(alive(rank) for rank in ranks)
    last = read_events(tmp_path / "events.jsonl")[-1]
    assert isinstance(last, Finished)
    assert last.outcome == "interrupted"


def test_what_a_rank_started_ends_with_its_attempt(tmp_path: Path) -> None:
    script = own_pid(
        tmp_path,
        "import subprocess\n"
        "if rank == '0': child = subprocess.Popen(['sleep', '600']); (place / 'child').write_text(str(child.pid))\n"
        "while not (place / 'child').exists(): time.sleep(0.02)\n"
        "if rank == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(600)",
    )
    outcome = launch([sys.executable, "-c", script], config(tmp_path, restarts=RestartConfig(max_restarts=0)))
    assert (outcome.outcome, outcome.attempts) == ("stopped", 1)
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not alive(child), seconds=5.0)


def test_a_program_that_never_speaks_is_left_alone_until_its_time_to_meet_is_over(tmp_path: Path) -> None:
    silent = WatchdogConfig(rendezvous_seconds=0.5)
    once = RestartConfig(max_restarts=0)
    outcome = launch(["sleep", "600"], config(tmp_path, watchdog=silent, restarts=once))
    assert outcome.outcome == "stopped"
    hang = next(event for event in read_events(tmp_path / "events.jsonl") if isinstance(event, Hang))
    assert hang.missing == ()
    assert hang.evidence == ("no rank can be asked: the program does not call pleinair.cluster.rank.arm",)


def test_the_output_of_one_rank_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch([sys.executable, "-c", "import os; print('I am', os.environ['RANK'])"], config(tmp_path, show_rank=1))
    assert capsys.readouterr().out == "I am 1\n"


def test_the_launcher_leaves_signals_as_they_were(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    launch([sys.executable, "-c", ""], config(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.getpid() > 0


def test_a_run_without_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nproc is 0: a run has at least one rank"):
        config(tmp_path, nproc=0)
