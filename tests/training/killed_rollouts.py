"""Forks a run of GRPO, kills it at a chosen moment, forks it again: `python -m tests.training.killed_rollouts DIR`.

    assessing:1   inside the assessor, of iteration 1: pictures are drawn and nothing of them is stored
    writing:2     iteration 2 is written to its draft, and has no name yet
    stored:2      iteration 2 has its name, and no update was made of it
    updated:4     step 4, the first of iteration 2, is done, and no checkpoint holds it

A forked child starts at once, where a new process needs seconds for its imports. Prints which iterations were assessed, in
order, over all lives; SIGKILL is real each time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pleinair.records.rewards import Assessment, Pictures, RewardContext
from tests.training.small_rollouts import Brightness, run_grpo

NUM_ITERATIONS = 5
LIVES = ("assessing:1", "writing:2", "stored:2", "updated:4", "")


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    for name, lives in (("calm", ("",)), ("killed", LIVES)):
        for moment in lives:
            code = forked(lambda name=name, moment=moment: live(directory / name, moment))  # type: ignore[misc]
            assert code == (-signal.SIGKILL if moment else 0), f"{name} {moment}: ended with {code}"
    assessed = (directory / "killed" / "assessed").read_text().split()
    print(json.dumps([int(iteration) for iteration in assessed]))


def forked(run: Callable[[], Any]) -> int:
    """Exit code of a child that does this. The parent must never have run a backward pass."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            run()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def live(directory: Path, moment: str) -> None:
    directory.mkdir(exist_ok=True)
    what, _, number = moment.partition(":")
    if what in ("writing", "stored"):
        kill_at_rename(f"iteration-{int(number):08d}", after=what == "stored")
    assessor = Noted(directory / "assessed", int(number) if what == "assessing" else None)
    hooks: Sequence[Any] = [KillAfter(int(number))] if what == "updated" else []
    run_grpo(directory, NUM_ITERATIONS, assessor=assessor, keep_every=3, hooks=hooks)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_rename(name: str, *, after: bool) -> None:
    """Die where the directory of this name is about to appear, or has just appeared."""
    rename = os.rename

    def renamed(source: Any, target: Any) -> None:
        if Path(target).name == name and not after:
            die()
        rename(source, target)
        if Path(target).name == name:
            die()

    os.rename = renamed  # type: ignore[assignment]


class Noted(Brightness):
    """Writes down which iterations it is shown, and may die of one."""

    def __init__(self, note: Path, deadly: int | None) -> None:
        super().__init__()
        self.note, self.deadly = note, deadly

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        rollouts = self.note.parent / "rollouts"
        iteration = len(list(rollouts.glob("iteration-*")))
        with self.note.open("a") as file:
            file.write(f"{iteration}\n")
        if iteration == self.deadly:
            die()
        return super().assess(prompts, pictures, context)


class KillAfter:
    """Dies when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Any, record: Any) -> Mapping[str, float]:
        if record.step == self.step:
            die()
        return {}


if __name__ == "__main__":
    main()
