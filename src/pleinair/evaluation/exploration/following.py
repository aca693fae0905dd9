"""Prompts as people write them: bare, long, in other languages. Is the thing there, and its style?"""

from __future__ import annotations

from pleinair.evaluation.exploration.measured import Measured, mean_by_unit, measured
from pleinair.evaluation.exploration.requests import Kind
from pleinair.evaluation.exploration.sheet import Sheet

KINDS: tuple[Kind, ...] = ("user", "long", "language")


def following(sheet: Sheet, judge: str) -> list[Measured]:
    """`can_user`, `can_long`, `can_language`: both thing and style, as far as the plan asks for them."""
    found = []
    for kind in KINDS:
        asked = sheet.of_kind(kind)
        if len(asked):
            hit = asked.style_hit(judge) & asked.concept_hit(judge)
            found.append(measured(f"can_{kind}", mean_by_unit(asked.units, hit), len(asked)))
    return found
