"""How fast a mix of a million pictures is chosen and written, and in how much memory.

Rows are made up, batch by batch, as the warehouse would stream them: a key, a cluster of 60,000 under three levels, up to
four entities of a long-tailed million, sizes and captions. Nothing is measured of Postgres here. Each variant runs in a
process of its own, whose peak memory above that of an idle one (all modules loaded) is told.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.krablet.rounds import Result, result
from pleinair.packing.lists import write_list
from pleinair.packing.mix import ClusterBalance, EntityPriority, Mix, MixSource
from pleinair.packing.pool import build_pool
from pleinair.packing.selection import choose

NUM_PICTURES = 1_000_000
_BATCH = 16_384
_VARIANTS = {
    "weights": (False, False),
    "clusters": (True, False),
    "all": (True, True),
}
_IDLE = "idle"


def rows(count: int, *, clusters: bool, entities: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of made-up rows, the same each time: one in ten of the second source."""
    for start in range(0, count, _BATCH):
        size, rng = min(_BATCH, count - start), np.random.default_rng(start)
        columns = {
            "image_name": [f"source/{number:09d}-picture" for number in range(start, start + size)],
            "width": rng.integers(256, 2048, size, dtype=np.int32),
            "height": rng.integers(256, 2048, size, dtype=np.int32),
            **{name: ["a caption"] * size for name in ("caption_long", "caption_medium", "caption_short", "caption")},
        }
        if clusters:
            leaf = (rng.zipf(1.3, size) - 1) % 60_000
            columns["cluster"] = [f"{place % 12}/{place % 1200 // 12}/{place // 1200}" for place in leaf.tolist()]
        if entities:
            lengths = rng.integers(0, 5, size)
            names = [f"Q{number}" for number in ((rng.zipf(1.2, int(lengths.sum())) - 1) % 1_000_000).tolist()]
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            columns["entity_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(names))
            columns["entities_version"] = ["one"] * size
        yield int(start // _BATCH % 10 == 9), pa.RecordBatch.from_pydict(columns)


def _run(variant: str, answers: multiprocessing.Queue[tuple[float, float, float]]) -> None:
    if variant == _IDLE:
        answers.put((0.0, 0.0, _peak_mib()))
        return
    clusters, entities = _VARIANTS[variant]
    mix = Mix(
        name="bench",
        sources=(MixSource(name="a", weight=7.0), MixSource(name="b", weight=3.0)),
        pictures=NUM_PICTURES // 4,
        max_repeats=2,
        clusters=ClusterBalance() if clusters else None,
        entities=EntityPriority() if entities else None,
    )
    making = _seconds_to_make(clusters, entities)
    began = time.process_time()
    pool = build_pool(rows(NUM_PICTURES, clusters=clusters, entities=entities), mix)
    choice = choose(pool, mix)
    with tempfile.TemporaryDirectory() as folder:
        again = rows(NUM_PICTURES, clusters=clusters, entities=entities)
        write_list(Path(folder) / "list.parquet", again, pool, choice, mix)
    answers.put((NUM_PICTURES, time.process_time() - began - 2 * making, _peak_mib()))


def _seconds_to_make(clusters: bool, entities: bool) -> float:
    """Processor time of making the rows up once, which is no part of the mix."""
    began = time.process_time()
    for _ in rows(NUM_PICTURES, clusters=clusters, entities=entities):
        pass
    return time.process_time() - began


def _peak_mib() -> float:
    """Of this process; getrusage would tell that of the one it was started from where that is larger."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure() -> list[Result]:
    """Pictures of the pool per processor second, both passes and the choice; peak memory of each variant."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, tuple[float, float, float]] = {}
    for variant in (_IDLE, *_VARIANTS):
        answers = context.Queue()
        process = context.Process(target=_run, args=(variant, answers))
        process.start()
        found[variant] = answers.get()
        process.join()
        print(f"  {variant}: {found[variant]}", flush=True)
    idle = found[_IDLE][2]
    return [
        figure
        for variant in _VARIANTS
        for figure in (
            result(f"mix_keys_per_s_{variant}", found[variant][0] / found[variant][1], "pictures/s"),
            result(f"mix_peak_{variant}", found[variant][2] - idle, "MiB"),
        )
    ]
