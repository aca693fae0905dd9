"""A subject drawn, looked at and measured; and the same of real pictures with planted faults.

Subject --pieces of 64, each kept under a stamp--> pictures --Witnesses--> Sheet --measure_all--> Result
real pictures, and six damaged forms of them --the same--> what `orders.SELF_TEST` is checked on
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pleinair.captioning.ocr import TextReader
from pleinair.config import config_digest
from pleinair.evaluation.drawings import read_drawings, write_drawings
from pleinair.evaluation.exploration import damage
from pleinair.evaluation.exploration.requests import Asked, digest_requests
from pleinair.evaluation.exploration.sheet import Sheet, Witnesses
from pleinair.evaluation.exploration.subjects import Drawn, Real, Subject
from pleinair.evaluation.exploration.suite import Known, Result, from_document, measure_all, to_document
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.model.digest import part_digest
from pleinair.records.errors import ConfigError

PIECE = 64
"""Pictures drawn between two pieces that are kept: what an interruption costs at most."""


def measure_subject(
    subject: Subject,
    asked: Sequence[Asked],
    world: World,
    witnesses: Witnesses,
    known: Known,
    reader: TextReader,
    *,
    pictures: Pictures | None = None,
    size: str = "",
    seed: int = 0,
) -> tuple[Result, Sheet]:
    """Every measure of a subject; `pictures` are its own where they were drawn before. Raises ConfigError."""
    began = time.monotonic()
    if pictures is None:
        pictures = subject.draw(asked)
    try:
        sheet = witnesses.look(world, asked, pictures)
        measures = measure_all(sheet, witnesses, known, reader)
    except ValueError as refused:
        raise ConfigError(str(refused)) from refused
    distinct = list({one.request.unit: one.request for one in asked}.values())
    result = Result(
        subject=subject.name,
        size=size,
        seed=seed,
        prompts_sha256=digest_requests(distinct),
        num_pictures=len(asked),
        seconds=time.monotonic() - began,
        measures=measures,
    )
    return result, sheet


def draw_in_pieces(
    subject: Subject, asked: Sequence[Asked], folder: Path, on_progress: Callable[[int, int], None]
) -> Pictures:
    """The subject's pictures, a piece at a time, each kept in `folder` for the next call of equal subject and requests."""
    folder.mkdir(parents=True, exist_ok=True)
    identity, parts = subject_digest(subject), []
    for start in range(0, len(asked), PIECE):
        piece = asked[start : start + PIECE]
        stamp = config_digest([identity, [[one.request.prompt, one.seed] for one in piece]])
        kept = folder / f"{start // PIECE:04}.npz"
        pictures = read_drawings(kept, stamp)
        if pictures is None:
            pictures = subject.draw(piece)
            write_drawings(kept, stamp, pictures)
        parts.append(pictures)
        on_progress(start + len(piece), len(asked))
    return np.concatenate(parts)


def subject_digest(subject: Subject) -> str:
    """What identifies a subject's pictures: a model's weights and settings, or its name."""
    if isinstance(subject, Drawn):
        return config_digest([part_digest(subject.sampler.transformer), subject.config])
    return subject.name


def self_test(
    sheet: Sheet,
    witnesses: Witnesses,
    known: Known,
    reader: TextReader,
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> dict[str, Result]:
    """Real pictures and their damaged forms, measured on the sheet's requests; kept in `folder` per list of requests."""
    world, asked = sheet.world, sheet.asked
    stamp = config_digest([list(world.keys), [[one.request.unit, one.seed] for one in asked], witnesses.features.name])
    kept = folder / f"self-test-{stamp[:12]}.json"
    if kept.exists():
        return {name: from_document(document) for name, document in json.loads(kept.read_text()).items()}
    found: dict[str, Result] = {}
    subjects = planted(world, asked)
    for number, (subject, of) in enumerate(subjects):
        if len(of):
            found[subject.name], _ = measure_subject(subject, of, world, witnesses, known, reader)
        on_progress(number + 1, len(subjects))
    staging = kept.with_name(f".{kept.name}")
    staging.write_text(json.dumps({name: to_document(result) for name, result in found.items()}))
    os.replace(staging, kept)
    return found


def planted(world: World, asked: Sequence[Asked]) -> list[tuple[Subject, Sequence[Asked]]]:
    """Real pictures, six faults, and what each is asked."""
    real, of_things = Real(world), ("default", "specified", "unseen")
    return [
        (real, asked),
        (damage.style_collapse(real, world.style_names[0]), asked),
        (damage.concept_collapse(real, world.trained_labels[0]), asked),
        (damage.copies(real), asked),
        (damage.noise(real), asked),
        (damage.wrong_prompts(real), asked),
        (damage.TrainingCopies(world), [one for one in asked if one.request.kind in of_things]),
    ]
