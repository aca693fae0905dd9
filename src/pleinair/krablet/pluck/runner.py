"""The worker's side of the process that runs the function: started when needed, killed at a limit, replaced when dead.

call(rows) --> outcomes
    |  the process dies or is killed: a new one gets half of the rows, then the other half, until a row is alone
    |  and fails with the reason; the rows beside it are done
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from pleinair.krablet.pluck.home import Home
from pleinair.krablet.pluck.jobs import JobSpec, Limits
from pleinair.krablet.pluck.source import Source
from pleinair.krablet.pluck.wire import Failure, FrameReader, Outcome, decode_outcomes, send_frame, storable
from pleinair.records.errors import ConfigError, RefusedError

LONGEST_OUTPUT_BYTES = 6000
_TICK_SECONDS = 0.1


class CallAbortedError(Exception):
    """The call was ended because its results are no longer wanted: cancelled, lost, or the worker stops."""


class _DiedError(Exception):
    """The process ended or was ended in the middle of a call."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass(frozen=True)
class Confinement:
    """How function processes run: as which user, by which Python, with which environment."""

    user: str | None = None
    """None: the worker's own user. Only root can give another."""
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    path: Sequence[str] = ()
    """Where modules are looked for, after pleinair itself."""

    def command(self, *arguments: str) -> dict[str, Any]:
        """Arguments for Popen: a clean environment, a session of its own, the user's rights and no others."""
        account = None if self.user is None else _account(self.user)
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, self.path)])
        base = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONPATH": path,
            "PYTHONFAULTHANDLER": "1",
        }
        return {
            "args": [self.python, "-P", *arguments],
            "env": {**base, **self.environment},
            "user": None if account is None else account.pw_uid,
            "group": None if account is None else account.pw_gid,
            "extra_groups": None if account is None else [],
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
        }

    def check(self) -> None:
        """Returns if function processes can start. Raises ConfigError with the remedy."""
        try:
            probe = self.command("-c", "import pleinair.krablet.pluck.child, cloudpickle")
            ended = subprocess.run(**probe, capture_output=True, text=True, cwd="/", check=False)
        except OSError as error:
            problem = str(error)
        else:
            problem = ended.stderr.strip().rpartition("\n")[2] if ended.returncode else ""
        if problem:
            raise ConfigError(
                f"the user {self.user or 'of this worker'} cannot run functions with {self.python} ({problem}): "
                "give a Python and packages that user can read, or name another user"
            )


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            f"there is no user {user!r} on this machine to run functions as: name one that exists"
        ) from None


class Runner:
    """Runs one job's function in a process of its own. For one thread."""

    def __init__(
        self, spec: JobSpec, source: Source, function: bytes, limits: Limits, confinement: Confinement
    ) -> None:
        self._spec = spec
        self._limits = limits
        self._source = source
        self._function = function
        self._confinement = confinement
        self._process: _Process | None = None

    def start(self, aborted: Callable[[], bool]) -> None:
        """Load the function. Raises RefusedError if it cannot be loaded here, CallAbortedError if told to stop."""
        if self._process is None:
            self._process = _Process(self._confinement)
            try:
                self._load(self._process, aborted)
            except BaseException:
                self.close()
                raise

    def _load(self, process: _Process, aborted: Callable[[], bool]) -> None:
        limits = self._limits
        setup = {
            "python": self._spec.python,
            "packages": dict(self._spec.packages),
            "limits": asdict(limits),
            "columns": dict(self._source.columns),
            "output": dict(self._spec.output.columns),
            "single": self._spec.output.single,
            "arrow": self._spec.arrow,
        }
        try:
            process.send(json.dumps(setup).encode(), self._function)
            answer = process.answer(limits.start_seconds, aborted)
        except _DiedError as died:
            raise RefusedError(f"its function's process ended while it was loaded: {died.failure}") from died
        if "ready" in answer:
            return
        failed = answer.get("failed")
        reason = f"{failed['exception']}: {failed['message']}" if isinstance(failed, dict) else answer.get("refused")
        raise RefusedError(storable(f"its function cannot be loaded: {reason}"[:2000]))

    def call(self, rows: list[dict[str, Any]], aborted: Callable[[], bool]) -> list[Outcome]:
        """What becomes of `rows`. Raises CallAbortedError, and RefusedError if the function cannot be loaded again."""
        try:
            self.start(aborted)
            return self._ask(rows, aborted)
        except _DiedError as died:
            self.close()
            if len(rows) == 1:
                return [died.failure]
        except CallAbortedError:
            self.close()
            raise
        half = len(rows) // 2
        return self.call(rows[:half], aborted) + self.call(rows[half:], aborted)

    def _ask(self, rows: list[dict[str, Any]], aborted: Callable[[], bool]) -> list[Outcome]:
        process = self._process
        assert process is not None
        process.send(pickle.dumps(rows, protocol=5))
        answer = process.answer(self._limits.call_seconds, aborted)
        try:
            return decode_outcomes(answer, len(rows), len(self._spec.output.columns))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _DiedError(
                Failure("ProtocolError", storable(f"the function's process answered nonsense: {error}"))
            ) from error

    def close(self) -> None:
        """End the process, and what it started in its session."""
        if self._process is not None:
            self._process.end()
            self._process = None


class _Process:
    def __init__(self, confinement: Confinement) -> None:
        started = confinement.command("-m", "pleinair.krablet.pluck.child", "FD", str(os.getpid()))
        self._home = Home(None if started["user"] is None else (started["user"], started["group"]))
        ours, theirs = socket.socketpair()
        with theirs:
            started["args"][-2] = str(theirs.fileno())
            started["env"] = {"HOME": self._home.path, "TMPDIR": self._home.path, **started["env"]}
            self._process = subprocess.Popen(
                **started,
                pass_fds=[theirs.fileno()],
                cwd=self._home.path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self._link = ours
        self._frames = FrameReader(ours)
        self._printed = bytearray()
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=_keep_end, args=(self._process.stdout, self._printed), daemon=True)
        self._reader.start()

    def send(self, *frames: bytes) -> None:
        self._link.settimeout(60.0)
        try:
            for frame in frames:
                send_frame(self._link, frame)
        except OSError as error:
            raise _DiedError(self._why_dead()) from error

    def answer(self, seconds: float, aborted: Callable[[], bool]) -> dict[str, Any]:
        """The next message. Raises _DiedError when the process ends or takes longer, CallAbortedError."""
        deadline = time.monotonic() + seconds
        self._link.settimeout(_TICK_SECONDS)
        while True:
            if aborted():
                raise CallAbortedError
            if time.monotonic() > deadline:
                raise _DiedError(
                    Failure("TimeoutError", f"the call took longer than {seconds:g} seconds and was ended")
                )
            with suppress(TimeoutError):
                return self._read()

    def _read(self) -> dict[str, Any]:
        try:
            frame = self._frames.read()
            message = None if frame is None else json.loads(frame)
        except ValueError as error:
            raise _DiedError(Failure("ProtocolError", f"the function's process answered nonsense: {error}")) from error
        except ConnectionResetError:
            message = None
        if not isinstance(message, dict):
            raise _DiedError(self._why_dead())
        return message

    def _why_dead(self) -> Failure:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        self._reader.join(1.0)
        printed = storable(bytes(self._printed).decode("utf-8", "replace"))
        code = self._process.poll()
        if code is None:
            return Failure("ProcessDied", "the function's process closed its connection", printed)
        if code >= 0:
            return Failure("ProcessDied", f"the function's process ended by itself with exit status {code}", printed)
        name = signal.Signals(-code).name
        hints = {"SIGKILL": " (out of memory?)", "SIGXCPU": " (it used more processor time than it may)"}
        return Failure("ProcessDied", f"the function's process was ended by {name}{hints.get(name, '')}", printed)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._link.close()
        self._reader.join(1.0)
        self._home.remove()


def _keep_end(stream: IO[bytes], end: bytearray) -> None:
    """Drain what the function prints, so that it never waits for us, and keep the end of it for a crash report."""
    with stream:
        for part in iter(functools.partial(stream.read1, 8192), b""):  # type: ignore[attr-defined]
            end += part
            del end[:-LONGEST_OUTPUT_BYTES]
