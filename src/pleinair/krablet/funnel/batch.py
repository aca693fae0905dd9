"""Mutations on their way into one flush: many small runs become few ordered statements.

    runs in order of arrival -> columns -> merged by key, column by column -> keys sorted -> one statement per column set

Everything works on columns, not on rows: a check of types, a merge and a literal each cost one pass over a list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from pleinair.krablet.funnel.clients import ClientState
from pleinair.krablet.funnel.plans import Shape, Statement, TablePlan
from pleinair.krablet.merge_rules import ABSENT
from pleinair.records.errors import QueueError


@dataclass(slots=True)
class Run:
    """Consecutive mutations of one client on the same columns of one table; `values` holds row after row.

    With no table they were withdrawn: their client sends them elsewhere, and the only value is the slot.
    """

    client: ClientState
    first: int
    table: str
    columns: tuple[str, ...]
    values: list[Any]
    arrived: float = 0.0
    confirmed: int = 0
    """The number up to which its client knew the answers when it sent this."""
    failures: dict[int, str] = field(default_factory=dict)
    """Mutations known to be refused, by number, with the reason; they count as answered but are not applied."""

    def __len__(self) -> int:
        return len(self.values) // len(self.columns)

    @property
    def last(self) -> int:
        return self.first + len(self) - 1

    def rows(self) -> Iterable[tuple[int, list[Any]]]:
        width = len(self.columns)
        for place in range(len(self)):
            yield self.first + place, self.values[place * width : (place + 1) * width]

    def split(self, count: int) -> tuple[Run, Run]:
        """The first `count` mutations, and the others."""
        at, middle = count * len(self.columns), self.first + count
        return self._part(self.first, self.values[:at]), self._part(middle, self.values[at:])

    def _part(self, first: int, values: list[Any]) -> Run:
        part = Run(self.client, first, self.table, self.columns, values, self.arrived, self.confirmed)
        part.failures = {number: why for number, why in self.failures.items() if first <= number <= part.last}
        return part


def halves(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs of at least two mutations in two parts of about equal size, each in order."""
    after = deque(runs)
    before: list[Run] = []
    missing = sum(map(len, runs)) // 2
    while missing >= len(after[0]):
        before.append(after.popleft())
        missing -= len(before[-1])
    if missing:
        head, tail = after.popleft().split(missing)
        before.append(head)
        after.appendleft(tail)
    return before, list(after)


@dataclass(frozen=True)
class Advance:
    """A client moves from one applied number to another."""

    client: ClientState
    expected: int
    reached: int
    confirmed: int
    """The number up to which the client knew its answers when it sent the last of this."""


def advances(runs: Iterable[Run]) -> list[Advance]:
    """How far a flush moves each client, in the order in which their rows are locked."""
    moved: dict[int, Advance] = {}
    for run in runs:
        before = moved.get(id(run.client))
        expected = run.first - 1 if before is None else before.expected
        moved[id(run.client)] = Advance(run.client, expected, run.last, run.confirmed)
    return sorted(moved.values(), key=lambda advance: advance.client.name)


Shapes = Callable[[str, tuple[str, ...]], tuple[TablePlan, Shape]]


def statements(runs: Iterable[Run], shapes: Shapes) -> list[Statement]:
    """The upserts that apply these runs; mutations that do not fit their table are noted in their run's `failures`."""
    merges: dict[str, _Merge] = {}
    for group in _same_columns(run for run in runs if run.table):
        try:
            plan, shape = shapes(group[0].table, group[0].columns)
        except QueueError as refusal:
            _refuse_all(group, refusal)
            continue
        merges.setdefault(plan.name, _Merge(plan)).add(shape, _prepared(shape, group))
    return [statement for name in sorted(merges) for statement in merges[name].statements()]


def _same_columns(runs: Iterable[Run]) -> list[list[Run]]:
    """Neighbours that give the same columns of the same table, together."""
    groups: list[list[Run]] = []
    for run in runs:
        if groups and groups[-1][0].columns == run.columns and groups[-1][0].table == run.table:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _refuse_all(runs: Iterable[Run], refusal: QueueError) -> None:
    for run in runs:
        for number in range(run.first, run.last + 1):
            run.failures.setdefault(number, str(refusal))


def _prepared(shape: Shape, runs: Sequence[Run]) -> list[list[Any]]:
    """The columns of all mutations that fit; the others are noted as failures."""
    if not any(run.failures for run in runs):
        try:
            return _prepare_columns(shape, runs[0].values if len(runs) == 1 else _joined(runs))
        except (QueueError, RecursionError):
            pass  # one value does not fit; find it
    good: list[Any] = []
    for run in runs:
        for number, row in run.rows():
            if number not in run.failures and (reason := _misfit(shape, row)) is not None:
                run.failures[number] = reason
            if number not in run.failures:
                good.extend(row)
    return _prepare_columns(shape, good)


def _joined(runs: Iterable[Run]) -> list[Any]:
    return list(chain.from_iterable([run.values for run in runs]))


def _prepare_columns(shape: Shape, values: list[Any]) -> list[list[Any]]:
    width = len(shape.columns)
    columns = [column.prepare(values[place::width]) for place, column in enumerate(shape.columns)]
    if None in columns[shape.key_place]:
        key = shape.columns[shape.key_place]
        raise QueueError(f"a row for table {key.table} has no key: give {key.name!r}")
    return columns


def _misfit(shape: Shape, row: list[Any]) -> str | None:
    owner = f" of {row[shape.key_place]!r:.60}"
    try:
        for column, value in zip(shape.columns, row, strict=True):
            column.prepare([value], owner)
        _prepare_columns(shape, row)
    except QueueError as refusal:
        return str(refusal)
    except RecursionError:
        return f"a value{owner} is nested too deeply: give a flatter one"
    return None


class _Merge:
    """The rows of one table in one flush, merged by key as they come."""

    def __init__(self, plan: TablePlan) -> None:
        self._plan = plan
        self._places: dict[Any, int] = {}
        self._merged: dict[str, list[Any]] = {}
        self._names: set[str] | None = None
        self._uniform = True

    def add(self, shape: Shape, columns: list[list[Any]]) -> None:
        places = self._places
        at = [places.setdefault(key, len(places)) for key in columns[shape.key_place]]
        names = {column.name for column in shape.columns} - {self._plan.key}
        self._uniform = self._uniform and self._names in (None, names)
        self._names = names
        for name in names:
            self._merged.setdefault(name, [])
        for merged in self._merged.values():
            merged.extend([ABSENT] * (len(places) - len(merged)))
        for column, values in zip(shape.columns, columns, strict=True):
            if column.name != self._plan.key:
                column.rule.fold(self._merged[column.name], at, values)

    def statements(self) -> list[Statement]:
        keys = list(self._places)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        if not order:
            return []
        groups = {tuple(sorted(self._merged)): order} if self._uniform else self._by_columns(order)
        return [self._statement(names, keys, places) for names, places in groups.items()]

    def _by_columns(self, order: Iterable[int]) -> Mapping[tuple[str, ...], list[int]]:
        """A column that no mutation of a key has given must be left alone, so rows go by the columns they have."""
        groups: dict[tuple[str, ...], list[int]] = {}
        names = sorted(self._merged)
        for place in order:
            given = tuple(name for name in names if self._merged[name][place] is not ABSENT)
            groups.setdefault(given, []).append(place)
        return groups

    def _statement(self, names: Sequence[str], keys: Sequence[Any], places: Sequence[int]) -> Statement:
        values = [[self._merged[name][place] for place in places] for name in names]
        return self._plan.statement((self._plan.key, *names), [[keys[place] for place in places], *values])
