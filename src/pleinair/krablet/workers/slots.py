"""The slots of a worker: how many parts of claims it has in work at once, and where their functions run.

    start([part, ...]) --> one slot in all:    here, in the worker's own thread; SIGTERM interrupts the function
                       |-> several, function:  a thread per slot; at SIGTERM they are left behind
                       `-> async function:     a task per slot, all on one event loop in one thread; SIGTERM cancels them
    finished() <-- outcomes, in the order the parts end

A stage with slots of its own has those; the others share the rest. A slot never holds a connection.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pleinair.krablet.claims import Outcome
from pleinair.krablet.event_loops import run_event_loop
from pleinair.krablet.stages import Stage
from pleinair.krablet.workers.functions import Work, async_outcomes_of, build, is_actor, is_async, outcomes_of
from pleinair.krablet.workers.parts import Part

CANCEL_SECONDS = 5.0
"""How long cancelled functions may take to end before their rows are given back all the same."""
_SHARED = ""

Ended = list[Outcome] | BaseException
Finish = Callable[[Part, Ended], None]


class Stopped(BaseException):
    """Raised inside a worker function by SIGTERM. Not an Exception: a function that catches those must not keep it."""


class Slots:
    """The slots of one worker; all but `interrupt` are for the thread that works."""

    def __init__(self, functions: Mapping[str, Work], shared: int, own: Mapping[str, int]) -> None:
        """`functions` by stage label, `own` likewise; the stages not in it share `shared` slots. Actors are built here."""
        self._pool_of = {label: label if label in own else _SHARED for label in functions}
        sizes = {**own, _SHARED: shared}
        self._room = Counter({pool: sizes[pool] for pool in set(self._pool_of.values())})
        self.count = self._room.total()
        self._ended: queue.SimpleQueue[tuple[Part, Ended] | None] = queue.SimpleQueue()
        self._here = _Here(self._finish)
        self._threads = _Threads(self._finish)
        self._on_loop = {label for label, function in functions.items() if is_async(function)}
        self._loop = _EventLoop(self._finish) if self._on_loop else None
        self._calls: dict[str, Any] = {}
        self._actors: dict[str, Any] = {}
        try:
            for label, function in functions.items():
                self._calls[label] = self._ready(label, function)
        except BaseException:
            self.close()
            raise

    def _ready(self, label: str, function: Work) -> Any:
        """What to call: of an actor's class, an instance."""
        if is_actor(function):
            self._actors[label] = self._where_it_runs(label, build, function, label)
            return self._actors[label]
        return function

    def _where_it_runs(self, label: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call` returns: on the event loop for an async actor, which may open there what it awaits later."""
        if self._loop is not None and label in self._on_loop:
            return self._loop.run(_in_coroutine(call, *arguments))
        return call(*arguments)

    def room(self, stage: Stage) -> int:
        """How many parts of this stage could be started now."""
        return self._room[self._pool_of[stage.label]]

    def has_room(self, stage: Stage) -> bool:
        return self.room(stage) > 0

    @property
    def idle(self) -> bool:
        return self._room.total() == self.count

    def start(self, parts: Sequence[Part]) -> None:
        """Let a slot each work on these parts of one stage. Raises Stopped when SIGTERM came first or in the middle."""
        label = parts[0].stage.label
        self._room[self._pool_of[label]] -= len(parts)
        function = self._calls[label]
        if self._loop is not None and label in self._on_loop:
            self._loop.start(function, parts)
        elif self.count == 1:
            self._here.start(function, parts[0])
        else:
            self._threads.start(function, parts)

    def _finish(self, part: Part, ended: Ended) -> None:
        self._ended.put((part, ended))

    def finished(self, wait_seconds: float = 0.0) -> dict[Part, list[Outcome]]:
        """Parts that ended since the last call, waited for at most so long. Raises what a function may not survive."""
        found: dict[Part, list[Outcome]] = {}
        for part, ended in filter(None, self._queued(wait_seconds)):
            self._room[self._pool_of[part.stage.label]] += 1
            if isinstance(ended, BaseException):
                raise ended
            found[part] = ended
        return found

    def _queued(self, wait_seconds: float) -> Iterator[tuple[Part, Ended] | None]:
        with suppress(queue.Empty):
            yield self._ended.get(timeout=wait_seconds) if wait_seconds else self._ended.get_nowait()
            while True:
                yield self._ended.get_nowait()

    def interrupt(self) -> None:
        """For a signal handler in the working thread: end the wait for slots, and with Stopped the function that runs here."""
        self._ended.put(None)
        self._here.interrupt()

    def cancel(self) -> None:
        """End what can be ended: async functions. What the others still return is nobody's."""
        if self._loop is not None:
            self._loop.cancel()

    def close(self) -> None:
        """Close the actors and end the threads."""
        try:
            for label, actor in self._actors.items():
                if hasattr(actor, "close"):
                    self._where_it_runs(label, actor.close)
        finally:
            self._threads.close()
            if self._loop is not None:
                self._loop.close()


async def _in_coroutine(call: Callable[..., Any], *arguments: Any) -> Any:
    result = call(*arguments)
    return await result if inspect.isawaitable(result) else result


class _Here:
    """The one slot of a worker, in the thread that claims: no other thread costs anything."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._running = False
        self._stopped = False

    def start(self, function: Any, part: Part) -> None:
        self._running = True
        try:
            if self._stopped:
                raise Stopped
            outcomes = outcomes_of(function, part.claim.rows)
        finally:
            self._running = False
        self._finish(part, outcomes)

    def interrupt(self) -> None:
        self._stopped = True
        # Only the function is interrupted: a statement on its way to the server is let finish.
        if self._running:
            self._running = False
            raise Stopped


class _Threads:
    """As many threads as were ever busy at once. They are daemons: one that hangs does not keep the process from ending."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._waiting: queue.SimpleQueue[tuple[Any, Part] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def start(self, function: Any, parts: Sequence[Part]) -> None:
        for part in parts:
            self._waiting.put((function, part))
            if not self._idle.acquire(blocking=False):
                self._count += 1
                threading.Thread(target=self._run, name=f"pleinair-slot-{self._count}", daemon=True).start()

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            function, part = job
            try:
                ended: Ended = outcomes_of(function, part.claim.rows)
            except BaseException as error:
                ended = error
            self._idle.release()
            self._finish(part, ended)

    def close(self) -> None:
        for _ in range(self._count):
            self._waiting.put(None)


class _EventLoop:
    """One thread with an event loop, on which async functions run."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = threading.Event()
        self._thread = threading.Thread(
            target=lambda: run_event_loop(self._main()), name="pleinair-event-loop", daemon=True
        )
        self._thread.start()
        self._began.wait()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._began.set()
        await self._over.wait()

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """What a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def start(self, function: Any, parts: Sequence[Part]) -> None:
        self._loop.call_soon_threadsafe(self._begin, function, parts)

    def _begin(self, function: Any, parts: Sequence[Part]) -> None:
        for part in parts:
            task = asyncio.create_task(self._call(function, part))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(self, function: Any, part: Part) -> None:
        try:
            ended: Ended = await async_outcomes_of(function, part.claim.rows)
        except BaseException as error:
            ended = error
        self._finish(part, ended)

    def cancel(self) -> None:
        with suppress(TimeoutError):
            self.run(self._cancel_all(), CANCEL_SECONDS)

    async def _cancel_all(self) -> None:
        if tasks := tuple(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(CANCEL_SECONDS)
