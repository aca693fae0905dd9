"""Running trainings side by side, each a process of its own; those whose result is there are not run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pleinair.ablation.matrix import Places
from pleinair.ablation.trainings import JOB, Job, read_result, train_job
from pleinair.cluster.processes import end_with_parent
from pleinair.config import to_document
from pleinair.records.errors import PleinairError

_POLL_SECONDS = 0.5
_ENDING_SECONDS = 30.0
"""For a training's last checkpoint; what an end by force costs is what came after the one before."""
Progress = Callable[[float, float, str], None]


def total_steps(job: Job) -> int:
    """Steps of all legs of a job."""
    steady = [before for before, _ in job.horizons().values()]
    return steady[-1] + sum(decay for _, decay in job.horizons().values())


def run_jobs(
    jobs: Sequence[Job], places: Places, weights: Mapping[str, float], num_processes: int, on_progress: Progress
) -> None:
    """Run the jobs that have no result, so many processes at a time; with 0, one after the other in this process.

    `weights` is the work of a job by its digest, for progress. On Ctrl-C the processes are ended, and what they did stays.
    Raises PleinairError when a job fails, after the others are done.
    """
    todo = [job for job in {job.digest: job for job in jobs}.values() if read_result(places.of(job)) is None]
    whole, finished = sum(weights[job.digest] for job in todo), 0.0
    if num_processes == 0:
        for job in todo:
            train_job(job, _written(job, places.of(job)))
            finished += weights[job.digest]
            on_progress(finished, whole, job.arm)
        return
    failed = _run_side_by_side(todo, places, weights, num_processes, on_progress)
    if failed:
        raise PleinairError(f"{len(failed)} trainings failed, the first in {failed[0]}: see {failed[0] / 'log.txt'}")


def _run_side_by_side(
    todo: list[Job], places: Places, weights: Mapping[str, float], num_processes: int, on_progress: Progress
) -> list[Path]:
    """Run jobs as processes; the directories of those that failed."""
    whole, running, failed = sum(weights[job.digest] for job in todo), dict[str, _Running](), list[Path]()
    finished = 0.0
    with _all_ended(running):
        while todo or running:
            while todo and len(running) < num_processes:
                job = todo.pop(0)
                running[job.digest] = _Running(job, places.of(job))
            time.sleep(_POLL_SECONDS)
            for digest, one in list(running.items()):
                if one.process.poll() is not None:
                    del running[digest]
                    finished += weights[digest]
                    if read_result(one.directory) is None:
                        failed.append(one.directory)
            done = finished + sum(weights[digest] * one.share_done() for digest, one in running.items())
            on_progress(done, whole, f"{len(todo) + len(running)} trainings left")
    return failed


def _written(job: Job, directory: Path) -> Path:
    """The job's directory, with its settings in it."""
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / f".{JOB}.partial"
    staging.write_text(json.dumps(to_document(job), indent=1) + "\n")
    os.replace(staging, directory / JOB)
    return directory


class _Running:
    """A training in a process of its own, one thread for what torch starts by itself."""

    def __init__(self, job: Job, directory: Path) -> None:
        self.job, self.directory = job, _written(job, directory)
        with (directory / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pleinair.ablation.trainings", str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(job.engine.num_threads)},
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGTERM),
            )

    def share_done(self) -> float:
        """Share of its steps that are done."""
        lines = sum(path.read_bytes().count(b"\n") for path in self.directory.glob("*/steps.jsonl"))
        return min(1.0, lines / total_steps(self.job))


@contextmanager
def _all_ended(running: Mapping[str, _Running]) -> Iterator[None]:
    """Whatever ends the block, no training goes on without it."""
    try:
        yield
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            try:
                one.process.wait(_ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
