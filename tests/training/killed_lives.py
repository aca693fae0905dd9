"""Forks the ranks of a run, kills one, forks them again: `python -m tests.training.killed_lives DIR RANKS STEPS [KILL ...]`.

    DIR/calm      one life, undisturbed
    DIR/killed    a life per kill, in which a random rank is killed at a random moment of that step, and one to the end

Every life goes on from the checkpoint that the one before left. Forking spares the start of an interpreter for each rank of
each life; the launcher, which starts them anew, has drills of its own. Prints a line per life and at last, as JSON, which
lives had the losses of the undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from pleinair.cluster.processes import free_port
from pleinair.cluster.rank import ATTEMPT_DIR
from tests.training.killed_run import equal_lives, read_losses, train_rank


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("num_ranks", type=int)
    parser.add_argument("num_steps", type=int)
    parser.add_argument("kills", type=int, nargs="*")
    options = parser.parse_args()
    draw, calm, killed = random.Random(), options.directory / "calm", options.directory / "killed"
    live(calm, 1, options.num_ranks, options.num_steps, [])
    for life, step in enumerate(options.kills, start=1):
        victim = draw.randrange(options.num_ranks)
        ended = live(killed, life, options.num_ranks, options.num_steps, [f"kill:{victim}:{step}:{life}"])
        assert ended[victim] == -signal.SIGKILL, f"nobody was killed in life {life}: the ranks ended with {ended}"
        print(f"killed rank {victim} of {options.num_ranks} in step {step}, {life} of {len(options.kills)}", flush=True)
    assert live(killed, len(options.kills) + 1, options.num_ranks, options.num_steps, []) == [0] * options.num_ranks
    steps = len({step for _, step, *_ in read_losses(killed)})
    print(json.dumps({"equal": equal_lives(killed, calm), "steps": steps}))


def live(run_dir: Path, life: int, num_ranks: int, num_steps: int, faults: Sequence[str]) -> list[int]:
    """Exit codes of the ranks of one life; once one of them fails, the others are killed."""
    logs = run_dir / "logs" / f"attempt-{life:02d}"
    logs.mkdir(parents=True)
    meeting = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = {}
    for rank in range(num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), ATTEMPT_DIR: str(logs)}
        ranks[fork(run_dir, num_steps, faults, {**meeting, **own}, logs / f"rank-{rank}.log")] = rank
    codes: dict[int, int] = {}
    while len(codes) < num_ranks:
        pid, status = os.wait()
        codes[ranks[pid]] = code = os.waitstatus_to_exitcode(status)
        for other, rank in ranks.items():
            if code and rank not in codes:
                os.kill(other, signal.SIGKILL)
    return [codes[rank] for rank in range(num_ranks)]


def fork(run_dir: Path, num_steps: int, faults: Sequence[str], variables: Mapping[str, str], log: Path) -> int:
    """A rank as a child of this process; returns its id. This process must never have run a backward pass."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(variables)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        train_rank(run_dir, num_steps, faults)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
