"""Every picture of a result with what was asked of it and what was made of it: from any number back to its pictures.

    Sheet --one line a picture--> requests.jsonl:  file and row, seed, request, what each judge and checker said

A line says what `metrics.json` counts: an accuracy is the mean over prompts of a field of these lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pleinair.evaluation.exploration.composition import MEASURES
from pleinair.evaluation.exploration.measuring import PIECE, piece_name
from pleinair.evaluation.exploration.memory import nearest_trained
from pleinair.evaluation.exploration.requests import Asked, from_document, to_document
from pleinair.evaluation.exploration.sheet import JUDGES, NUM_GUESSES, Seen, Sheet, among_first
from pleinair.evaluation.exploration.suite import Known
from pleinair.records.errors import ConfigError
from pleinair.records.letters import character_error

REQUESTS = "requests.jsonl"
"""Its name in a result's folder."""
WHOLE = ("default", "specified", "unseen", "user", "long", "language", "any-kind")
"""Kinds whose whole picture should be one thing."""


def trace_lines(sheet: Sheet, known: Known) -> Iterator[str]:
    """One JSON object a picture, in the order they were asked for."""
    by_judge = {judge: _judged(sheet, judge) for judge in JUDGES}
    copies = _copies(sheet, known)
    for row, (one, seen) in enumerate(zip(sheet.asked, sheet.seen, strict=True)):
        judges = {judge: found[row] for judge, found in by_judge.items() if found[row]}
        line = {
            "file": f"pictures/{piece_name(row)}",
            "row": row % PIECE,
            "seed": one.seed,
            "request": to_document(one.request),
            **({"judges": judges} if judges else {}),
            **_checked(one, seen),
            **copies.get(row, {}),
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def read_asked(path: Path) -> list[Asked]:
    """What a result was asked, picture by picture. Raises ConfigError for another file, OSError for none."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [Asked(from_document(line["request"]), int(line["seed"])) for line in lines]
    except (ValueError, TypeError, KeyError) as refused:
        raise ConfigError(f"{path} lists no requests ({refused}): evaluate again") from refused


def _judged(sheet: Sheet, judge: str) -> list[dict[str, Any]]:
    """What a judge named and whether it is what was asked, row by row; nothing where it is not asked."""
    scores, world = sheet.scores[judge], sheet.world
    styles, things = scores.style_logits.argmax(axis=1), scores.concept_logits.argmax(axis=1)
    found: list[dict[str, Any]] = []
    for row, (one, seen) in enumerate(zip(sheet.asked, sheet.seen, strict=True)):
        request, told = one.request, dict[str, Any]()
        if request.kind in WHOLE:
            told = {"style": world.style_names[styles[row]], "thing": world.concept_names[things[row]]}
            if request.style:
                told["style_right"] = told["style"] == request.style
            wanted = [world.concept_of_label[label] for label in request.variants or (request.label,)]
            hits = among_first(np.repeat(scores.concept_logits[row][None], len(wanted), axis=0), wanted, NUM_GUESSES)
            told["thing_right"] = bool(hits.any())
        elif request.kind in MEASURES and judge in seen.things:
            told = {"things": seen.things[judge].num, "right": seen.things[judge].right}
        found.append(told)
    return found


def _checked(one: Asked, seen: Seen) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if seen.colour:
        told["colour"] = seen.colour
    if one.request.kind == "colour":
        told["colour_right"] = seen.colour == one.request.colour
    if seen.read is not None:
        told |= {"read": seen.read, "text_error": character_error(one.request.text, seen.read)}
    return told


def _copies(sheet: Sheet, known: Known) -> dict[int, Mapping[str, Any]]:
    """Of open prompts the training picture that a picture is most like."""
    rows: Sequence[int] = [row for row, one in enumerate(sheet.asked) if one.request.kind == "default"]
    nearest = nearest_trained(sheet.rows(np.array(rows, np.int64)), known.copies_ND)
    return {
        row: {
            "nearest_trained": sheet.world.keys[place],
            "likeness": round(likeness, 4),
            "copy": likeness > known.copy_threshold,
        }
        for row, (place, likeness) in zip(rows, nearest, strict=True)
        if place >= 0
    }
