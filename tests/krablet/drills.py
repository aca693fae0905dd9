"""What the fault drills share: rows whose every result is recorded, a line that can go dead, a clock that is wrong."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pleinair import krablet
from pleinair.krablet import Stage
from tests.krablet.conftest import Pictures

AUDIT = """
CREATE TABLE IF NOT EXISTS written (image_name text, value bigint);
TRUNCATE written;
CREATE OR REPLACE FUNCTION note_result() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO written VALUES (NEW.image_name, NEW.length); RETURN NEW; END $$;
CREATE TRIGGER note AFTER UPDATE ON images FOR EACH ROW
WHEN (OLD.length IS DISTINCT FROM NEW.length) EXECUTE FUNCTION note_result();
"""
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += AHEAD;
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *told) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (told) *told = precise.tv_sec;
    return precise.tv_sec;
}
"""


def number_each(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """A result that no second execution of the row gives."""
    return [{"length": 1 << 60 | random.getrandbits(60)} for _ in rows]


def audited(pictures: Pictures, lease_seconds: float, batch: int = 4) -> Stage:
    """A stage `measure` whose every written result is recorded beside the rows."""
    for shard in pictures.database.shards:
        shard.session.run(lambda connection: connection.execute(AUDIT))
    return pictures.table.stage(
        "measure", ready="length IS NULL", writes=["length"], batch=batch, lease_seconds=lease_seconds
    )


def assert_all_written_once(pictures: Pictures, names: list[str]) -> None:
    """No row is lost or doubled, every row has its result, and no result was ever written over by another."""
    rows = pictures.sql("SELECT image_name, length FROM images")
    assert sorted(name for name, _ in rows) == sorted(names)  # type: ignore[type-var]
    assert [name for name, value in rows if value is None] == []
    written = pictures.sql("SELECT image_name, value FROM written")
    assert sorted(written) == sorted(rows)  # type: ignore[type-var]


def wait_until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def done(pictures: Pictures) -> int:
    return pictures.table.count("length IS NOT NULL")


class Worker(threading.Thread):
    """`krablet.work` on one stage with connections of its own, until it is finished with."""

    def __init__(
        self, dsn: str, stage: str = "measure", function: Callable[..., list[dict[str, object]]] = number_each
    ) -> None:
        super().__init__()
        self._dsn, self._stage, self._function = dsn, stage, function
        self._told_to_end = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            with krablet.connect(self._dsn) as database:
                [stage] = [stage for stage in database.declared_stages() if stage.name == self._stage]
                krablet.work(stage, self._function, idle="wait", stop=self._told_to_end.is_set)
        except BaseException as failure:
            self._failure = failure

    def finish(self) -> None:
        self._told_to_end.set()
        self.join(60)
        assert not self.is_alive()
        assert self._failure is None, self._failure


@contextmanager
def working(workers: list[Worker]) -> Iterator[list[Worker]]:
    for worker in workers:
        worker.start()
    try:
        yield workers
    finally:
        for worker in workers:
            worker.finish()


class Line:
    """A TCP port in front of a server's Unix socket that can stop forwarding without closing anything."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._server = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.dsn = f"postgresql://pleinair@127.0.0.1:{port}{parts.path}?connect_timeout=2"
        self._flows: list[threading.Event] = []
        self._whole = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                flow = threading.Event()
                self._flows.append(flow)
                if self._whole:
                    flow.set()
                for here, there in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=(here, there, flow), daemon=True).start()

    def cut(self) -> None:
        """Nothing goes through any more, and nobody is told."""
        self._whole = False
        for flow in self._flows:
            flow.clear()

    def mend(self) -> None:
        """New connections go through; the old ones stay dead."""
        self._whole = True

    def deliver(self) -> None:
        """What was sent on the old ones arrives after all."""
        for flow in self._flows:
            flow.set()

    def close(self) -> None:
        self._listener.close()
        self.deliver()


def _pump(here: socket.socket, there: socket.socket, flow: threading.Event) -> None:
    with suppress(OSError):
        while data := here.recv(65536):
            flow.wait()
            there.sendall(data)
        flow.wait()
    for end in (here, there):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def shifted_clock(directory: Path, seconds: int) -> Path:
    """A library that, preloaded, makes a process believe that it is later."""
    source, library = directory / "clock.c", directory / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DAHEAD={seconds}", "-o", library, source, "-ldl"], check=True)
    return library
