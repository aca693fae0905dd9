"""The whole table twice: `curate mixed` over every source that installs, undisturbed, and with its workers killed at random.

    data home/bench-pipeline/undisturbed    what the recipe makes
    data home/bench-pipeline/killed         the same while a worker is killed every few thousand results

The two tables must be equal but for the times of fetching. The homes stay: `pleinair curate open-pictures --home
.../undisturbed` goes on from there. Remove `killed` to kill again.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.krablet.rounds import Result, result
from pleinair import krablet
from pleinair.cli.costs import StageCost, note_costs, read_costs
from pleinair.cli.places import cache_dir, data_home
from pleinair.curation import curate, find_source, images_table, ingest, kept_where
from pleinair.curation.recipes import RECIPES
from pleinair.curation.stages import QUEUE_STAGES, SOURCE_COLUMNS, STAGE_COLUMNS
from pleinair.krablet import Database, Progress
from pleinair.recipes.chain import read_chain, shipped_chains

KILLS = 12
_RESULTS_BETWEEN_KILLS = (15_000, 40_000)


def measure() -> list[Result]:
    """Pictures, kills, whether the tables are equal, and core-hours per million pictures by stage."""
    homes = data_home() / "bench-pipeline"
    undisturbed, (num_pictures, num_kept), costs, _ = _table(homes / "undisturbed", lambda now: None)
    kills = _Kills(random.Random(0))
    killed, _, _, deaths = _table(homes / "killed", kills)
    if not deaths:
        raise SystemExit(f"nothing was left to do in {homes / 'killed'}, so no worker was killed: remove it, run again")
    print(f"undisturbed {undisturbed}, with {deaths} workers killed {killed}", flush=True)
    looked_at = [cost for cost in costs if cost.stage.removeprefix("images.") in ("probe", "hashes", "pixels")]
    seconds = sum(cost.cpu_seconds / cost.num_results for cost in looked_at)
    return [
        result("pipeline_pictures", num_pictures, "pictures of seven sources"),
        result("pipeline_kept", num_kept, "pictures"),
        result("pipeline_kills", deaths, "workers killed at random of 2"),
        result("pipeline_tables_equal", float(killed == undisturbed), "1 where both tables are equal"),
        result("pipeline_pictures_per_s", 1 / seconds, "pictures/s/core, decode, hashes and filters"),
        *(
            result(
                f"pipeline_{cost.stage.removeprefix('images.')}", cost.core_hours_per_million, "core-hours per million"
            )
            for cost in costs
        ),
    ]


class _Kills:
    """Kills a worker, chosen at random, after every so many results."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._left, self._next = KILLS, chance.randint(*_RESULTS_BETWEEN_KILLS)

    def __call__(self, now: Progress) -> None:
        if self._left and now.worker_pids and sum(stage.completed for stage in now.stages) >= self._next:
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(now.worker_pids), signal.SIGKILL)
            self._left -= 1
            self._next += self._chance.randint(*_RESULTS_BETWEEN_KILLS)


def _table(home: Path, on_progress: Callable[[Progress], None]) -> tuple[str, tuple[int, int], list[StageCost], int]:
    """Curate in a home: the table's digest, its pictures and those kept, what each stage cost, workers that died."""
    with krablet.connect(directory=home / "postgres") as db:
        for name in read_chain(shipped_chains()["open-pictures"]).sources:
            listed = ingest(db, find_source(name, cache_dir()))
            print(f"{name}: {listed.num_listed} listed, {listed.num_new} new", flush=True)
        done = curate(
            db, RECIPES["mixed"], cache=cache_dir(), store=home / "store", processes=2, on_progress=on_progress
        )
        note_costs(home, done.run)
        images = images_table(db)
        counts = images.count(), images.count(kept_where(images))
        of_stages = [cost for cost in read_costs(home) if cost.stage.removeprefix("images.") in QUEUE_STAGES]
        return digest(db), counts, of_stages, done.run.deaths


def digest(db: Database) -> str:
    """Of everything the curation says of every picture, but for the times."""
    stages = (*QUEUE_STAGES, "duplicate")
    columns = [*SOURCE_COLUMNS, *(column for stage in stages for column in STAGE_COLUMNS[stage])]
    compared = [column for column in columns if not column.endswith("_at")]
    found = hashlib.sha256()
    for batch in images_table(db).read(columns=compared, order_by="image_name"):
        for row in batch.to_pylist():
            found.update(repr(row).encode())
    return found.hexdigest()[:32]
