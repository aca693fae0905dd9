"""What the command line and Prometheus are told of a run."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pleinair.cli.main import main
from pleinair.cluster.exporter import run_metrics
from pleinair.cluster.post_mortem import RankLoad, as_screen, examine, rank_load, saving_cost
from pleinair.krablet.watching.prometheus import metrics_served
from pleinair.records.run_events import (
    CheckpointSaved,
    Crash,
    Decided,
    Event,
    FailureHistory,
    Finished,
    Hang,
    Loaded,
    Rendezvous,
    Restarted,
    Started,
    Step,
    Straggler,
    append,
    failure_history,
)

START = 1_796_000_000.0
STORY: list[Event] = [
    Started(at=START, attempt=1, world_size=2, command=("pleinair", "train", "demo"), host="node-1"),
    Rendezvous(at=START + 4, rank=0),
    Loaded(at=START + 6, rank=0, step=0),
    Step(at=START + 8, rank=0, step=10, num_steps=10),
    CheckpointSaved(at=START + 9, rank=0, step=10, stall_seconds=0.5, write_seconds=1.0, slowed_seconds=0.25),
    Step(at=START + 10, rank=0, step=12, num_steps=2),
    Step(at=START + 10, rank=1, step=12, num_steps=2),
    Straggler(at=START + 10, rank=1, slowdown=1.4, step=12),
    Hang(
        at=START + 40,
        rank=1,
        missing=(1,),
        silent_seconds=30.0,
        phase="training",
        collective="gloo:all_reduce number 13 of group 0, 2 ranks",
        evidence=("rank 1 gave no answer while rank 0 waits", "rank 1 is in state T (stopped)"),
        step=12,
    ),
    Decided(at=START + 41, action="restart", reason="restart unchanged"),
    Restarted(at=START + 41, attempt=2),
    Rendezvous(at=START + 45, rank=0),
    Loaded(at=START + 47, rank=0, step=10),
    Step(at=START + 48, rank=0, step=11),
    Crash(at=START + 50, rank=1, exit_code=-9, cause="was ended by SIGKILL", step=11),
    Decided(at=START + 51, action="stop", reason="enough", suspects=(1,)),
    Finished(at=START + 51, outcome="stopped", reason="enough"),
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for event in STORY:
        append(tmp_path / "events.jsonl", event)
    log = tmp_path / "logs" / "attempt-02" / "rank-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {number}\n" for number in range(20)))
    return tmp_path


def test_the_screen_tells_who_was_missing_what_was_lost_and_what_was_done(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(run_dir)]) == 0
    said = capsys.readouterr().out
    for part in (
        f"{run_dir}: stopped after 2 attempts, 2 ranks on node-1",
        "command: pleinair train demo",
        "step 12, last checkpoint at 10, 42.0 s old at the last event",
        "checkpoints: 1, each 0.50 s of waiting and 0.25 s in slower steps, written in 1.0 s: 75.0% of the time",
        "2 failures, 2 steps lost; MTBF 25.5 s",
        "attempt 1, hang after step 12: silent for 30 s in training: rank 1 did not arrive",
        "the others waited in gloo:all_reduce number 13 of group 0, 2 ranks",
        "rank 1 is in state T (stopped)",
        "-> restart: restart unchanged",
        "attempt 2, crash after step 11: rank 1 was ended by SIGKILL",
        "-> stop: enough",
        "straggler: rank 1 was 1.40 times as slow as the others at step 12",
        "line 19",
    ):
        assert part in said
    assert len(said.splitlines()) <= 40, "one screen"


def test_the_same_for_machines(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(run_dir), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["attempts"], told["durable_step"]) == ("stopped", 2, 10)
    assert [(one["cause"], one["ranks"], one["action"]) for one in told["failures"]] == [
        ("hang", [1], "restart"),
        ("crash", [1], "stop"),
    ]
    assert told["failures"][1]["suspects"] == [1]
    assert told["goodput"]["mtbf_seconds"] == 25.5
    assert told["log_tail"] == [f"line {number}" for number in range(14, 20)]


def test_a_run_whose_launcher_is_gone_still_counts_as_running(run_dir: Path) -> None:
    lines = (run_dir / "events.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "events.jsonl").write_text("".join(lines[:-1]))
    assert examine(run_dir).state == "running"


def test_a_run_that_was_launched_again_is_running(run_dir: Path) -> None:
    append(run_dir / "events.jsonl", Started(at=START + 60, attempt=3, world_size=2))
    assert (examine(run_dir).state, examine(run_dir).attempts) == ("running", 3)


def test_the_failures_of_all_launches_and_the_time_under_them_are_counted(run_dir: Path, tmp_path: Path) -> None:
    log = run_dir / "events.jsonl"
    assert failure_history(log) == FailureHistory(num_failures=2, observed_seconds=51.0)
    append(log, Started(at=START + 1000, attempt=3, world_size=2))
    append(log, Step(at=START + 1010, rank=0, step=20))
    assert failure_history(log) == FailureHistory(num_failures=2, observed_seconds=61.0)
    assert failure_history(tmp_path / "none.jsonl") == FailureHistory()


def test_the_cost_of_saving_is_the_lowest_ranks() -> None:
    saved = [
        CheckpointSaved(at=10.0 * n, rank=rank, step=n, stall_seconds=0.1 * n + rank, write_seconds=2.0)
        for n in range(1, 4)
        for rank in (1, 2)
    ]
    cost = saving_cost(saved)
    assert cost is not None
    assert (cost.num_saves, cost.slowed_seconds, cost.write_seconds) == (3, None, 2.0)
    assert cost.stall_seconds == pytest.approx(1.2)
    assert cost.share == pytest.approx((1.1 + 1.2 + 1.3) / 22.0)


def test_how_evenly_ranks_were_loaded_is_read_from_the_last_records(run_dir: Path) -> None:
    records = run_dir / "steps.jsonl"
    assert examine(run_dir).load is rank_load(records) is None
    loads = {"token_skew": 0.5, "time_skew": 0.25, "padding": 0.125, "num_shapes": 2.0, "num_graphs": 0.0}
    steps = [
        {"step": step, "metrics": {f"ranks/{name}": value * (step % 2) for name, value in loads.items()}}
        for step in range(2000)
    ]
    records.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 2000, "met')
    found = examine(run_dir)
    assert found.load is not None
    assert 100 < found.load.num_steps < 1000
    assert found.load == RankLoad(
        num_steps=found.load.num_steps,
        token_skew=pytest.approx(0.25, rel=0.01),
        time_skew=pytest.approx(0.125, rel=0.01),
        padding=pytest.approx(0.0625, rel=0.01),
        num_shapes=2,
        num_graphs=0,
    )
    told = next(line for line in as_screen(found).splitlines() if line.startswith("ranks: "))
    assert "longest rank, 6." in told
    assert told.endswith("% padding, 2 shapes of tokens, 0 graphs compiled")
    records.write_text('{"step": 0, "metrics": {"loss": 1.0}}\n')
    assert rank_load(records) is None


def test_a_folder_without_events_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 1
    assert f"{tmp_path} has no events.jsonl: only runs started with --supervise or --nproc" in capsys.readouterr().err


def samples(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


def test_metrics_are_those_of_the_account(run_dir: Path, tmp_path: Path) -> None:
    found, run = samples(run_metrics(run_dir)), f'run="{run_dir.name}"'
    assert found[f"pleinair_run_up{{{run}}}"] == 0
    assert found[f'pleinair_run_failures_total{{{run},cause="hang"}}'] == 1
    assert found[f'pleinair_run_failures_total{{{run},cause="crash"}}'] == 1
    assert found[f"pleinair_run_mtbf_seconds{{{run}}}"] == 25.5
    assert found[f"pleinair_run_lost_steps_total{{{run}}}"] == 2
    assert found[f'pleinair_run_mttr_seconds{{{run},part="start"}}'] == 2.0
    assert found[f'pleinair_run_time_seconds{{{run},bucket="detect"}}'] == 32.0
    # A rank of the attempt that is over is no straggler of the next one.
    assert found[f'pleinair_run_rank_slowdown_ratio{{{run},rank="1"}}'] == 1.0


def test_metrics_tell_the_stall_of_a_checkpoint_and_the_slowed_steps_beside_it(tmp_path: Path) -> None:
    told = [(0.5, 1.0, None), (0.1, 3.0, 0.7), (0.3, 2.0, 0.9)]
    append(tmp_path / "events.jsonl", Started(at=START, attempt=1, world_size=2))
    run = f'run="{tmp_path.name}"'
    before = samples(run_metrics(tmp_path))
    assert {name: value for name, value in before.items() if "checkpoint" in name.partition("{")[0]} == {
        f"pleinair_run_checkpoints_total{{{run}}}": 0
    }
    for number, (stall, write, slowed) in enumerate(told):
        for rank in (0, 1):  # the other rank waits longer, and its checkpoints are the same ones
            event = CheckpointSaved(
                at=START + 10 * number,
                rank=rank,
                step=number,
                stall_seconds=stall + 5 * rank,
                write_seconds=write,
                slowed_seconds=slowed,
            )
            append(tmp_path / "events.jsonl", event)
    found = samples(run_metrics(tmp_path))
    assert found[f"pleinair_run_checkpoints_total{{{run}}}"] == 3
    assert found[f'pleinair_run_checkpoint_cost_seconds{{{run},part="stall"}}'] == 0.3
    assert found[f'pleinair_run_checkpoint_cost_seconds{{{run},part="slowed"}}'] == pytest.approx(0.8)
    assert found[f"pleinair_run_checkpoint_write_seconds{{{run}}}"] == 2.0
    assert found[f"pleinair_run_checkpoint_cost_ratio{{{run}}}"] == pytest.approx((0.9 + 1.6) / 21.0)


def test_slowed_steps_that_nobody_compared_are_no_zero(tmp_path: Path) -> None:
    append(tmp_path / "events.jsonl", CheckpointSaved(at=START, rank=0, step=1, stall_seconds=0.5, write_seconds=1.0))
    costs = [name for name in samples(run_metrics(tmp_path)) if "cost_seconds" in name]
    assert costs == [f'pleinair_run_checkpoint_cost_seconds{{run="{tmp_path.name}",part="stall"}}']


def test_metrics_are_written_whole_and_served(run_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "pleinair_run.prom"
    assert main(["runs", str(run_dir), "--textfile", str(target)]) == 0
    with metrics_served("127.0.0.1:0", lambda: run_metrics(run_dir)) as address:
        assert address is not None
        with urllib.request.urlopen(address) as answer:
            served = samples(answer.read().decode())
    written = samples(target.read_text())
    assert served.keys() == written.keys()
    assert served[f'pleinair_run_steps{{run="{run_dir.name}"}}'] == 12
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_run_that_has_not_begun_has_one_metric(tmp_path: Path) -> None:
    assert samples(run_metrics(tmp_path)) == {f'pleinair_run_up{{run="{tmp_path.name}"}}': 0}


def test_the_endpoint_serves_until_it_is_interrupted(run_dir: Path) -> None:
    command = [sys.executable, "-m", "pleinair.cli.main", "runs", str(run_dir), "--serve", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        address = server.stdout.readline().removeprefix("metrics: ").strip()
        with urllib.request.urlopen(address) as answer:
            assert "pleinair_run_goodput_ratio" in answer.read().decode()
        server.send_signal(2)
        assert server.wait(timeout=30) == 130


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--nproc", "3"], "a batch of 64 at 32 px does not divide by 3 data ranks"),
        (["--nproc", "3", "--set", "parallel.mesh.shard=2"], "needs 2 processes, this run has 3: start 2 processes"),
        (["--nproc", "8", "--set", "parallel.mesh.tensor=8"], "tensor is 8: it must divide the"),
        (["--set", "engine.sede=1"], "unknown"),
        (["--supervise", "--hang-seconds", "0"], "training_floor_seconds is 0.0: give a positive number"),
        (["--supervise", "--max-restarts", "-1"], "max_restarts is -1: it cannot be negative"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "demo", "--runs", str(tmp_path), *options]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_rank_that_cannot_train_is_not_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The recipe has no pack here: another try would find none either."""
    assert main(["train", "demo", "--runs", str(tmp_path), "--supervise"]) == 1
    assert "a rank asked not to be started again" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "demo" / "logs").iterdir()] == ["attempt-01"]
    assert "pack" in (tmp_path / "demo" / "logs" / "attempt-01" / "rank-0.log").read_text()
