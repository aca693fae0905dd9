"""Who did not arrive: from what every rank says of its process groups to the ranks that hold the others up.

    group "0"   rank 0  begun 41, ended 40   waits           rank 1 is behind and waits for nobody:
                rank 1  begun 40, ended 40   behind    ==>   it is the one that is missing
                rank 2  begun 41, ended 40   waits

With several groups (a mesh of two axes) a rank can be behind in one because it waits in another: only those that wait
nowhere are named. A rank that gives no answer is behind wherever somebody waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class GroupState:
    """How far one rank is in one process group."""

    members: tuple[int, ...]
    begun: int
    """Number of its last collective."""
    ended: int
    """Number of the last one that completed."""
    last: str
    """What the last one is, such as `gloo:all_reduce`."""


Answer = Mapping[str, GroupState]
"""By the group's name."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """The ranks that hold the others up."""

    ranks: tuple[int, ...]
    collective: str
    """What the others wait in; empty when nobody waits."""
    evidence: tuple[str, ...]


def read_answer(path: Path) -> Answer | None:
    """What a rank said; None when it said nothing."""
    if not path.exists():
        return None
    groups = json.loads(path.read_text())["groups"]
    return {name: GroupState(**{**state, "members": tuple(state["members"])}) for name, state in groups.items()}


def find_missing(answers: Mapping[int, Answer | None]) -> Missing:
    """Name the ranks that are behind and wait for nobody; `answers` has an entry for every rank, None = no answer."""
    behind: dict[int, str] = {}
    waiting: set[int] = set()
    collective = ""
    for name in sorted({name for answer in answers.values() for name in answer or {}}):
        states = {rank: answer[name] for rank, answer in answers.items() if answer and name in answer}
        top = max(state.begun for state in states.values())
        waits = [rank for rank, state in states.items() if state.ended < state.begun == top]
        if not waits:
            continue
        first = states[waits[0]]
        waiting.update(waits)
        absent = {rank: f"gave no answer while rank {waits[0]} waits" for rank in first.members if not answers[rank]}
        late = {
            rank: f"did {state.begun} collectives of group {name}, the others began number {top}"
            for rank, state in states.items()
            if state.begun < top
        }
        if absent or late:
            behind |= absent | late
            collective = collective or f"{first.last} number {top} of group {name}, {len(first.members)} ranks"
    roots = sorted(set(behind) - waiting) or sorted(behind)
    silent = [rank for rank, answer in answers.items() if answer is None]
    if not roots and 0 < len(silent) < len(answers):
        return Missing(ranks=tuple(silent), collective="", evidence=tuple(f"rank {r} gave no answer" for r in silent))
    return Missing(
        ranks=tuple(roots), collective=collective, evidence=tuple(f"rank {rank} {behind[rank]}" for rank in roots)
    )


def where_it_stands(stacks: Path) -> str | None:
    """The innermost frame of the main thread in a file of faulthandler; None when there is none."""
    text = stacks.read_text(errors="replace") if stacks.exists() else ""
    threads = re.split(r"\n(?=(?:Current thread|Thread) 0x)", "\n" + text)
    main = [thread for thread in threads if " in <module>" in thread]
    frame = re.search(r'File "(.+?)", line (\d+) in (\S+)', main[-1]) if main else None
    return f"{frame[3]} ({Path(frame[1]).name}:{frame[2]})" if frame else None
