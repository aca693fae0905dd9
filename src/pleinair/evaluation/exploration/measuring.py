"""A subject drawn, looked at and measured.

Subject --pieces of 64, each kept under a stamp--> pictures --Witnesses--> Sheet --measure_all--> Result
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pleinair.config import config_digest
from pleinair.evaluation.drawings import read_drawings, write_drawings
from pleinair.evaluation.exploration.looking import Witnesses
from pleinair.evaluation.exploration.requests import Asked, digest_requests, to_document
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.exploration.subjects import Subject
from pleinair.evaluation.exploration.suite import Known, Result, measure_all
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.records.errors import ConfigError

PIECE = 64
"""Pictures drawn between two pieces that are kept: what an interruption costs at most."""


def measure_subject(
    subject: Subject,
    asked: Sequence[Asked],
    world: World,
    witnesses: Witnesses,
    known: Known,
    *,
    pictures: Pictures | None = None,
    size: str = "",
    seed: int = 0,
    began: float | None = None,
) -> tuple[Result, Sheet]:
    """Every measure of a subject; `pictures` are its own where they were drawn before, `began` is when. Raises ConfigError."""
    began = time.monotonic() if began is None else began
    if pictures is None:
        pictures = subject.draw(asked)
    try:
        sheet = witnesses.look(world, asked, pictures)
        measures = measure_all(sheet, known)
    except ValueError as refused:
        raise ConfigError(str(refused)) from refused
    distinct = list({one.request.unit: one.request for one in asked}.values())
    result = Result(
        subject=subject.name,
        identity=subject.identity,
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
    parts = []
    for start in range(0, len(asked), PIECE):
        piece = asked[start : start + PIECE]
        stamp = config_digest([subject.identity, [[to_document(one.request), one.seed] for one in piece]])
        kept = folder / piece_name(start)
        pictures = read_drawings(kept, stamp)
        if pictures is None:
            pictures = subject.draw(piece)
            write_drawings(kept, stamp, pictures)
        parts.append(pictures)
        on_progress(start + len(piece), len(asked))
    return np.concatenate(parts)


def piece_name(row: int) -> str:
    """The file that holds a picture."""
    return f"{row // PIECE:04}.npz"
