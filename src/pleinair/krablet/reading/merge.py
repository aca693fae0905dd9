"""Sorted batches of many shards into one sorted stream, without holding more than a batch of each.

    heads     shard 0: 1 4 7 | ...      shard 1: 2 3 | ...      shard 2: 5 6 9 | ...
    cut       3: behind it shard 1 may still send something smaller than the other heads' rest
    handed    1 2 3, then shard 1's next batch becomes its head

Each round sorts the heads together and hands out everything up to the first shard whose head ends there. Ties go by
shard, then by place. The order is Postgres': NaN above all numbers, text by its bytes (the scan asks for COLLATE "C").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pleinair.krablet.reading.requests import Order, ReadError

Places = npt.NDArray[np.int64]


def merged(shards: Sequence[Iterator[pa.RecordBatch]], orders: Sequence[Order]) -> Iterator[pa.RecordBatch]:
    """One stream of batches in the order given. Raises ReadError if a shard turns out to be sorted otherwise."""
    heads = {place: batch for place, shard in enumerate(shards) if (batch := next(shard, None)) is not None}
    while heads:
        together = pa.Table.from_batches(heads.values()).combine_chunks()
        sizes = [head.num_rows for head in heads.values()]
        positions = sort_indices(together, orders)
        owners = np.repeat(list(heads), sizes)[positions]
        last_of_each = np.cumsum(sizes) - 1
        cut = int(np.flatnonzero(np.isin(positions, last_of_each))[0]) + 1
        yield from together.take(pa.array(positions[:cut])).to_batches()
        for place in list(heads):
            _check_sorted(positions[owners == place], place)
            rest = heads[place].slice(int((owners[:cut] == place).sum()))
            following = rest if rest.num_rows else next(shards[place], None)
            if following is None:
                del heads[place]
            else:
                heads[place] = following


def _check_sorted(positions: Places, shard: int) -> None:
    if (np.diff(positions) < 0).any():
        raise ReadError(
            f"shard number {shard} sorts otherwise than the first (another collation?): create its database with "
            "the locale of the others, or read without order_by"
        )


def sorted_table(table: pa.Table, orders: Sequence[Order]) -> pa.Table:
    return table.take(pa.array(sort_indices(table, orders)))


def sort_indices(table: pa.Table, orders: Sequence[Order]) -> Places:
    """The places of the rows in order; rows that tie keep their order."""
    keys: dict[str, pa.Array | pa.ChunkedArray] = {}
    directions: list[tuple[str, str]] = []
    for number, order in enumerate(orders):
        for kind, values, descending in _sort_keys(table[order.column], order):
            name = f"{kind}_{number}"
            keys[name] = values
            directions.append((name, "descending" if descending else "ascending"))
    keys["place"] = pa.array(np.arange(table.num_rows))
    places: Places = pc.sort_indices(pa.table(keys), [*directions, ("place", "ascending")]).to_numpy()
    return places.astype(np.int64, copy=False)


def _sort_keys(column: pa.ChunkedArray, order: Order) -> Iterator[tuple[str, pa.ChunkedArray, bool]]:
    """Arrow sorts NULL and NaN to the end in both directions; keys of their own put them where Postgres does."""
    if column.null_count:
        yield "null", pc.is_null(column).cast(pa.int8()), order.nulls_first
    if pa.types.is_floating(column.type):
        is_nan = pc.fill_null(pc.is_nan(column), False)
        yield "nan", is_nan.cast(pa.int8()), order.descending
        column = pc.if_else(is_nan, pa.scalar(0, column.type), column)
    yield "value", column, order.descending
