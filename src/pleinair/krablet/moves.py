"""Servers that join and leave, and slots that move between them while everybody works.

    watch     triggers on the source note every change of a row in a moving slot
    copy      rows go to staging tables on the target, where nobody claims them
    catch up  changed rows are copied again, until few are left
    switch    source: no writer is let in, the last changes are copied, the rows are deleted, the slots disowned: commit
    arrive    target: staging becomes rows, the slots are owned; catalog: the map says so

A row is in exactly one place at every instant: the source's commit is the hand-over. Interrupted before it, a move is as
if it had never begun; after it, the rows wait in staging, and `resume_moves` takes them in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg import sql

from pleinair.krablet.connections import Connection, Session, open_connection
from pleinair.krablet.declarations import create_stage
from pleinair.krablet.migrations import ensure_catalog
from pleinair.krablet.moving_jobs import carry_jobs, forget_received
from pleinair.krablet.places import public_place
from pleinair.krablet.queries import comma_separated, query
from pleinair.krablet.roles import create_role, list_roles
from pleinair.krablet.shards import NUM_SLOTS, Shard, Shards, slot_bits
from pleinair.krablet.tables import Table, column_types, create_table, declared_stages, load_table, table_names
from pleinair.records.errors import BusyError, ConfigError, DatabaseError

SLOTS_PER_MOVE = 8
"""Slots that move together; writers of the source wait while the rows of these are deleted there."""
FEW_CHANGES = 200
MAX_CATCH_UPS = 50
LOCK_TIMEOUT = "3s"
LOCK_TRIES = 10
MOVER_PATIENCE_SECONDS = 5.0
"""Somebody who waited for a slot may hold the mover's lock for a moment, to see whether there is something to finish."""
FIRST_TOKEN = 1 << 40
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Move:
    """Slots on their way from one shard to another."""

    source: Shard
    target: Shard
    slots: list[int]

    @property
    def bits(self) -> str:
        """The slots as Postgres's bit(1024)."""
        return slot_bits(self.slots)


def join_shards(shards: Shards, places: Sequence[str]) -> list[Shard]:
    """Take servers in; without rows in the warehouse it is spread over all, else they join empty. The new ones."""
    known = set(map(public_place, shards.places()))
    new = [place for place in places if place not in known]
    if not new:
        return []
    shards.catalog.run(ensure_catalog)
    empty = not shards.catalog.run(table_names)
    joined = [_join(shards, place) for place in new]
    if empty:
        _spread_without_rows(shards)
    return joined


def _join(shards: Shards, place: str) -> Shard:
    number = max((shard.number for shard in shards), default=0) + 1
    database, _ = shards.catalog.run(_here)
    with closing(shards.open_place(place)) as session:
        session.run(ensure_catalog)
        theirs, their_number = session.run(_here)
        if theirs == database:
            raise ConfigError(f"the server {place} is shard {their_number} of this warehouse already: give another")
        if session.run(table_names):
            raise ConfigError(f"the server {place} holds tables of another warehouse: give an empty database")
        for kind, role in shards.catalog.run(list_roles):
            session.run(partial(create_role, kind=kind, role=role))
        session.run(partial(_become, number=number, database=database))
        _declare_all(shards, session)
    shards.catalog.run(lambda c: c.execute(query("shards", "save_shard"), {"shard": number, "place": place}))
    shards.reload()
    return shards[number]


def _become(connection: Connection, number: int, database: object) -> None:
    with connection.transaction():
        connection.execute(query("shards", "offset_tokens").format(start=sql.Literal(FIRST_TOKEN + number)))
        told = {"database": database, "shard": number, "owned": slot_bits([])}
        connection.execute(query("shards", "become_shard"), told)


def _declare_all(shards: Shards, session: Session) -> None:
    """Declare every table and stage of the warehouse on a server that joins."""
    for name in shards.catalog.run(table_names):
        table = load_table(shards, name)
        session.run(partial(create_table, name=table.name, key=table.key, columns=table.columns, merge=table.merge))
        for stage in declared_stages(table):
            session.run(partial(create_stage, stage=stage))


def _here(connection: Connection) -> tuple[object, int]:
    found = connection.execute(query("shards", "load_here")).fetchone()
    assert found is not None
    return found[0], int(found[1])


def _spread_without_rows(shards: Shards) -> None:
    count = len(shards)
    for place, shard in enumerate(shards.all):
        slots = list(range(place, NUM_SLOTS, count))
        shard.session.run(lambda c, slots=slots: _set_owned(c, slots))  # type: ignore[misc]
        shards.catalog.run(lambda c, s=slots, n=shard.number: _assign(c, s, n))  # type: ignore[misc]
    shards.reload()


def _set_owned(connection: Connection, slots: Sequence[int]) -> None:
    with connection.transaction():
        connection.execute(query("shards", "disown_slots"), {"slots": slot_bits(range(NUM_SLOTS))})
        connection.execute(query("shards", "own_slots"), {"slots": slot_bits(slots)})


def _assign(connection: Connection, slots: Sequence[int], number: int) -> None:
    connection.execute(query("shards", "assign_slots"), {"slots": list(slots), "shard": number})


def rebalance(shards: Shards, *, on_progress: Progress = lambda done, total: None) -> int:
    """Move slots until every shard has as many as the others, as few as possible; the number moved."""
    targets = {shard.number: NUM_SLOTS // len(shards) for shard in shards}
    for number in sorted(targets)[: NUM_SLOTS % len(shards)]:
        targets[number] += 1
    return _move_to(shards, targets, on_progress)


def drain(shards: Shards, number: int, *, on_progress: Progress = lambda done, total: None) -> int:
    """Move all slots of a shard to the others; the number moved."""
    others = [shard.number for shard in shards if shard.number != number]
    if not others:
        raise ConfigError(f"shard {number} is the only one: add another before draining it")
    slots = shards.slots(number)
    share, rest = divmod(len(slots), len(others))
    targets = {n: len(shards.slots(n)) + share + (i < rest) for i, n in enumerate(others)}
    return _move_to(shards, {**targets, number: 0}, on_progress)


def _move_to(shards: Shards, targets: dict[int, int], on_progress: Progress) -> int:
    """Move slots from shards that have more than their target to those that have fewer."""
    surplus = [slot for number, wanted in targets.items() for slot in shards.slots(number)[wanted:]]
    total, done = len(surplus), 0
    for number, wanted in targets.items():
        missing = max(0, wanted - len(shards.slots(number)))
        taken, surplus = surplus[:missing], surplus[missing:]
        move_slots(shards, taken, number, on_progress=partial(_shifted, on_progress, done, total))
        done += len(taken)
    return done


def _shifted(on_progress: Progress, before: int, total: int, done: int, _: int) -> None:
    on_progress(before + done, total)


def remove_shard(shards: Shards, number: int) -> None:
    """Forget a shard that holds nothing any more."""
    if number == 0:
        raise ConfigError("shard 0 holds the catalog and cannot be removed: drain it, it costs nothing empty")
    if slots := shards.slots(number):
        raise ConfigError(f"shard {number} still holds {len(slots)} slots: drain it first")
    shards.catalog.run(lambda c: c.execute(query("shards", "delete_shard"), {"shard": number}))
    shards.reload()


def move_slots(
    shards: Shards, slots: Sequence[int], number: int, *, on_progress: Progress = lambda done, total: None
) -> None:
    """Move slots to a shard while everybody works. Raises BusyError while another move runs."""
    tables = [load_table(shards, name) for name in shards.catalog.run(table_names)]
    by_source: dict[int, list[int]] = {}
    for slot in sorted(slots):
        by_source.setdefault(shards.owner(slot), []).append(slot)
    by_source.pop(number, None)
    done = 0
    with _only_mover(shards, MOVER_PATIENCE_SECONDS):
        _finish_all(shards, tables)
        for source, moving in by_source.items():
            with _slots_indexed(shards[source], tables):
                for start in range(0, len(moving), SLOTS_PER_MOVE):
                    move = Move(shards[source], shards[number], moving[start : start + SLOTS_PER_MOVE])
                    _move(shards, move, tables)
                    done += len(move.slots)
                    on_progress(done, len(slots))


def _move(shards: Shards, move: Move, tables: Sequence[Table]) -> None:
    shards.catalog.run(lambda connection: _begin(connection, move))
    try:
        _watch(move, tables)
        for table in tables:
            _copy(move, table)
        for _ in range(MAX_CATCH_UPS):
            if _catch_up(move, tables) <= FEW_CHANGES:
                break
        _switch(move, tables)
    except BaseException:
        _finish_all(shards, tables)
        raise
    _arrive(shards, move, tables)


def resume_moves(shards: Shards) -> int:
    """Finish moves that were interrupted after their hand-over, undo those before it; the number of slots that arrived.

    Does nothing while the mover lives. Anybody who waits for a slot calls this.
    """
    if not shards.catalog.run(_moves):
        return 0
    try:
        with _only_mover(shards, 0.0):
            shards.reload()
            return _finish_all(shards, [load_table(shards, name) for name in shards.catalog.run(table_names)])
    except (BusyError, psycopg.errors.InsufficientPrivilege):
        return 0  # another process does it, or only the owner may


def _finish_all(shards: Shards, tables: Sequence[Table]) -> int:
    arrived = 0
    for source, target, slots in shards.catalog.run(_moves):
        move = Move(shards[source], shards[target], slots)
        if int(move.source.session.run(_owned_bits), 2) & int(move.bits, 2):
            _undo(shards, move, tables)
        else:
            _arrive(shards, move, tables)
            arrived += len(slots)
    return arrived


@contextmanager
def _only_mover(shards: Shards, patience_seconds: float) -> Iterator[None]:
    """Be the one who moves slots; the server frees the lock however we end."""
    deadline = time.monotonic() + patience_seconds
    with closing(open_connection(shards.catalog.dsn, "pleinair mover")) as connection:
        while connection.execute(query("shards", "try_mover_lock")).fetchone() != (True,):
            if time.monotonic() >= deadline:
                raise BusyError("slots are being moved by another process: wait until it is done")
            time.sleep(0.05)
        yield


@contextmanager
def _slots_indexed(source: Shard, tables: Sequence[Table]) -> Iterator[None]:
    """Have every table indexed by slot while its slots leave: a move then reads its own rows alone."""

    def create(connection: Connection) -> None:
        for table in tables:
            connection.execute(query("shards", "drop_slot_index").format(**_names(table)))
            connection.execute(query("shards", "create_slot_index").format(**_names(table)))

    def drop(connection: Connection) -> None:
        for table in tables:
            connection.execute(query("shards", "drop_slot_index").format(**_names(table)))

    source.session.run(create)
    try:
        yield
    finally:
        source.session.run(drop)


def _begin(connection: Connection, move: Move) -> None:
    told = {"slots": move.slots, "source": move.source.number, "target": move.target.number}
    connection.execute(query("shards", "begin_moves"), told)


def _moves(connection: Connection) -> list[tuple[int, int, list[int]]]:
    return list(connection.execute(query("shards", "load_moves")))


def _owned_bits(connection: Connection) -> str:
    found = connection.execute(query("shards", "owned_here")).fetchone()
    assert found is not None
    return str(found[0])


def _watch(move: Move, tables: Sequence[Table]) -> None:
    def on_target(connection: Connection) -> None:
        for table in tables:
            connection.execute(query("shards", "create_staging").format(**_names(table)))

    def on_source(connection: Connection) -> None:
        _unwatch(connection, tables)
        connection.execute(query("shards", "forget_changes"))
        for table in tables:
            names = {**_names(table), "key_name": sql.Literal(table.key), "slots": _slots(move)}
            connection.execute(query("shards", "create_watch").format(**names))

    move.target.session.run(on_target)
    move.source.session.run(on_source)


def _unwatch(connection: Connection, tables: Sequence[Table]) -> None:
    for table in tables:
        connection.execute(query("shards", "drop_watch").format(**_names(table)))


def _copy(move: Move, table: Table) -> None:
    columns = _columns(move, table)
    out = query("shards", "copy_out").format(**_names(table), columns=columns, slots=_slots(move))
    _pump(move, table, columns, out)


def _catch_up(move: Move, tables: Sequence[Table], source: Connection | None = None) -> int:
    """Copy the rows that changed since the last time; how many."""
    changed = move.source.session.run(_take_changes) if source is None else _take_changes(source)
    keys: dict[str, set[str]] = {}
    for table_name, key in changed:
        keys.setdefault(table_name, set()).add(key)
    for table in tables:
        if some := sorted(keys.get(table.name, ())):
            _copy_changed(move, table, some, source)
    return sum(map(len, keys.values()))


def _take_changes(connection: Connection) -> list[tuple[str, str]]:
    return list(connection.execute(query("shards", "take_changes")))


def _copy_changed(move: Move, table: Table, keys: list[str], source: Connection | None) -> None:
    columns, names = _columns(move, table), _names(table)
    unstage = query("shards", "unstage_rows").format(**names)
    move.target.session.run(lambda connection: connection.execute(unstage, {"keys": keys}))
    out = query("shards", "copy_changed_out").format(**names, columns=columns, keys=sql.Literal(keys))
    _pump(move, table, columns, out, source)


def _pump(move: Move, table: Table, columns: sql.Composed, out: sql.Composed, source: Connection | None = None) -> None:
    """Rows of a COPY on the source into the staging table on the target, as they come."""
    into = query("shards", "copy_in").format(**_names(table), columns=columns)

    def pump(reading: Connection) -> None:
        def fill(writing: Connection) -> None:
            with reading.cursor().copy(out) as rows, writing.cursor().copy(into) as staged:
                for block in rows:
                    staged.write(block)

        move.target.session.run(fill)

    if source is None:
        move.source.session.run(pump)
    else:
        pump(source)


def _switch(move: Move, tables: Sequence[Table]) -> None:
    def hand_over(connection: Connection) -> None:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
            connection.execute(query("shards", "lock_slots"))
            for table in tables:
                connection.execute(query("shards", "lock_writers").format(**_names(table)))
            _catch_up(move, tables, connection)
            _unwatch(connection, tables)
            carry_jobs(connection, move.target.session, move.bits, {table.name: table.key for table in tables})
            for table in tables:
                remove = query("shards", "remove_moved").format(**_names(table))
                connection.execute(remove, {"slots": move.slots})
            connection.execute(query("shards", "disown_slots"), {"slots": move.bits})

    for patience in range(LOCK_TRIES, 0, -1):
        try:
            move.source.session.run(hand_over)
            return
        except psycopg.errors.LockNotAvailable as busy:
            if patience == 1:
                raise DatabaseError(
                    f"a transaction on {move.source.name} has kept the tables locked through {LOCK_TRIES} tries of "
                    f"{LOCK_TIMEOUT}: end it and move again"
                ) from busy
            _catch_up(move, tables)


def _arrive(shards: Shards, move: Move, tables: Sequence[Table]) -> None:
    """Take staged rows in, once: the target owns the slots from the same commit on."""

    def take_in(connection: Connection) -> None:
        with connection.transaction():
            connection.execute(query("shards", "lock_slots"))
            if int(_owned_bits(connection), 2) & int(move.bits, 2):
                return
            for table in tables:
                # What was declared since the rows left the source has no values yet, and no place in the staging table.
                staged = column_types(connection, _staging(table))
                names = {**_names(table), "columns": comma_separated([sql.Identifier(name) for name in staged])}
                connection.execute(query("shards", "promote_staging").format(**names))
                connection.execute(query("shards", "drop_staging").format(**names))
            connection.execute(query("shards", "own_slots"), {"slots": move.bits})

    def note(connection: Connection) -> None:
        with connection.transaction():
            _assign(connection, move.slots, move.target.number)
            connection.execute(query("shards", "end_moves"), {"slots": move.slots})

    move.target.session.run(take_in)
    shards.catalog.run(note)
    shards.reload()


def _undo(shards: Shards, move: Move, tables: Sequence[Table]) -> None:
    def forget(connection: Connection) -> None:
        _unwatch(connection, tables)
        connection.execute(query("shards", "forget_changes"))

    def unstage(connection: Connection) -> None:
        for table in tables:
            connection.execute(query("shards", "drop_staging").format(**_names(table)))
        forget_received(connection, move.bits, {table.name: table.key for table in tables})

    move.source.session.run(forget)
    move.target.session.run(unstage)
    shards.catalog.run(lambda c: c.execute(query("shards", "end_moves"), {"slots": move.slots}))


def _names(table: Table) -> dict[str, sql.Composable]:
    return {
        "table": sql.Identifier(table.name),
        "staging": sql.SQL(_staging(table)),
        "key": sql.Identifier(table.key),
        "key_type": sql.SQL(table.column_type(table.key).name),
        "slot_index": sql.Identifier(f"{table.name}_pleinair_slot"),
    }


def _staging(table: Table) -> str:
    """Where rows of a table wait until they are all there, quoted."""
    return sql.Identifier("pleinair", f"incoming_{table.name}").as_string()


def _columns(move: Move, table: Table) -> sql.Composed:
    """Every column the table has on the source, claim state included; the target has the same, in any order."""
    there = move.source.session.run(lambda connection: column_types(connection, table.name))
    return comma_separated([sql.Identifier(name) for name in there])


def _slots(move: Move) -> sql.Composable:
    return sql.SQL("{}::integer[]").format(sql.Literal(move.slots))
