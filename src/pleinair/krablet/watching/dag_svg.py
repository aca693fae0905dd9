"""The stages of a warehouse as a drawing: columns by how many stages come before, with what each still has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from pleinair.krablet.stages import Depth, Stage
from pleinair.krablet.watching.dag import stages_before

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 190, 58, 70, 22, 24
HEAD = 34
STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff }
.box { fill: #f5f7fa; stroke: #6b7785 } .stuck { stroke: #b3261e; stroke-width: 2 } .done { fill: #eaf5ea }
.name { font-weight: 600; fill: #1b2733 } .note { fill: #52606d; font-size: 12px } .edge { fill: none; stroke: #9aa5b1 }
"""


def draw_svg(stages: Sequence[Stage], depth_of: Callable[[Stage], Depth]) -> str:
    """One drawing of all tables, below one another. Arrows go from a stage to those that wait for what it writes."""
    parts: list[str] = []
    top, right = MARGIN, 0
    for table in dict.fromkeys(stage.table.name for stage in stages):
        of_table = [stage for stage in stages if stage.table.name == table]
        places = _places(of_table, top + HEAD)
        parts.append(f'<text class="name" x="{MARGIN}" y="{top + 14}">{escape(table)}</text>')
        parts += [
            _edge(places[before.label], places[s.label]) for s in of_table for before in _shown_before(s, of_table)
        ]
        parts += [_box(stage, *places[stage.label], depth_of(stage)) for stage in of_table]
        top = max(y for _, y in places.values()) + HEIGHT + MARGIN
        right = max(right, *(x + WIDTH + MARGIN for x, _ in places.values()))
    size = f'width="{right}" height="{top}" viewBox="0 0 {right} {top}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{"".join(parts)}</svg>\n'


def levels(stages: Sequence[Stage]) -> dict[str, int]:
    """How many stages come before each, at most; of stages that wait for each other the one declared first comes first."""
    found: dict[str, int] = {}
    for stage in stages:
        before = [other.label for other in stages_before(stage, stages) if other.label in found]
        found[stage.label] = 1 + max((found[label] for label in before), default=-1)
    return found


def _shown_before(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The stages an arrow comes from: those waited for, without those that one of these waits for itself."""
    level = levels(stages)
    before = [other for other in stages_before(stage, stages) if level[other.label] < level[stage.label]]
    further = {further.label for other in before for further in stages_before(other, stages)}
    return [other for other in before if other.label not in further]


def _places(stages: Sequence[Stage], top: int) -> dict[str, tuple[int, int]]:
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for label, level in levels(stages).items():
        row = rows.get(level, 0)
        rows[level] = row + 1
        places[label] = (MARGIN + level * (WIDTH + ACROSS), top + row * (HEIGHT + DOWN))
    return places


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + WIDTH, start[1] + HEIGHT // 2, end[0], end[1] + HEIGHT // 2
    middle = (x1 + x2) // 2
    line = f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2 - 6} {y2}"
    return f'<path class="edge" d="{line}"/><path d="M{x2} {y2}l-8 -4v8z" fill="#9aa5b1"/>'


def _box(stage: Stage, x: int, y: int, depth: Depth) -> str:
    kind = "stuck" if depth.stuck else "" if depth.pending else "done"
    writes = ", ".join(stage.writes)
    shown = writes if len(writes) <= 26 else writes[:23] + "..."
    note = f"{depth.pending:,} to do" + (f", {depth.stuck:,} stuck" if depth.stuck else "")
    tip = escape(f"{stage.label}: ready while {stage.ready}; writes {writes}")
    return (
        f'<g><title>{tip}</title><rect class="box {kind}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<text class="name" x="{x + 12}" y="{y + 18}">{escape(stage.name)}</text>'
        f'<text class="note" x="{x + 12}" y="{y + 34}">{escape(shown)}</text>'
        f'<text class="note" x="{x + 12}" y="{y + 50}">{note}</text></g>'
    )
