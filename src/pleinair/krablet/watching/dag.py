"""Which stage waits for which. Nobody declares it: a stage follows those that write the columns its condition names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pleinair.krablet.stages import Stage


def stages_before(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The stages of the same table that write a column which the condition of `stage` names, itself left out."""
    named = _columns_named(stage.ready)
    return [other for other in stages if other.label != stage.label and _same_table(other, stage, named)]


def _same_table(other: Stage, stage: Stage, named: set[str]) -> bool:
    return other.table.name == stage.table.name and not named.isdisjoint(other.writes)


def _columns_named(condition: str) -> set[str]:
    """The words of a condition that may be columns: quoted strings left out, case folded as Postgres does."""
    return set(re.findall(r"[a-z_][a-z0-9_]*", re.sub(r"'[^']*'", "", condition.lower())))


def draw(stages: Sequence[Stage], note: Callable[[Stage], str] = lambda stage: "") -> list[str]:
    """Lines of text, one tree per table; a stage hangs below the last stage it waits for and names the others.

    images
    +- probe  -> broken, width  0 pending
       +- ocr  -> contains_text  12 pending
    """
    lines: list[str] = []
    for table in dict.fromkeys(stage.table.name for stage in stages):
        of_table = [stage for stage in stages if stage.table.name == table]
        lines += [table, *_branches(of_table, _parents(of_table), None, 0, note)]
    return lines


def _parents(stages: Sequence[Stage]) -> dict[str, str | None]:
    """The stage each hangs below: of those it waits for the one declared last, if that one does not hang below it."""
    parents: dict[str, str | None] = {}
    for stage in stages:
        candidates = [other.label for other in reversed(stages_before(stage, stages))]
        parents[stage.label] = next((name for name in candidates if not _hangs_below(name, stage.label, parents)), None)
    return parents


def _hangs_below(name: str | None, ancestor: str, parents: dict[str, str | None]) -> bool:
    while name is not None and name != ancestor:
        name = parents.get(name)
    return name == ancestor


def _branches(
    stages: Sequence[Stage],
    parents: dict[str, str | None],
    parent: str | None,
    level: int,
    note: Callable[[Stage], str],
) -> list[str]:
    lines: list[str] = []
    for stage in stages:
        if parents[stage.label] == parent:
            others = [other.name for other in stages_before(stage, stages) if other.label != parent]
            also = f" (also after {', '.join(others)})" if others else ""
            text = f"{'   ' * level}+- {stage.name}{also}  -> {', '.join(stage.writes)}  {note(stage)}"
            lines += [text.rstrip(), *_branches(stages, parents, stage.label, level + 1, note)]
    return lines
