"""How mutations of a declared table become SQL: its columns with their rules, and the statements made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from psycopg import sql

from pleinair.krablet.array_literals import array_literal
from pleinair.krablet.column_types import column_type
from pleinair.krablet.connections import Connection
from pleinair.krablet.merge_rules import MergedColumn, merged_column
from pleinair.krablet.queries import query
from pleinair.krablet.rows import Arrays
from pleinair.krablet.shards import slot_of
from pleinair.records.errors import QueueError


@dataclass(frozen=True)
class Statement:
    """One multi-row upsert, ready to be executed."""

    text: str
    parameters: Mapping[str, str]
    num_rows: int
    slots: frozenset[int]
    """Where its keys live; a server that does not own them refuses the statement."""


@dataclass(frozen=True)
class Shape:
    """A set of columns in the order a client gives them, and where the key is among them."""

    columns: tuple[MergedColumn, ...]
    key_place: int


class TablePlan:
    """A declared table as the funnel writes it."""

    def __init__(self, name: str, key: str, columns: Mapping[str, str], merge: Mapping[str, str]) -> None:
        self.name = name
        self.key = key
        self.columns: dict[str, MergedColumn] = {
            column: merged_column(name, column, column_type(sql_type), merge.get(column, "last"))
            for column, sql_type in columns.items()
        }
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._texts: dict[tuple[str, ...], str] = {}

    def shape(self, columns: tuple[str, ...]) -> Shape:
        """Raises QueueError for a column that is unknown or given twice, or if the key is missing."""
        if columns not in self._shapes:
            self._shapes[columns] = self._checked_shape(columns)
        return self._shapes[columns]

    def _checked_shape(self, columns: tuple[str, ...]) -> Shape:
        for name in columns:
            if name not in self.columns:
                known = ", ".join(self.columns)
                raise QueueError(f"table {self.name} has no column {name!r}: declare it, or use one of {known}")
        if self.key not in columns:
            raise QueueError(f"a row for table {self.name} has no key: give {self.key!r}")
        if len(set(columns)) < len(columns):
            raise QueueError(f"a row for table {self.name} gives a column twice: {', '.join(columns)}")
        return Shape(tuple(self.columns[name] for name in columns), columns.index(self.key))

    def statement(self, names: Sequence[str], values: Sequence[list[Any]]) -> Statement:
        """Write merged rows, their keys sorted: `names` (the key first) and, for each, its `values`."""
        columns = [self.columns[name] for name in names]
        literals = {
            f"given_{place}": array_literal(column.finish(given), column.type.transport)
            for place, (column, given) in enumerate(zip(columns, values, strict=True))
        }
        return Statement(self._text(tuple(names)), literals, len(values[0]), frozenset(map(slot_of, values[0])))

    def _text(self, names: tuple[str, ...]) -> str:
        if names not in self._texts:
            self._texts[names] = self._upsert(names).as_string(None)
        return self._texts[names]

    def _upsert(self, names: tuple[str, ...]) -> sql.Composed:
        columns = [self.columns[name] for name in names]
        arrays = Arrays(names, tuple(column.type for column in columns), ())
        assignments = [column.assignment() for column in columns[1:]]
        return query("funnel", "upsert_merged_rows" if assignments else "insert_missing_keys").format(
            table=sql.Identifier(self.name),
            columns=sql.SQL(", ").join(map(sql.Identifier, names)),
            values=arrays.casts,
            arrays=arrays.arrays,
            names=arrays.names,
            key=sql.Identifier(self.key),
            assignments=sql.SQL(", ").join(assignments),
        )


Run = Callable[[Callable[[Connection], Any]], Any]
"""Executes `action(connection)`, again after an outage, as `Session.run` does."""


class Plans:
    """The plans of all tables, loaded when first needed and again when a column is missed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._plans: dict[str, TablePlan] = {}

    def shape(self, table: str, columns: tuple[str, ...]) -> tuple[TablePlan, Shape]:
        """Raises QueueError if the table or a column is not declared (now: the catalog is asked before refusing)."""
        plan = self._plans.get(table)
        if plan is None or not plan.columns.keys() >= set(columns):
            self._plans[table] = plan = self._load(table)
        return plan, plan.shape(columns)

    def _load(self, table: str) -> TablePlan:
        found = self._run(partial(_load_table, table=table))
        if found is None:
            self._plans.pop(table, None)
            raise QueueError(
                f"no table {table!r} is declared in this database: declare it with db.table({table!r}, ...)"
            )
        key, columns, merge = found
        return TablePlan(table, key, dict(columns), merge)


def _load_table(connection: Connection, *, table: str) -> tuple[Any, ...] | None:
    return connection.execute(query("funnel", "load_table"), {"name": table}).fetchone()
