"""The process that runs a job's function: `python -m pleinair.krablet.pluck.child FD`.

It has no connection, no key and no secret in its environment; it gets rows and gives outcomes over FD. It checks what
the function needs, limits itself, and only then unpickles. What goes wrong in here is at worst the end of this process.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import json
import os
import pickle
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pleinair.krablet.column_types import column_type, encode_value
from pleinair.krablet.pluck.function import check_runs_here
from pleinair.krablet.pluck.wire import Failure, FrameReader, Outcome, encode_outcomes, failure_of, send_frame
from pleinair.records.errors import QueueError, RefusedError

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_the_worker(int(arguments[1]))
    link = socket.socket(fileno=int(arguments[0]))
    frames = FrameReader(link)
    setup = json.loads(frames.read() or b"{}")
    try:
        check_runs_here(setup["python"], setup["packages"])
    except RefusedError as error:
        _tell(link, {"refused": str(error)})
        return 0
    data = frames.read() or b""
    _limit(setup["limits"])
    try:
        function = load(data)
    except BaseException as error:
        _tell(link, {"failed": vars(failure_of(error))})
        return 0
    _tell(link, {"ready": True})
    caller = _Caller(function, setup["columns"], setup["output"], setup["single"], setup["arrow"])
    while (frame := frames.read()) is not None:
        _allow_cpu(setup["limits"]["cpu_seconds"])
        send_frame(link, encode_outcomes(caller.outcomes(pickle.loads(frame))))
    return 0


def die_with_the_worker(worker: int) -> None:
    """Linux ends this process when the worker's ends, whatever the function does; and no program it starts gains rights."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != worker:
            os._exit(1)


def _limit(limits: Mapping[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
    ):
        if value is not None:
            hard = resource.getrlimit(kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))
    _allow_cpu(limits["cpu_seconds"])


def _allow_cpu(seconds: int | None) -> None:
    """SIGXCPU ends this process once it has used this much more processor time than it has now."""
    if seconds is not None:
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + 1, hard))


def load(data: bytes) -> Callable[[Any], Any]:
    """Unpickle the function; an actor's class is made an actor."""
    function = pickle.loads(data)
    base = function.func if isinstance(function, functools.partial) else function
    made = function() if inspect.isclass(base) else function
    if not callable(made):
        raise QueueError(f"{type(made).__name__} cannot be called: give the actor a method __call__(self, batch)")
    return made  # type: ignore[no-any-return]


class _Caller:
    """Calls the function and makes outcomes of what it returns, halving what raises until the row is alone."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        columns: Mapping[str, str],
        output: Mapping[str, str],
        single: bool,
        arrow: bool,
    ) -> None:
        self._function = function
        self._columns = columns
        self._output = {name: column_type(sql_type) for name, sql_type in output.items()}
        self._single = single
        self._arrow = arrow
        self._loop: asyncio.AbstractEventLoop | None = None

    def outcomes(self, rows: list[dict[str, Any]]) -> list[Outcome]:
        try:
            results = _as_list(self._call(rows))
            if len(results) != len(rows):
                raise QueueError(
                    f"the function returned {len(results)} results for {len(rows)} rows: "
                    "return one result (or exception) per row, in order"
                )
        except BaseException as error:
            if len(rows) == 1:
                return [failure_of(error)]
            half = len(rows) // 2
            return self.outcomes(rows[:half]) + self.outcomes(rows[half:])
        return [self._encoded(result) for result in results]

    def _call(self, rows: list[dict[str, Any]]) -> Any:
        result = self._function(self._as_arrow(rows) if self._arrow else rows)
        if inspect.isawaitable(result):
            self._loop = self._loop or asyncio.new_event_loop()
            return self._loop.run_until_complete(_awaited(result))
        return result

    def _as_arrow(self, rows: list[dict[str, Any]]) -> Any:
        import pyarrow as pa

        from pleinair.krablet.arrow import arrow_type

        schema = pa.schema([(name, arrow_type(sql_type)) for name, sql_type in self._columns.items()])
        return pa.RecordBatch.from_pylist(rows, schema=schema)

    def _encoded(self, result: Any) -> Outcome:
        if isinstance(result, BaseException):
            return failure_of(result)
        try:
            given = dict(zip(self._output, [result], strict=True)) if self._single else result
            if not isinstance(given, Mapping) or given.keys() != self._output.keys():
                got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
                raise QueueError(f"a result is {got}: return a dict with exactly {sorted(self._output)} for each row")
            return [encode_value(f"output {name}", type_, given[name]) for name, type_ in self._output.items()]
        except QueueError as error:
            return Failure("QueueError", str(error))


async def _awaited(result: Any) -> Any:
    return await result


def _as_list(results: Any) -> list[Any]:
    """A list of what an Arrow array, batch or table holds, or of any other iterable."""
    return results.to_pylist() if hasattr(results, "to_pylist") else list(results)


def _tell(link: socket.socket, message: Mapping[str, object]) -> None:
    send_frame(link, json.dumps(message).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
