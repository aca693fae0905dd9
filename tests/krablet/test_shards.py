"""Several servers as one warehouse: routing, joining, and slots that move while everybody works."""

from __future__ import annotations

import random
import threading
import time
import uuid
from itertools import chain

import pyarrow as pa
import pytest

from pleinair import krablet
from pleinair.krablet import Settled, moves
from pleinair.krablet.shards import NUM_SLOTS, slot_of
from pleinair.records.errors import BusyError, ConfigError, QueueError
from tests.krablet.conftest import Pictures, pictures_in

YES = {"contains_text": True}


def keys_on(database: krablet.Database) -> list[list[str]]:
    rows = database.shards.each(lambda c: c.execute("SELECT image_name FROM images ORDER BY 1").fetchall())
    return [[name for (name,) in of_shard] for of_shard in rows]


@pytest.mark.parametrize("key", ["", "a", "Grüße/ß.png", "x" * 3000, 0, -7, 2**62, str(uuid.UUID(int=5))])
def test_python_and_sql_place_a_key_in_the_same_slot(pictures: Pictures, key: object) -> None:
    assert pictures.sql("SELECT pleinair.slot_of(%s::text)", str(key)) == [(slot_of(key),)]


def test_keys_spread_evenly_over_slots() -> None:
    counts = [0] * NUM_SLOTS
    for number in range(100_000):
        counts[slot_of(f"picture-{number}")] += 1
    assert min(counts) > 50
    assert max(counts) < 160


def test_a_key_whose_text_may_differ_between_servers_is_refused(database: krablet.Database) -> None:
    with pytest.raises(QueueError, match="keys are text, integer, bigint, uuid"):
        database.table("days", key="day", columns={"day": "date"})


def test_a_new_warehouse_is_spread_over_its_servers_and_opened_by_the_first_alone(three: list[str]) -> None:
    with krablet.connect(three) as database:
        names = pictures_in(database).add(300)
        held = keys_on(database)
        assert sorted(chain(*held)) == names
        assert all(70 < len(keys) < 130 for keys in held)
    with krablet.connect(three[0]) as again:
        assert len(again.shards) == 3
        read = again.declared_table("images").read(columns=["image_name"])
        assert sorted(row["image_name"] for batch in read for row in batch.to_pylist()) == names


def test_every_row_is_worked_on_once_over_three_shards(three: list[str]) -> None:
    with krablet.connect(three) as database:
        pictures = pictures_in(database)
        names = pictures.add(200)
        seen: list[str] = []

        def read_text(rows: list[dict[str, object]]) -> list[dict[str, object]]:
            seen.extend(str(row["image_name"]) for row in rows)
            return [YES] * len(rows)

        assert krablet.work(pictures.ocr, read_text) == Settled(completed=200)
        assert sorted(seen) == names
        assert pictures.ocr.depth().pending == 0
        assert pictures.ocr.stats().done == 200


def test_tokens_of_two_shards_never_meet(three: list[str]) -> None:
    with krablet.connect(three) as database:
        pictures = pictures_in(database)
        pictures.add(300)
        tokens = [(claim.shard, claim.token) for claim in iter(lambda: pictures.ocr.claim(4), None)]
        assert len({token for _, token in tokens}) == len(tokens)
        assert all(token % 4096 == shard for shard, token in tokens)


def test_servers_join_empty_when_there_are_rows_and_rebalancing_moves_a_share(three: list[str]) -> None:
    with krablet.connect(three[:1]) as database:
        names = pictures_in(database).add(300)
    with krablet.connect(three) as database:
        assert [len(keys) for keys in keys_on(database)] == [300, 0, 0]
        told: list[tuple[int, int]] = []
        moved = moves.rebalance(database.shards, on_progress=lambda done, total: told.append((done, total)))
        assert moved == 682
        assert told[-1] == (682, 682)
        assert [len(database.shards.slots(n)) for n in range(3)] == [342, 341, 341]
        held = keys_on(database)
        assert sorted(chain(*held)) == names
        assert min(map(len, held)) > 60
        assert moves.rebalance(database.shards) == 0


def test_a_shard_is_drained_and_removed(three: list[str]) -> None:
    with krablet.connect(three) as database:
        pictures = pictures_in(database)
        pictures.add(100)
        with pytest.raises(ConfigError, match="shard 2 still holds 341 slots: drain it first"):
            moves.remove_shard(database.shards, 2)
        moves.drain(database.shards, 2)
        moves.remove_shard(database.shards, 2)
        assert len(database.shards) == 2
        assert pictures.table.count() == 100
        with pytest.raises(ConfigError, match="shard 0 holds the catalog"):
            moves.remove_shard(database.shards, 0)


def test_rows_claimed_on_a_shard_that_is_then_removed_are_completed_where_they_are(three: list[str]) -> None:
    with krablet.connect(three[:2]) as database:
        pictures = pictures_in(database)
        pictures.add(100)
        claims = [claim for claim in iter(lambda: pictures.ocr.claim(50), None) if claim.shard == 1]
        moves.drain(database.shards, 1)
        moves.remove_shard(database.shards, 1)
        assert pictures.ocr.renew(claims[0]) == len(claims[0])
        done = [pictures.ocr.complete(claim, [YES] * len(claim)) for claim in claims]
        assert [settled.completed for settled in done] == [len(claim) for claim in claims]


def test_a_server_of_another_warehouse_or_given_twice_is_refused(three: list[str]) -> None:
    with krablet.connect(three[2]) as other:
        pictures_in(other)
    with krablet.connect(three[:2]) as database:
        pictures_in(database)
        with pytest.raises(ConfigError, match="holds tables of another warehouse"):
            krablet.connect(three)
        with pytest.raises(ConfigError, match="is shard 0 of this warehouse already"):
            moves.join_shards(database.shards, [three[0]])


def test_a_claim_survives_the_move_of_its_rows(three: list[str]) -> None:
    with krablet.connect(three[:1]) as database:
        pictures = pictures_in(database)
        pictures.add(20)
        kept, given_back = pictures.ocr.claim(8), pictures.ocr.claim(8)
    with krablet.connect(three) as database:
        pictures = pictures_in(database)
        moves.rebalance(database.shards)
        assert pictures.ocr.renew(kept) == 8
        assert pictures.ocr.complete(kept, [YES] * 7 + [ValueError("bad")]) == Settled(completed=7, failed=1)  # type: ignore[list-item]
        assert pictures.ocr.complete(kept, [YES] * 8) == Settled(lost=8)
        assert pictures.ocr.release(given_back) == 8
        assert pictures.ocr.depth().claimable == 12


def test_a_writer_with_an_old_map_is_refused_and_finds_the_new_place(three: list[str]) -> None:
    with krablet.connect(three[:1]) as old:
        pictures = pictures_in(old)
        names = pictures.add(50)
        with krablet.connect(three) as database:
            moves.rebalance(database.shards)
            pictures.table.upsert({"image_name": name, "path": "/new"} for name in names)
            pictures.table.upsert({"image_name": f"late-{number}"} for number in range(50))
            assert database.declared_table("images").count("path = '/new'") == 50
            assert sorted(chain(*keys_on(database))) == sorted([*names, *(f"late-{number}" for number in range(50))])


def test_a_writer_refused_while_its_statement_is_prepared_goes_on(three: list[str]) -> None:
    """What follows a refusal in its pipeline is skipped, and the driver takes it for prepared all the same."""
    with krablet.connect(three[:1]) as old:
        pictures = pictures_in(old)
        for number in range(5):
            pictures.add(1, start=number)
        with krablet.connect(three) as database:
            moves.rebalance(database.shards)
        pictures.add(50)
        pictures.add(50, start=50)
        assert pictures.table.count() == 100


@pytest.mark.parametrize("step", ["_watch", "_copy", "_catch_up", "_switch", "_arrive"])
def test_a_move_that_is_interrupted_anywhere_loses_and_doubles_nothing(
    three: list[str], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with krablet.connect(three[:2]) as database:
        pictures = pictures_in(database)
        names = pictures.add(100)

        def die(*arguments: object) -> None:
            raise SystemExit("killed")

        with monkeypatch.context() as patch:
            patch.setattr(moves, step, die)
            patch.setattr(moves, "_finish_all", lambda *arguments: 0)  # a killed process cleans nothing up
            with pytest.raises(SystemExit):
                moves.move_slots(database.shards, database.shards.slots(0)[:64], 1)
        # Whoever needs a row next finds it, bringing it in first if it is in between.
        pictures.table.upsert({"image_name": name, "path": "/after"} for name in names)
        assert sorted(chain(*keys_on(database))) == names
        assert krablet.work(pictures.ocr, lambda rows: [YES] * len(rows)) == Settled(completed=100)
        moves.move_slots(database.shards, database.shards.slots(0)[:64], 1)
        assert sorted(chain(*keys_on(database))) == names
        assert pictures.table.count("contains_text AND path = '/after'") == 100


def test_a_stage_declared_while_slots_are_in_between_does_not_keep_their_rows_out(
    three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with krablet.connect(three[:2]) as database:
        pictures = pictures_in(database)
        names = pictures.add(100)

        def die(*arguments: object) -> None:
            raise SystemExit("killed")

        with monkeypatch.context() as patch:
            patch.setattr(moves, "_arrive", die)
            patch.setattr(moves, "_finish_all", lambda *arguments: 0)  # a killed process cleans nothing up
            with pytest.raises(SystemExit):
                moves.move_slots(database.shards, database.shards.slots(0)[:256], 1)
            later = pictures.table.stage("later", ready="contains_text IS NULL", writes=["contains_text"])
        assert pictures.table.count() == 100, "who reads brings in what is in between"
        assert not database.shards.in_transit()
        assert krablet.work(later, lambda rows: [YES] * len(rows)) == Settled(completed=100)
        assert sorted(chain(*keys_on(database))) == names


def test_slots_move_to_and_fro_while_writers_and_workers_go_on(three: list[str]) -> None:
    """Counters are exact at the end: no row lost, doubled, or set back."""
    with krablet.connect(three) as database:
        pictures = pictures_in(database)
        names = pictures.add(400)
        stop, failures = threading.Event(), []
        written: dict[str, int] = dict.fromkeys(names, -1)

        def guarded(act: object) -> threading.Thread:
            def run() -> None:
                try:
                    act()  # type: ignore[operator]
                except BaseException as error:
                    failures.append(error)

            return threading.Thread(target=run)

        def write(seed: int, mine: list[str]) -> None:
            chance = random.Random(seed)
            with krablet.connect(three[0]) as another:
                table = another.declared_table("images")
                number = 0
                while not stop.is_set():
                    some = chance.sample(mine, 5)
                    number += 1
                    table.upsert({"image_name": name, "length": number} for name in some)
                    written.update(dict.fromkeys(some, number))

        def work(slots: int) -> None:
            with krablet.connect(three[0]) as another:
                [ocr] = another.declared_stages()
                krablet.work(ocr, lambda rows: [YES] * len(rows), slots=slots, idle="wait", stop=stop.is_set)

        threads = [
            guarded(lambda: write(1, names[:200])),
            guarded(lambda: write(2, names[200:])),
            guarded(lambda: work(1)),
            guarded(lambda: work(5)),
        ]
        for thread in threads:
            thread.start()
        for target in (0, 1, 2, 1):
            moves.move_slots(database.shards, random.Random(target).sample(range(NUM_SLOTS), 48), target)
        deadline = time.monotonic() + 60
        while pictures.table.count("contains_text") < 400 and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert sorted(chain(*keys_on(database))) == names
        rows = {row["image_name"]: row for batch in pictures.table.read() for row in batch.to_pylist()}
        assert all(row["contains_text"] for row in rows.values())
        assert {name: row["length"] for name, row in rows.items() if row["length"] is not None} == {
            name: number for name, number in written.items() if number > 0
        }


def test_two_movers_take_turns(three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "MOVER_PATIENCE_SECONDS", 0.2)
    with krablet.connect(three[:2]) as database:
        pictures_in(database)
        with moves._only_mover(database.shards, 0.0), pytest.raises(BusyError, match="by another process"):
            moves.move_slots(database.shards, database.shards.slots(0)[:1], 1)


def test_a_migration_runs_once_on_every_shard(three: list[str]) -> None:
    with krablet.connect(three) as database:
        pictures_in(database)
        text = "CREATE TABLE extra (a int); INSERT INTO extra VALUES (1);"
        assert database.migrate("add-extra", text) == 3
        assert database.migrate("add-extra", text) == 0
        assert database.shards.each(lambda c: c.execute("SELECT a FROM extra").fetchall()) == [[(1,)]] * 3


def test_arrow_data_is_loaded_to_where_its_keys_live(three: list[str]) -> None:
    with krablet.connect(three) as database:
        table = pictures_in(database).table
        names = [f"p{number:04d}" for number in range(500)]
        data = pa.table({"image_name": names, "length": list(range(500))})
        assert table.load(data) == 500
        assert table.load(data, on_conflict="skip") == 0
        assert sorted(chain(*keys_on(database))) == names
        assert all(database.shards.of(key).number == n for n, keys in enumerate(keys_on(database)) for key in keys)
        assert table.upsert([{"image_name": "p0007", "length": 7}]) == 1
        assert table.count() == 500
