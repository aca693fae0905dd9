"""The ranks of one attempt as processes: started together, each with its log, and none that outlives its launcher."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
_POLL_SECONDS = 0.02


def end_with_parent(how: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """A `preexec_fn` that ends the child, however its parent dies. The parent's thread that starts it must live on.

    None where the system cannot do it (only Linux can).
    """
    if sys.platform != "linux":
        return None
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def between_fork_and_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return between_fork_and_exec


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RankGroup:
    """The running ranks of one attempt. Each leads a process group of its own, so that what it started ends with it."""

    def __init__(self, command: Sequence[str], num_ranks: int, directory: Path, environment: Mapping[str, str]) -> None:
        """Start them; `environment` is added to ours, and each gets RANK, LOCAL_RANK, WORLD_SIZE and a meeting place."""
        directory.mkdir(parents=True, exist_ok=True)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_ranks))} if num_ranks > 1 else {}
        self.logs = [directory / f"rank-{rank}.log" for rank in range(num_ranks)]
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, path in enumerate(self.logs):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_ranks)}
                variables = {**threads, **os.environ, **meeting, **own, **environment}
                with path.open("wb") as log:
                    self.processes.append(_start(command, log.fileno(), variables))
        except BaseException:
            self.end(0.0)
            raise

    def exit_codes(self) -> dict[int, int]:
        """Of the ranks that have ended."""
        codes = {rank: process.poll() for rank, process in enumerate(self.processes)}
        return {rank: code for rank, code in codes.items() if code is not None}

    def running(self) -> list[int]:
        """Ranks that have not ended."""
        return [rank for rank, process in enumerate(self.processes) if process.poll() is None]

    def send(self, what: signal.Signals) -> None:
        """Send a signal to every rank that runs (not to its children: a rank stops them in its own way)."""
        for rank in self.running():
            with suppress(ProcessLookupError):
                self.processes[rank].send_signal(what)

    def end(self, grace_seconds: float) -> None:
        """SIGTERM, and after the grace SIGKILL to whole process groups; returns when every rank is gone."""
        if grace_seconds > 0:
            self.send(signal.SIGTERM)
            self.wait(grace_seconds)
        for process in self.processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def wait(self, seconds: float) -> bool:
        """Wait until all have ended, at most so long; whether they have."""
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def can_be_asked(self, rank: int) -> bool:
        """Whether a rank catches SIGUSR1, which would end it otherwise."""
        caught = _status(self.processes[rank].pid).get("SigCgt", "0")
        return bool(int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)

    def state(self, rank: int) -> str:
        """The system's word for what the process does, such as `T (stopped)`; `gone` when it is."""
        return _status(self.processes[rank].pid).get("State", "gone")


def _start(command: Sequence[str], log: int, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=variables,
        start_new_session=True,
        preexec_fn=end_with_parent(),
    )


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
