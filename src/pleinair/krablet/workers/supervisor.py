"""Worker processes for a set of stages, supervised until the stages are drained.

The supervisor looks at the depth of all stages in one snapshot: a row on its way from one stage to the next is seen in
exactly one of them, so "nothing pending anywhere" is true when it is said. Rows that failed `give_up_after` times are
not waited for: they stay in their queue, are reported as stuck, and the next run tries them again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from psycopg import IsolationLevel

from pleinair.krablet.connections import Connection
from pleinair.krablet.database import Database
from pleinair.krablet.moves import resume_moves
from pleinair.krablet.places import opener
from pleinair.krablet.shards import Shards
from pleinair.krablet.stages import STUCK_AFTER, Depth, Stage, StageSpec, stage_depth
from pleinair.krablet.tables import load_stage, load_table
from pleinair.krablet.workers.loop import PATIENCE_SECONDS
from pleinair.krablet.workers.memory import check_ceiling
from pleinair.krablet.workers.processes import Pool
from pleinair.krablet.workers.progress import Progress, RunSummary, Tally
from pleinair.records.errors import ConfigError

COUNTING_SHARE = 0.05  # of the time, at most, is spent counting what is left


def run_workers(
    database: str | Database,
    stages: Sequence[StageSpec],
    *,
    processes: int = 2,
    slots: int = 1,
    memory_mb: float | None = None,
    idle: str = "exit",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    give_up_after: int = STUCK_AFTER,
    interval_seconds: float = 1.0,
    grace_seconds: float = 10.0,
    max_deaths: int = 12,
    patience_seconds: float = PATIENCE_SECONDS,
) -> RunSummary:
    """Run worker processes until nothing is pending in `stages`, with idle="wait" until `stop()`; what they did.

    Each process works on every stage in turn, on `slots` batches at once (a stage whose spec gives it slots has those
    beside). One with more than `memory_mb` (MiB, resident) is replaced after its batch, and ended in the middle of it
    above 1.5 times that. Given a Database whose embedded server dies, it is started again.
    `on_progress` is called about once per `interval_seconds`. Ctrl-C and `stop()` end the workers with SIGTERM (rows in
    work are given back), and SIGKILL after `grace_seconds`. Raises DatabaseError when `max_deaths` workers in a row die
    without completing a row, when a function cannot be imported or an actor built, or when Postgres stays away for
    `patience_seconds`.
    """
    for name, number in (("processes", processes), ("slots", slots)):
        if number < 1:
            raise ConfigError(f"{name} is {number}: give 1 or more")
    if idle not in ("exit", "wait"):
        raise ConfigError(f"idle is {idle!r}: use 'exit' or 'wait'")
    check_ceiling(memory_mb)
    shards = _shards(database, patience_seconds)
    try:
        opened = [load_stage(load_table(shards, spec.table), spec.stage) for spec in stages]
        for stage in opened:
            stage.retry()
        tally = Tally(opened)
        job = {
            "dsn": shards.catalog.dsn,
            "home": None if isinstance(database, str) or database.directory is None else str(database.directory),
            "secrets": {} if isinstance(database, str) else database.secrets,
            "stages": [asdict(spec) for spec in stages],
            "path": sys.path,
            "slots": slots,
            "memory_mb": memory_mb,
            "patience_seconds": patience_seconds,
        }
        order = json.dumps(job).encode() + b"\n"
        with Pool(order, processes, grace_seconds, max_deaths, memory_mb, tally.add) as pool:
            _supervise(shards, opened, pool, tally, on_progress, stop, give_up_after, interval_seconds, idle == "wait")
        stuck = {stage.label: stage.stuck(attempts=give_up_after) for stage in opened}
        return tally.summary(stuck, pool.deaths, pool.retired)
    finally:
        shards.close()


def _shards(database: str | Database, patience_seconds: float) -> Shards:
    if isinstance(database, Database):
        return database.shards.fresh(patience_seconds)
    open_place = opener(
        database, None, attach=None, patience_seconds=patience_seconds, application="pleinair supervisor"
    )
    return Shards(open_place(database), open_place, resume_moves)


def _supervise(
    shards: Shards,
    stages: Sequence[Stage],
    pool: Pool,
    tally: Tally,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], bool],
    give_up_after: int,
    interval_seconds: float,
    wait: bool,
) -> None:
    while True:
        depths, counting_seconds = _depths(shards, stages, give_up_after)
        on_progress(tally.progress(depths, pool.pids, pool.deaths))
        if stop() or not (wait or any(depth.pending for depth in depths) or shards.in_transit()):
            return
        pool.attend(max(interval_seconds, counting_seconds / COUNTING_SHARE))


def _depths(shards: Shards, stages: Sequence[Stage], give_up_after: int) -> tuple[list[Depth], float]:
    """The depth of every stage, of each shard in one snapshot, and how long counting took (outages not counted)."""
    shards.reload()
    counted = shards.each(lambda connection: _shard_depths(connection, stages, give_up_after))
    depths = [sum(of_stage, Depth()) for of_stage in zip(*(depths for depths, _ in counted), strict=True)]
    return depths, sum(seconds for _, seconds in counted)


def _shard_depths(connection: Connection, stages: Sequence[Stage], give_up_after: int) -> tuple[list[Depth], float]:
    began = time.monotonic()
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    with connection.transaction():
        depths = [stage_depth(connection, stage, give_up_after) for stage in stages]
    connection.isolation_level = None
    return depths, time.monotonic() - began
