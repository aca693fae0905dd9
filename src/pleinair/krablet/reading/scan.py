"""Reading all shards as one: scans, rows by key, and a person's SQL.

    with ReadPools([dsn, dsn]) as pools:
        for batch in scan(pools, ScanRequest(table="images", where="contains_text", order_by="length DESC", limit=100)):
            ...

    request -> plan on the first shard -> a thread per shard -> as they come | merged by order | aggregates combined

Nothing runs before the first batch is asked for, but the request is checked, so that `schema` is known. Shards are
read at slightly different moments: no snapshot spans them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pleinair.krablet.closing import Closing
from pleinair.krablet.reading.aggregates import Groups
from pleinair.krablet.reading.copy_binary import arrow_schema
from pleinair.krablet.reading.copy_stream import BATCH_ROWS, ShardQuery, Wire, reading
from pleinair.krablet.reading.fan_out import FanOut
from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.merge import merged, sorted_table
from pleinair.krablet.reading.ownership import PAUSE_SECONDS, Agreement, SlotPlaces, every_slot_once, holds_keys
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.requests import GetRequest, MovingError, ReadError, ScanRequest, SqlRequest
from pleinair.krablet.reading.scan_plan import (
    GetPlan,
    ScanPlan,
    TableInfo,
    plan_get,
    plan_keys,
    plan_scan,
    plan_sql,
    table_info,
)


class BatchStream(Closing):
    """Arrow batches of one schema. Closing it, or leaving its `with` block, ends the queries on all shards."""

    def __init__(self, schema: pa.Schema, batches: Generator[pa.RecordBatch, None, None], run: Run) -> None:
        self.schema = schema
        self.run = run
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def close(self) -> None:
        self.run.stop.set()
        self._batches.close()

    def to_table(self) -> pa.Table:
        """All rows, in memory."""
        return pa.Table.from_batches(list(self), self.schema)


def scan(pools: ReadPools, request: ScanRequest, run: Run | None = None) -> BatchStream:
    """The rows of all shards that match. Raises ReadError, LimitError, or UnreachableError naming the shard."""
    run = Run() if run is None else run
    with _planning(pools, run) as wire:
        plan = plan_scan(wire, request)
    return _stream(pools, plan, run)


def sql(pools: ReadPools, request: SqlRequest, run: Run | None = None) -> BatchStream:
    """What one SELECT gives: anything on one shard; on several, filtered rows of one table, one shard after another."""
    run = Run() if run is None else run
    with _planning(pools, run) as wire:
        plan = plan_sql(wire, request, len(pools.shards))
    return _stream(pools, plan, run)


def get(pools: ReadPools, request: GetRequest, run: Run | None = None, *, places: SlotPlaces | None = None) -> pa.Table:
    """The rows with these keys in the order asked; a key that does not exist gives no row, one asked twice gives two.

    Each key is asked for on the shard that owns its slot, also while slots move; servers that are no shards of one
    warehouse are all asked for all. `places` remembers the slots from one call to the next.
    """
    run, places = run or Run(), places or SlotPlaces()
    deadline = time.monotonic() + pools.moving_seconds
    while True:
        with pools.admitted(run):
            with reading(pools.shards[0], run) as wire:
                info = table_info(wire, request.table)
                routed = places.route(pools, plan_keys(info, request), run)
                plan = plan_get(wire, request, info, routed)
            try:
                return _in_order_asked(_got(pools, plan, routed, run.again()), plan, request)
            except MovingError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_SECONDS)
            places.learn(pools, run)


def _got(pools: ReadPools, plan: GetPlan, routed: Mapping[int, list[Any]], run: Run) -> pa.Table:
    asked = list(plan.statements)
    queries = [ShardQuery(pools.shards[place], plan.statements[place]) for place in asked]
    judge = holds_keys({number: routed.get(place, ()) for number, place in enumerate(asked)})
    with FanOut(queries, plan.fields, run, Agreement(len(asked), judge, run, 0.0)) as fan:
        return pa.Table.from_batches(list(run.counted(fan.batches())), arrow_schema(plan.fields))


def describe_table(pools: ReadPools, table: str) -> TableInfo:
    """The columns of a table, as the first shard has them."""
    with _planning(pools, Run()) as wire:
        return table_info(wire, table)


@contextmanager
def _planning(pools: ReadPools, run: Run) -> Iterator[Wire]:
    with pools.admitted(run), reading(pools.shards[0], run) as wire:
        yield wire


def _in_order_asked(found: pa.Table, plan: GetPlan, request: GetRequest) -> pa.Table:
    column = found[plan.key]
    try:
        asked = pa.array(plan.keys, column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ReadError(f"the keys do not fit {request.table}.{plan.key}: {error}") from error
    places = pc.drop_null(pc.index_in(asked, column.combine_chunks()))
    return found.take(places)


def _stream(pools: ReadPools, plan: ScanPlan, run: Run) -> BatchStream:
    schema = arrow_schema(plan.fields)
    if plan.aggregates:
        schema = Groups(schema, plan.num_groups, plan.aggregates, run).schema
    visible = pa.schema([field for field in schema if field.name not in plan.hidden])
    return BatchStream(visible, _batches(pools, plan, run), run)


def _batches(pools: ReadPools, plan: ScanPlan, run: Run) -> Generator[pa.RecordBatch, None, None]:
    queries = [ShardQuery(pool, plan.statement) for pool in pools.shards]
    together = Agreement(len(queries), every_slot_once, run, pools.moving_seconds) if pools.checked else None
    with pools.admitted(run), FanOut(queries, plan.fields, run, together) as fan:
        if plan.aggregates:
            batches = _aggregated(fan, plan, run)
        elif plan.orders:
            batches = merged(fan.per_shard(), plan.orders)
        else:
            batches = fan.batches()
        for batch in run.counted(_limited(batches, plan.limit)):
            yield batch.drop_columns(list(plan.hidden)) if plan.hidden else batch


def _aggregated(fan: FanOut, plan: ScanPlan, run: Run) -> Iterator[pa.RecordBatch]:
    groups = Groups(arrow_schema(plan.fields), plan.num_groups, plan.aggregates, run)
    groups.add(fan.batches())
    table = groups.table()
    if plan.orders:
        table = sorted_table(table, plan.orders)
    yield from table.to_batches(max_chunksize=BATCH_ROWS)


def _limited(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """Each shard gives up to `limit` rows itself."""
    left = limit
    for batch in batches:
        if left is None:
            yield batch
            continue
        if left > 0:
            yield batch.slice(0, left)
        left -= min(left, batch.num_rows)
        if left == 0 and limit is not None and limit > BATCH_ROWS:
            return  # the shards are cut off; below, they are at their end, and read to it their connections are kept
