"""What the benchmarks of the warehouse share: a durable server of their own, rounds of processes, and their results."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from pleinair import krablet
from pleinair.krablet import Database

Result = dict[str, Any]
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def temporary_server() -> Iterator[Database]:
    """An embedded server with its own settings: commits wait for the disk."""
    directory = Path(tempfile.mkdtemp(prefix="pleinair-bench-"))
    directory.chmod(0o755)
    try:
        with krablet.connect(directory=directory / "postgres") as database:
            yield database
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def together(count: int, body: Callable[..., int], *arguments: object) -> tuple[int, float]:
    """Run `body(*arguments)` in `count` processes that begin at one moment: the sum of what they return, and seconds.

    Imports and first connections are not in the time: `body` calls the `begin` it is given first when it is ready.
    """
    barrier, queue = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [SPAWN.Process(target=_entry, args=(barrier, queue, body, arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    answers = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(done for done, _, _ in answers), max(end for _, _, end in answers) - min(at for _, at, _ in answers)


def _entry(barrier: Barrier, queue: Any, body: Callable[..., int], arguments: Sequence[object]) -> None:
    began: list[float] = []

    def begin() -> None:
        barrier.wait()
        began.append(time.monotonic())

    done = body(begin, *arguments)
    queue.put((done, began[0], time.monotonic()))


def interleaved(rounds: int, runs: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each run once per round, in turn, so that a busy moment hits all alike."""
    values: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            values[name].append(run())
        shown = ", ".join(f"{name} {of_run[-1]:.0f}" for name, of_run in values.items())
        print(f"  round {number + 1}: {shown}", flush=True)
    return values


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def result(name: str, value: float, unit: str, peer: str = "", of_peer: float | None = None) -> Result:
    """One figure, as it goes into results.json."""
    return {"name": name, "value": round(value, 4), "unit": unit, "peer": peer, "ratio": of_peer and round(of_peer, 3)}


def processor_seconds(pid: int) -> float:
    """Processor time of another process so far, system calls included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """The machine in a few words."""
    model = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(names) or os.cpu_count()} x {names[0] if names else model}, {memory:.0f} GiB"


def commit(root: Path = Path(__file__).parents[2]) -> str:
    """The commit that was measured, with `+` where code beside it was changed or new; pages and figures are no code."""
    told = _git(root, "rev-parse", "--short", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", ".", ":!docs", ":!*.md", ":!*results.json")
    return f"{told}{'+' if changed else ''}" if told else "unknown"


def _git(root: Path, *words: str) -> str:
    told = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return told.stdout.strip()
